# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it: documents that follow their schema, tables that fit the window, second questions from the cache."""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.command.main import _parser
from bsmodel.command.terminal import render, table
from bsmodel.recording import cache_folder

ROOT = Path(__file__).parent.parent
MINE = f"{ROOT}/tests/models.py:attention"
ANSWERS = {
    "plan": (MINE, "--cache", "--samples", "1000", "--epochs", "2"),
    "compare": (MINE, "--cache", "--gpu", "a100-40gb", "--gpu", "t4-16gb", "--precision", "bf16-mixed"),
    "predict": (MINE, "--cache", "--batch", "8"),
    "explain": (MINE, "--cache", "--batch", "8", "--gpu", "a100-40gb", "--gpu", "h100-80gb"),
    "explain by module": (MINE, "--cache", "--batch", "8", "--by", "module"),
    "explain by operator": (MINE, "--cache", "--batch", "8", "--by", "operator"),
    "gpus": (),
    "study": ("--cache", "--model", MINE, "--gpu", "a100-40gb", "--gpu", "t4-16gb", "--precision", "fp32", "--precision", "bf16-mixed"),
}


def asked(capsys, *arguments):
    code = main([*arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("question", ANSWERS)
def test_every_answer_follows_its_published_schema(question, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    command = question.split()[0]
    _, schema = asked(capsys, "schema", command)
    code, answer = asked(capsys, command, *ANSWERS[question], "--json")
    checked = jsonschema.Draft202012Validator(json.loads(schema))

    assert code == 0 and "NaN" not in answer and "Infinity" not in answer
    checked.validate(json.loads(answer))
    assert not checked.is_valid({**json.loads(answer), "command": 3})  # the check can fail


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", MINE, "--batch", "8", "--trace", "one", "--snapshot", "./one"), "--trace and --snapshot both name './one'"),
        (("compare", MINE, "--save", "one", "--html", "one"), "--html and --save both name 'one'"),
        (("trial", MINE, "--html", "one", "--picture", "one"), "--html and --picture both name 'one'"),
        (("plan", MINE, "--gpu", "a100-40gb", "--save", "one", "--emit", "accelerate=one"), "--emit accelerate=one writes 'one', which something else"),
    ],
)
def test_no_file_is_written_twice(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*words]) == 2
    assert capsys.readouterr().err.startswith(f"bsmodel: {said}") and not [*tmp_path.iterdir()]


class Left(io.StringIO):
    """A stream whose reader has left."""

    encoding = "utf-8"

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_verdict_is_the_code_though_whoever_read_it_has_left(monkeypatch):
    asks = ["predict", MINE, "--cache", "--batch", "8", "--gpu", "rtx-3070-8gb"]
    monkeypatch.setattr(sys, "stdout", Left())
    assert main(asks) == 0
    assert main([*asks, "--headroom", "7.2GiB"]) == 1


def test_where_nothing_fits_compare_says_why(capsys):
    code, text = asked(capsys, "compare", MINE, "--cache", "--gpu", "rtx-3070-8gb", "--headroom", "7.2GiB")
    assert code == 1 and "rtx-3070-8gb one sample needs" in text and "micro x accumulation" not in text


