# SPDX-License-Identifier: Apache-2.0
"""What hardware/README.md says of the files beside it is what the schema says."""

import importlib
from pathlib import Path

import pytest

from bsmodel.hardware import NO_FIGURES, SEARCH_PATH_VARIABLE, Gpu

ROOT = Path(__file__).parent.parent
README = (ROOT / "hardware" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["gpu", "source", "runtime", "kernels", "communicator", "network", "workspacerule"])
def test_the_tables_of_fields_are_those_of_the_schema(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    content = importlib.import_module("table").TABLES["hardware/README.md"][name]()

    assert f"<!-- {name}: begin -->\n{content}<!-- {name}: end -->\n" in README, "stale: python benchmarks/table.py"


def test_the_card_of_the_example_is_one(tmp_path):
    example = README[README.index("# my_card.toml\n") : README.index("```\n\nThat is enough for a batch")]
    (tmp_path / "my_card.toml").write_text(example, encoding="utf-8")

    assert Gpu.load(tmp_path / "my_card.toml").id == "my-card-16gb"


def test_what_needs_no_source_is_named():
    assert all(f"`{name}`" in README for name in {*NO_FIGURES, SEARCH_PATH_VARIABLE})
