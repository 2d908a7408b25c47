# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation runs, from the top of its page to the end, and prints what stands there; and every page is on the site."""

import importlib
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import bsmodel
from bsmodel.command import main
from bsmodel.command.study import StudyFile
from tests.test_validation import recorded, written

pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "hardware" / "README.md", ROOT / "benchmarks" / "README.md"]
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.M | re.S)
NOT_HERE = {"in a checkout, to install it", "on the machine with the GPU", "hours of measuring"}  # titles of blocks that are not run, with the reason
ELSEWHERE = {"with_lightning.py", "with_accelerate.py", "with_transformers.py", "test_memory.py"}  # files that test_finding.py and test_gate_runs.py run


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    kind: str
    reason: str
    text: str
    line: int

    @property
    def file(self):
        """The name in its first line, where it is a file."""
        found = re.match(r"# (\S+\.\w+)\n", self.text)
        return found[1] if found and self.kind in ("python", "toml", "yaml", "json") else ""


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    return [Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start()) + 1) for found in BLOCK.finditer(text)]


def title(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, but for those of the repository that pages name, and for what a reader has by then: rows of a card, and a trial to go on with."""
    for name in ("benchmarks", "docs", "hardware"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "benchmarks" / "results" / "digits-trial", tmp_path / "runs" / "digits")
    written(tmp_path / "rows.jsonl", recorded())
    shutil.copytree(ROOT / "tests" / "data" / "skypilot", tmp_path / "home" / ".sky" / "catalogs" / "v8")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def asked(line, folder, capsys):
    """Exit code and output of a line that a reader types."""
    if line.startswith("bsmodel ") and not re.search(r"[|>~]", line):
        capsys.readouterr()
        return main(shlex.split(line, comments=True)[1:]), capsys.readouterr().out
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout or done.stderr


def run(block, folder, names, capsys):
    """Do what a block says; a failed assertion says what came instead."""
    match block.kind:
        case "sh":
            for line in block.text.splitlines():
                code, printed = asked(line, folder, capsys)
                assert code == 0, f"{line}: {printed}"
        case "console":
            question, _, answer = block.text.removeprefix("$ ").partition("\n")
            code, printed = asked(question, folder, capsys)
            place = 0
            assert code in (0, 1)
            for part in answer.split("...\n"):
                assert part in printed[place:]
                place = printed.index(part, place) + len(part)
        case "python" if block.file:
            runpy.run_path(block.file, run_name="__main__")
        case "python":
            exec(compile(block.text, "the page", "exec"), names)
        case "toml" | "yaml" | "json":
            {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}[block.kind](block.text)
        case other:
            assert other == "text", "a block of a kind that nobody runs"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_page_runs_from_top_to_end(page, folder, capsys):
    blocks = [block for block in blocks_of(page) if block.reason not in NOT_HERE and block.file not in ELSEWHERE]
    names = {"__name__": "__main__"}
    for block in blocks:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    for block in blocks:
        try:
            run(block, folder, names, capsys)
        except Exception as error:
            error.add_note(f"{title(page)}, line {block.line}")
            raise


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_no_block_escapes(page):
    """A block is fenced and of a kind that is run, or says why it is not."""
    outside = BLOCK.sub("", page.read_text(encoding="utf-8"))
    indented = [after for before, after in itertools.pairwise(outside.split("\n\n")) if after.startswith("    ") and not before.startswith(("- ", "* "))]

    assert "```" not in outside and not indented
    assert {block.reason for block in blocks_of(page)} <= NOT_HERE | {""}


def test_few_blocks_are_not_run():
    """Of pages for readers; those of benchmarks/README.md measure for hours."""
    skipped = [(title(page), block.line) for page in PAGES[:-1] for block in blocks_of(page) if block.reason]

    assert len(skipped) <= 6, skipped


def test_the_file_of_a_study_has_the_fields_that_are_listed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    listed = importlib.import_module("table").TABLES["docs/capacity.md"]["studyfile"]()
    planned = next(block for block in blocks_of(ROOT / "docs" / "capacity.md") if block.file == "planned.toml")

    assert f"<!-- studyfile: begin -->\n{listed}<!-- studyfile: end -->\n" in page, "stale: python benchmarks/table.py"
    assert StudyFile.model_validate(tomllib.loads(planned.text)).parallel == ["ddp", "fsdp2"]


# -- the site ------------------------------------------------------------------------------------------------------------------------------


def test_every_page_is_on_the_site():
    config = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")

    assert [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}\n" not in config] == []


def test_every_public_name_is_in_the_reference():
    top, _, below = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("\n## In its modules\n")
    shown = re.findall(r"^::: bsmodel(?:\.\w+)*\.(\w+)$", top, re.M)
    others = re.findall(r"^::: (bsmodel\.\w+)\.(\w+)$", below, re.M)

    assert sorted(shown) == sorted(bsmodel.__all__)
    assert all(getattr(bsmodel, name).__doc__ for name in shown)
    assert len(others) > 10 and all(getattr(importlib.import_module(module), name).__doc__ for module, name in others)


def test_every_command_is_in_the_reference(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out.partition("  COMMAND\n")[2], re.M)
    shown = re.findall(r"^## (\w+)$", (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), re.M)

    assert commands == shown and len(shown) > 10


def built(place):
    """Exit code and stderr of what `make docs` runs, in a copy of the repository whose gallery is empty."""
    line = re.search(r"-m mkdocs build .*", (ROOT / "Makefile").read_text(encoding="utf-8"))[0]
    done = subprocess.run([sys.executable, *shlex.split(line)], cwd=place, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_the_site_is_built_and_a_broken_link_or_a_page_that_nobody_finds_is_an_error(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    for name in ("bsmodel", "docs", "hardware"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "benchmarks").mkdir()
    for name in (".mkdocs.yml", "README.md", "CHANGELOG.md", "benchmarks/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "docs" / "gallery.md").write_text("# Gallery\n", encoding="utf-8")
    whole, said = built(tmp_path)
    pages = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "build" / "docs").glob("*.html")}

    assert whole == 0 and "WARNING" not in said, said
    assert all(not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//", text) for text in pages.values())
    assert "rtx-3090-24gb" in pages["gpus.html"]
    assert 'id="bsmodel.fit"' in pages["api.html"] and "--target-batch N" in pages["commands.html"] and 'id="part-row"' in pages["json.html"]

    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](nothing.md), [b](my-model.md#nothing), [c](../bsmodel/units.py)\n")
    (tmp_path / "docs" / "orphan.md").write_text("# Nobody links here\n", encoding="utf-8")
    broken, said = built(tmp_path)

    assert broken == 1 and said.count("WARNING") == 4, said