@pytest.mark.parametrize("columns", [80, 120, 200])
@pytest.mark.parametrize("question", ["plan", "compare", "predict", "explain", "explain by module", "gpus", "study"])
def test_tables_fit_the_window(question, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, text = asked(capsys, question.split()[0], *ANSWERS[question])

    assert max(map(len, text.splitlines())) <= columns


def test_a_table_too_wide_for_the_window_goes_on_below_and_loses_nothing(monkeypatch):
    rows = [["first", *[f"{column}{row}" * 5 for column in "abcdefgh"]] for row in range(3)]
    columns = [("name", ""), *((heading, "right") for heading in "abcdefgh")]
    monkeypatch.setenv("COLUMNS", "60")
    narrow = render(table(*columns, rows=rows))
    monkeypatch.setenv("COLUMNS", "400")
    wide = render(table(*columns, rows=rows))

    assert len(narrow.split("\n\n")) > 1 and narrow.count("first") == 3 * len(narrow.split("\n\n"))
    assert set(wide.split()) == set(narrow.split())


def test_colour_only_where_it_is_wanted(tape, tmp_path):
    """A terminal shows the verdict in colour; with NO_COLOR, or into a pipe, there are no escape codes."""
    tape.save(tmp_path / "tape.json.gz")
    command = [sys.executable, "-m", "bsmodel", "predict", str(tmp_path / "tape.json.gz"), "--batch", "8", "--gpu", "a100-40gb"]
    seen = {name: in_a_terminal(command, {"TERM": "xterm-256color", **extra}) for name, extra in COLOURS.items()}

    assert "\x1b[32m" in seen["colour"] and "fits, roomy" in seen["colour"]
    assert "\x1b[32m" not in seen["none"] and "fits, roomy" in seen["none"]


COLOURS = {"colour": {}, "none": {"NO_COLOR": "1"}}


def in_a_terminal(command, environment):
    import pty

    reader, writer = pty.openpty()
    running = subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "120", **environment}, cwd=ROOT)
    os.close(writer)
    parts = []
    try:
        while part := os.read(reader, 4096):
            parts.append(part)
    except OSError:  # how a terminal that is gone ends
        pass
    running.wait()
    os.close(reader)
    return b"".join(parts).decode()


def flags():
    """Every flag of every command, with its help."""
    commands = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return [(name, flag) for name, parser in commands.choices.items() for flag in parser._actions if flag.option_strings and flag.dest != "help"]


def test_every_flag_says_what_it_does_and_what_happens_without_it():
    silent = [(name, flag.option_strings) for name, flag in flags() if not flag.help or not re.search(r"default|needed", flag.help)]

    assert len(flags()) > 60 and silent == []


# -- the cache ---------------------------------------------------------------------------------------------------------------------------

