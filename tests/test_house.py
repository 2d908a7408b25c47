# SPDX-License-Identifier: Apache-2.0
"""How the house is built: which room knows which, how long a file and a function may be, what the front of a room says."""

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("bsmodel/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
ROOMS = sorted(path.parent for path in ROOT.glob("bsmodel/*/__init__.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 40
# Modules that a room opens whole: the loop that measuring runs too; and the parts of a measurement, most of which need torch only when run.
OPEN_MODULES = {
    "bsmodel.recording": {"loop", "placement", "probes"},
    "bsmodel.validation": {"calibration", "cases", "child", "device", "environment", "page", "rows", "running", "summary"},
}


def lint(folder):
    """What import-linter says of the package in a folder."""
    program = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    return subprocess.run(program, cwd=folder, env={"PYTHONPATH": str(folder), "PATH": ""}, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """The package and its contracts, to be broken."""
    shutil.copytree(ROOT / "bsmodel", tmp_path / "bsmodel", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_between_the_rooms_hold(copy):
    result = lint(copy)

    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("memory/peak.py", "import torch", "What is computed from a recording needs no torch"),
        ("timing/step.py", "from bsmodel.workloads import Workload", "Rooms know only those below them"),
        ("tape/polynomials.py", "from bsmodel.planning import plan", "Rooms know only those below them"),
        ("recording/loop.py", "from bsmodel.memory import predict", "A recording knows nothing of what is computed from it"),
        ("studies/rows.py", "import torch", "Studies and commands have torch from the rooms that record"),
        ("command/main.py", "import transformers", "Studies and commands have torch from the rooms that record"),
    ],
)
def test_an_import_across_the_rooms_breaks_a_contract(copy, module, line, contract):
    path = copy / "bsmodel" / module
    path.write_text(path.read_text().replace("from __future__ import annotations\n", f"from __future__ import annotations\n\n{line}\n", 1))
    result = lint(copy)

    assert line in path.read_text()
    assert result.returncode == 1 and f"{contract} BROKEN" in result.stdout


def test_a_room_that_no_contract_places_is_refused(copy):
    (copy / "bsmodel" / "attic.py").write_text('"""A room nobody planned."""\n')
    result = lint(copy)

    assert result.returncode == 1 and "bsmodel.attic" in result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short_and_say_what_they_are(path):
    text = path.read_text()
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: length for node in functions if (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION}

    assert text.count("\n") <= MOST_LINES
    assert not long
    assert not text or (text.startswith("# SPDX-License-Identifier: Apache-2.0\n") and ast.get_docstring(tree))


def front_of(room):
    """Names that a room exports: its `__all__`."""
    for node in ast.parse((room / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@functools.cache
def imports_of(path):
    """Modules of this package that a file imports from, and the names it takes."""
    return tuple(_imports(path))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bsmodel."):
            yield node.module, {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            yield from ((alias.name, set()) for alias in node.names if alias.name.startswith("bsmodel."))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_from_outside_a_room_only_what_its_front_exports_is_imported(room):
    name = f"bsmodel.{room.name}"
    opened = OPEN_MODULES.get(name, set())
    outside = [path for path in ROOT.glob("bsmodel/**/*.py") if room not in path.parents]
    found = [(path.relative_to(ROOT), module, taken) for path in outside for module, taken in imports_of(path) if f"{module}.".startswith(f"{name}.")]
    behind = [item for item in found if item[1] != name and item[1].removeprefix(f"{name}.") not in opened]

    assert behind == []
    assert [item for item in found if item[1] == name and not item[2] <= front_of(room) | opened] == []


@pytest.mark.parametrize("room", [ROOT / "bsmodel", *sorted(path.parent for path in ROOT.glob("bsmodel/*/**/__init__.py"))], ids=lambda room: room.name)
def test_the_front_of_a_room_says_in_one_sentence_what_it_is_for(room):
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""

    assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", said) and not re.search(r"[.!?] ", said)
