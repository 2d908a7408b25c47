# SPDX-License-Identifier: Apache-2.0
"""Files of docs/check.md are read by whoever they are for; its other blocks run in test_docs.py."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_gate_runs import EXAMPLE, git, run

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "check.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)

pytest.importorskip("transformers")


def blocks(kind):
    return [text for name, text in BLOCKS if name == kind]


def test_the_tests_are_those_of_the_example_which_are_run_elsewhere():
    shown, kept = blocks("python")[1], (EXAMPLE / "tests" / "test_memory.py").read_text()

    assert shown.partition("\n\n\n")[2] == kept.partition("\n\n\n")[2] != ""


def test_the_workflow_follows_the_published_schema_and_gives_the_action_inputs_that_it_has(tmp_path):
    pytest.importorskip("check_jsonschema")
    (tmp_path / "memory.yml").write_text(blocks("yaml")[0])
    found = run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", "memory.yml", folder=tmp_path)
    inputs = yaml.safe_load((ROOT / ".github" / "actions" / "check" / "action.yml").read_text())["inputs"]
    table = {name for row in re.findall(r"^\| (`.*?`) \|", PAGE, re.M) for name in re.findall("`([a-z-]+)`", row)}

    assert found.returncode == 0, found.stdout
    assert {*yaml.safe_load(blocks("yaml")[0])["jobs"]["memory"]["steps"][1]["with"]} <= {*inputs} == table


def test_the_hooks_are_ones_of_pre_commit_and_the_local_one_runs(tmp_path):
    clientlib = pytest.importorskip("pre_commit.clientlib")
    shutil.copy(EXAMPLE / "model.py", tmp_path)
    for text in blocks("yaml")[1:]:
        (tmp_path / ".pre-commit-config.yaml").write_text(text)
        assert clientlib.load_config(tmp_path / ".pre-commit-config.yaml")["repos"][0]["hooks"][0]["id"] == "bsmodel-check"
    (tmp_path / "bsmodel").write_text(f'#!/bin/sh\nexec {sys.executable} -m bsmodel "$@"\n')  # the script of an installation
    (tmp_path / "bsmodel").chmod(0o755)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found = run(sys.executable, "-m", "pre_commit", "run", "--all-files", folder=tmp_path, PRE_COMMIT_HOME=str(tmp_path / "home"), **own)

    assert found.returncode == 1 and "there is no baseline 'baseline.json'; write it with --save-baseline baseline.json" in found.stdout, (
        found.stdout + found.stderr
    )