TIMED = "import sys; from bsmodel.command import main; code = main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BSMODEL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments):
    return subprocess.run([sys.executable, "-c", TIMED, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_second_question_imports_no_torch_and_has_the_same_answer(cache):
    pytest.importorskip("transformers")
    question = ("gpt2", "--seq-len", "64")
    first, second = run("plan", *question, "--json"), run("plan", *question, "--json")
    other = run("predict", *question, "--batch", "4")

    assert first.returncode == second.returncode == other.returncode == 0 and first.stdout == second.stdout != ""
    assert "recorded gpt2" in first.stderr and second.stderr == other.stderr == "False\n"


def test_a_configuration_is_kept_by_its_content(cache, tmp_path, capsys):
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    fields = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
    peaks = []
    for layers in (2, 2, 4):
        config.write_text(json.dumps({**fields, "num_hidden_layers": layers}))
        peaks.append(json.loads(asked(capsys, "predict", str(config), "--seq-len", "64", "--batch", "4", "--gpu", "a100-40gb", "--json")[1])["gpus"][0])

    assert peaks[0] == peaks[1] != peaks[2]
    assert len(list((cache / "recordings").iterdir())) == 2


def test_ones_own_file_is_kept_only_when_asked(cache, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("from tests.models import attention\n")
    question = ("predict", f"{mine}:attention", "--batch", "8", "--gpu", "a100-40gb")

    assert asked(capsys, *question)[0] == 0 and not cache.exists()
    assert asked(capsys, *question, "--cache")[0] == 0 and len(list((cache / "recordings").iterdir())) == 1


def test_nothing_is_kept_or_looked_up_without_the_cache(cache, capsys):
    pytest.importorskip("transformers")

    assert asked(capsys, "plan", "gpt2", "--seq-len", "64", "--gpu", "a100-40gb", "--no-cache")[0] == 0 and not cache.exists()


def test_a_broken_cache_is_recorded_again(cache, capsys):
    pytest.importorskip("transformers")
    question = ("plan", "gpt2", "--seq-len", "64", "--gpu", "a100-40gb")
    first = asked(capsys, *question)
    for path in cache.rglob("*.*"):
        path.write_bytes(b"hello")

    assert asked(capsys, *question) == first


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BSMODEL_CACHE_DIR", str(tmp_path / "file" / "cache"))

    assert asked(capsys, "plan", "gpt2", "--seq-len", "64", "--gpu", "a100-40gb")[0] == 0


def test_recordings_of_other_code_are_other_recordings(cache, monkeypatch):
    from bsmodel.recording import cache as kept

    gpu, source = bsmodel.Gpu.named("a100-40gb"), bsmodel.Source.of("gpt2", seq_len=64)
    paths = {kept.tape_path(source, {}, gpu.kernel_family), kept.tape_path(source, {"ema": True}, gpu.kernel_family), kept.tape_path(source, {}, (9, 0))}
    monkeypatch.setattr(kept, "versions", lambda: {"torch": "another"})
    paths |= {kept.tape_path(source, {}, gpu.kernel_family), kept.tape_path(bsmodel.Source.of("gpt2", seq_len=65), {}, gpu.kernel_family)}

    assert len(paths) == 5 and all(path.parent == cache_folder() / "recordings" for path in paths)


# -- studies -----------------------------------------------------------------------------------------------------------------------------


def test_a_study_from_a_file_is_that_of_its_flags(tmp_path, capsys):
    file = tmp_path / "study.toml"
    file.write_text(f'workloads = ["{MINE}"]\ntrainings = [{{precision = "fp32"}}, {{precision = "bf16-mixed"}}]\ngpus = ["a100-40gb", "t4-16gb"]\n')
    from_file, from_flags = asked(capsys, "study", str(file), "--json"), asked(capsys, "study", *ANSWERS["study"], "--json")

    assert from_file == from_flags and from_file[0] == 0
    assert asked(capsys, "study", str(file), "--csv")[1].count("\n") == 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("workloads = []", "workloads: list should have at least 1 item"),
        ('gpus = ["a100-40gb"]', "workloads: field required"),
        ('workloads = ["gpt2"]\nworklods = 1', "unknown field 'worklods'; nearest: workloads"),
        ("workloads = [{seq_len = 3}]", "workloads.0 has no name"),
        ('workloads = ["gpt2"]\ntrainings = [{precison = "fp32"}]', "unknown training field 'precison'; nearest: precision"),
        ('workloads = ["gpt2"]\ngpus = ["a100-40g"]', "unknown GPU 'a100-40g'; nearest: a100-40gb"),
        ("hello", "is not TOML"),
    ],
)
def test_a_study_that_cannot_be_read_is_refused_in_one_line(content, reason, tmp_path, capsys):
    file = tmp_path / "study.toml"
    file.write_text(content)

    assert main(["study", str(file)]) == 2
    printed = capsys.readouterr()
    assert reason in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_an_interrupt_is_one_line(tmp_path):
    """Once a recording is under way: the model's own code says that it is."""
    begun, file = tmp_path / "begun", tmp_path / "slow.py"
    file.write_text(
        f"import pathlib, time, torch\nfrom bsmodel import Workload\n\n\ndef model():\n    pathlib.Path({str(begun)!r}).touch()\n    time.sleep(60)\n\n\n"
        "workload = Workload(model, lambda size: torch.zeros(size, 1), lambda model, batch: model(batch).sum())\n"
    )
    question = [sys.executable, "-m", "bsmodel", "plan", f"{file}:workload", "--no-cache"]
    running = subprocess.Popen(question, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not begun.exists():
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(2)
    out, err = running.communicate(timeout=30)

    assert (running.returncode, out) == (130, "") and err.endswith("bsmodel: interrupted\n") and "Traceback" not in err
