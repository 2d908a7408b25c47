# SPDX-License-Identifier: Apache-2.0
"""Every code block of the README runs, and prints what stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bsmodel.command import main

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
FILES = {match[1]: text for _, text in BLOCKS if (match := re.match(r"# (\S+\.\w+)\n", text))}
COMMANDS = [line.partition("    #")[0] for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
PROGRAMS = [text for kind, text in BLOCKS if kind == "python" and not text.startswith("# mine.py")]

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the README shows."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "tokens.txt").write_text("200\n300\n600\n")  # of whoever reads: one number for each sample
    return tmp_path


def test_the_blocks_are_found():
    assert len(COMMANDS) >= 5 and len(PROGRAMS) == 2 and set(FILES) == {"mine.py", "study.toml"}
    assert all(kind in ("sh", "console", "python", "toml") for kind, _ in BLOCKS)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_answers(line, folder, capsys):
    program, *arguments = shlex.split(line)

    assert program == "bsmodel" and main(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "console"])
def test_an_answer_is_what_is_printed(block, folder, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    question, _, answer = block.partition("\n")
    main(shlex.split(question.removeprefix("$ bsmodel ")))
    printed, place = capsys.readouterr().out, 0
    for part in answer.split("...\n"):
        assert part in printed[place:]
        place = printed.index(part, place) + len(part)


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_runs(text, folder):
    (folder / "program.py").write_text(text)
    found = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)}, check=False)

    assert found.returncode == 0, found.stderr
