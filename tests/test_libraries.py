# SPDX-License-Identifier: Apache-2.0
"""A library that fails to import is named as what is broken, with the remedy."""

import subprocess
import sys

import pytest

pytest.importorskip("transformers")

NMS = "raise RuntimeError('operator torchvision::nms does not exist')"


@pytest.mark.parametrize(
    ("package", "code", "model", "reason"),
    [
        (
            "torchvision",
            NMS,
            "torchvision:resnet18",
            "torchvision fails to import here (RuntimeError: operator torchvision::nms does not exist): its version does not",
        ),
        ("timm", "import no_such_thing", "timm:resnet18", "timm fails to import here: it needs no_such_thing, which is not installed"),
        ("timm", "1 / 0", "timm:resnet18", "timm fails to import here (ZeroDivisionError: division by zero); reinstall it"),
    ],
)
def test_a_broken_library_is_named_as_what_is_broken(package, code, model, reason, tmp_path):
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(code)
    question = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import bsmodel; bsmodel.Workload.named({model!r})"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)

    assert reason in answer.stderr.splitlines()[-1]


def test_a_broken_library_under_transformers_is_not_called_transformers(tmp_path):
    """transformers imports torchvision lazily, and says that it fails itself."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"__version__ = '0.28.0'\n{NMS}")
    info = tmp_path / "torchvision-0.28.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    (info / "RECORD").write_text("torchvision/__init__.py,,\n")
    question = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from bsmodel.workloads.faults import broken_import\n"
        "try:\n    from transformers import DetrImageProcessor\nexcept Exception as error:\n    print(broken_import(error))"
    )
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)

    assert answer.stdout.startswith("torchvision fails to import here (RuntimeError: operator torchvision::nms does not exist)")
    assert "pip uninstall torchvision" in answer.stdout and "transformers" not in answer.stdout
