# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, the command ends in one line with the right exit code; and code of the user's own cannot end, double or pollute an answer."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsmodel.command import main
from bsmodel.command.terminal import escaped, render, table
from tests.test_studies import marked_processes

ROOT = Path(__file__).parent.parent
MINE = f"{ROOT}/tests/models.py:attention"
GOOD = "from tests.models import *\n"


def command(*arguments, redirections="", **environment):
    """The command in a process of its own, its streams redirected as a shell does it."""
    line = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "bsmodel", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT, check=False)


# -- defects -----------------------------------------------------------------------------------------------------------------------------

BROKEN = """
from bsmodel.command import run
import {module} as module
def broken(*arguments, **keywords):
    raise KeyError("lost")
module.{name} = broken
run()
"""


def with_a_defect(module, name, *arguments):
    line = [sys.executable, "-c", BROKEN.format(module=module, name=name), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_defect_says_that_it_is_one_and_where_if_asked(before, tape, tmp_path):
    tape.save(tmp_path / "tape")
    question = ["explain", tmp_path / "tape", "--batch", "8", "--gpu", "a100-40gb"]
    short = with_a_defect("bsmodel.command.explain", "breakdown", *question)
    long = with_a_defect("bsmodel.command.explain", "breakdown", *(["--debug", *question] if before else [*question, "--debug"]))
    line = "bsmodel: internal error: KeyError: 'lost'; this is a bug of bsmodel, --debug shows where\n"

    assert (short.returncode, short.stdout, short.stderr) == (3, "", line)
    assert (long.returncode, long.stdout) == (3, "") and long.stderr.endswith(line) and "Traceback" in long.stderr and "in broken" in long.stderr


@pytest.mark.parametrize("name", ["plan", "compare"])
def test_a_defect_while_a_row_is_answered_is_no_refusal(name, tape, tmp_path):
    tape.save(tmp_path / "tape")
    found = with_a_defect("bsmodel.studies.answering", "fit", name, tmp_path / "tape", "--gpu", "a100-40gb", "--debug")

    assert found.returncode == 3 and found.stdout == "" and "in broken" in found.stderr and "internal error: KeyError: 'lost'" in found.stderr


def test_in_a_study_a_defect_is_a_row(tape, tmp_path):
    tape.save(tmp_path / "tape")
    found = with_a_defect("bsmodel.studies.answering", "fit", "study", "--model", tmp_path / "tape", "--gpu", "a100-40gb", "--json")

    assert found.returncode == 1
    assert json.loads(found.stdout)["rows"][0]["verdict"].startswith("internal error: KeyError: 'lost'")


def test_an_error_of_the_user_is_one_line_and_where_if_asked():
    short, long = command("plan", "nothing"), command("plan", "nothing", "--debug")

    assert short.returncode == long.returncode == 2 and short.stderr.count("\n") == 1
    assert "Traceback" in long.stderr and long.stderr.endswith(short.stderr)


# -- code of the user's own --------------------------------------------------------------------------------------------------------------

ENDS = {
    "sys.exit(0)": "",
    "sys.exit('enough')": "",
    "os._exit(0)": "",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise BaseException('odd')": "BaseException: odd",
    "os.kill(os.getpid(), 11)": "",
    "os.kill(os.getpid(), 9)": "",
}


@pytest.mark.parametrize(("ends", "place"), [*((ends, "loss") for ends in ENDS), ("sys.exit(0)", "import"), ("os._exit(0)", "import")])
def test_code_that_ends_its_process_ends_in_one_line(ends, place, tmp_path):
    mine = tmp_path / "mine.py"
    loss = f"def loss(model, batch):\n    {ends if place == 'loss' else 'return next_token(model, batch)'}\n"
    mine.write_text(f"import os, sys\n{GOOD}{loss}{ends if place == 'import' else ''}\nwork = workload(Attention, tokens, loss)\n")
    found = command(*(("plan",) if place == "loss" else ("predict", "--batch", "8")), f"{mine}:work", "--gpu", "a100-40gb")
    (line,) = found.stderr.splitlines()

    assert (found.returncode, found.stdout) == (2, "")
    assert re.search("end(s|ed) (the|its) process|the process that worked on it ended", line) and ENDS[ends] in line


def test_what_it_prints_is_no_part_of_the_answer(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"import os\n{GOOD}print('hello')\nos.write(1, b'there')\ndef work():\n    print('again', flush=True)\n    return attention()\n")
    noisy, quiet = (command("predict", name, "--batch", "8", "--gpu", "a100-40gb", "--json") for name in (f"{mine}:work", MINE))

    assert noisy.returncode == 0 and noisy.stdout == quiet.stdout
    assert all(word in noisy.stderr for word in ("hello", "there", "again"))


@pytest.mark.parametrize("child", ["", "os._exit(0)", "sys.exit(0)", "raise ValueError"], ids=["goes on", "ends", "exits", "raises"])
def test_a_fork_of_it_answers_nothing(child, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"import os, sys\n{GOOD}def work():\n    if os.fork() == 0:\n        {child or 'pass'}\n    return attention()\n")
    found = command("plan", f"{mine}:work", "--gpu", "a100-40gb", "--json", MARKED_BY_A_TEST=str(tmp_path))
    end = time.monotonic() + 5
    while marked_processes(str(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)

    assert found.returncode == 0 and len(json.loads(found.stdout)["gpus"]) == 1
    assert not marked_processes(str(tmp_path))


def test_in_a_study_one_that_ends_takes_no_other_with_it(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"import os\n{GOOD}def dies():\n    os._exit(0)\ndef work():\n    return workload(dies)\n")
    found = command("study", "--model", f"{mine}:work", "--model", MINE, "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--workers", "2", "--json")

    assert [row["status"] for row in json.loads(found.stdout)["rows"]] == ["refused", "refused", "plan", "plan"]


# -- signals -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)])
def test_a_signal_is_one_line_and_leaves_no_process(number, word, code, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"import pathlib, time\n{GOOD}def work():\n    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n    time.sleep(60)\n")
    question = [sys.executable, "-m", "bsmodel", "plan", f"{mine}:work", "--gpu", "a100-40gb", "--gpu", "h100-80gb"]
    marked = {**os.environ, "MARKED_BY_A_TEST": str(tmp_path)}
    running = subprocess.Popen(question, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=marked)
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    end = time.monotonic() + 5
    while marked_processes(str(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)

    assert (running.returncode, out, err) == (code, "", f"bsmodel: {word}\n")
    assert not marked_processes(str(tmp_path))


# -- streams -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("question", [("gpus",), ("gpus", "--json"), ("schema", "plan"), ("--help",), ("--version",), ("plan", "--help")], ids=" ".join)
def test_a_full_disk_and_a_closed_stdout_are_one_line(question, buffered):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs a device that is always full")
    full, closed = command(*question, redirections=">/dev/full", **buffered), command(*question, redirections=">&-", **buffered)

    assert full.returncode == closed.returncode == 2
    assert full.stderr.count("\n") == closed.stderr.count("\n") == 1
    assert "No space left on device" in full.stderr and "stdout is closed" in closed.stderr


def test_without_stderr_the_answer_is_the_same(tape, tmp_path):
    tape.save(tmp_path / "tape")
    question = ("predict", tmp_path / "tape", "--batch", "8", "--gpu", "a100-40gb")

    assert command(*question, redirections="2>&-").stdout == command(*question).stdout != ""
    wrong = command("plan", "nothing", redirections="2>&-")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "")
    mine = command("predict", MINE, "--batch", "8", "--gpu", "a100-40gb", redirections="2>&- <&-")
    assert mine.returncode == 0 and "fits" in mine.stdout


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=["ascii", "C"])
def test_letters_that_the_output_has_not(environment, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"{GOOD}work = workload(Attention, tokens, next_token, name='caf\\u00e9 \\U0001f600')\n")
    plain = command("plan", MINE, "--gpu", "a100-40gb", COLUMNS="100", **environment)
    as_json = command("predict", f"{mine}:work", "--batch", "8", "--gpu", "a100-40gb", "--json", **environment)
    as_text = command("predict", f"{mine}:work", "--batch", "8", "--gpu", "a100-40gb", **environment)

    assert plain.returncode == as_json.returncode == as_text.returncode == 0
    assert "at ..." in plain.stdout and plain.stdout.isascii()
    assert json.loads(as_json.stdout)["workload"]["name"] == "caf\u00e9 \U0001f600" and as_json.stdout.isascii()
    assert "caf\\u00e9" in as_text.stdout


# -- names -------------------------------------------------------------------------------------------------------------------------------

HOSTILE = "a\x1b[2Jb\nc\x9b31m\u202e\x07"


def test_no_name_steers_the_terminal(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"{GOOD}class Odd(Attention):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.add_module({HOSTILE!r}, self.head)\n        del self.head\n"
        f"    def forward(self, ids):\n        return self._modules[{HOSTILE!r}](self.blocks(self.embed(ids)))\n"
        f"work = workload(Odd, tokens, next_token, name={HOSTILE!r})\n"
    )
    for name, *more in (("plan",), ("predict", "--batch", "8"), ("explain", "--batch", "8"), ("explain", "--batch", "8", "--by", "module"), ("compare",)):
        assert main([name, f"{mine}:work", "--gpu", "a100-40gb", *more]) == 0
        printed = capsys.readouterr()
        assert "a\\x1b[2Jb\\nc\\x9b31m\\u202e\\x07" in printed.out
        assert all(letter.isprintable() or letter == "\n" for letter in printed.out + printed.err)


def test_no_argument_or_file_name_steers_the_terminal(tmp_path, capsys):
    for arguments in (
        ["plan", HOSTILE],
        ["plan", "gpt2", "--gpu", HOSTILE],
        ["plan", "gpt2", "--gpu", f"{HOSTILE}.toml"],
        ["study", HOSTILE],
        ["plan", f"{HOSTILE}.py:x"],
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and printed.err[:-1].isprintable()
    found = command("plan", "gpt2", f"--{HOSTILE}")
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and found.stderr[:-1].isprintable()


def test_escaped_text_is_all_there():
    assert escaped("plain text") == "plain text" and escaped("caf\u00e9 \u2026") == "caf\u00e9 \u2026"
    assert escaped("\x1b[0m\t\u2028") == "\\x1b[0m\\t\\u2028"
    assert "\x1b" not in render("x\x1b[31m", table(("y\x1b[31m", ""), rows=[["z\x1b[31m"]]))


# -- what is not installed ---------------------------------------------------------------------------------------------------------------

WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
{program}
"""
AS_COMMAND = "from bsmodel.command import run\nrun()"


def without(absent, program, *arguments, **environment):
    line = [sys.executable, "-c", WITHOUT.format(absent=set(absent), program=program), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("question", [("--help",), ("--version",), ("plan", "--help"), ("study", "--help"), ("schema", "plan")], ids=" ".join)
def test_help_needs_neither_rich_nor_torch(question):
    found = without(["rich", "torch", "fvcore"], AS_COMMAND, *question)

    assert found.returncode == 0 and found.stdout and found.stderr == ""


def test_a_saved_tape_is_answered_for_without_torch(tape, tmp_path):
    tape.save(tmp_path / "tape")
    for name, *more in (("plan",), ("predict", "--batch", "8"), ("explain", "--batch", "8"), ("compare",)):
        found = without(["torch", "fvcore"], AS_COMMAND, name, tmp_path / "tape", *more)
        assert (found.returncode, found.stderr) == (0, "") and found.stdout


def test_recording_without_torch_names_the_extra(tmp_path):
    line = "recording needs torch, which cannot be imported (No module named 'torch'); pip install \"bsmodel[record]\""
    asked = without(["torch", "fvcore"], AS_COMMAND, "plan", "gpt2", "--gpu", "a100-40gb", "--no-cache")
    bare = without(["torch", "fvcore"], AS_COMMAND, "plan", "gpt2", "--input", "3x4")
    library = without(["torch"], "import bsmodel\ntry: bsmodel.trace\nexcept bsmodel.InvalidInputError as error: print(error)")

    assert (asked.returncode, asked.stdout, asked.stderr) == (2, "", f"bsmodel: {line}\n")
    assert library.stdout == f"{line}\n"
    assert (bare.returncode, bare.stdout) == (2, "") and bare.stderr.count("\n") == 1 and "internal" not in bare.stderr
