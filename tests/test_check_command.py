# SPDX-License-Identifier: Apache-2.0
"""`bsmodel check` as it is called: exit codes, lines, documents, and what is refused before any work."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

import bsmodel
from bsmodel import Baseline
from bsmodel.command import main

SMALL = f"{Path(__file__).parent}/models.py:attention"


@pytest.fixture(scope="module")
def found(tape, a100):
    return bsmodel.fit(tape, a100)


@pytest.fixture(scope="module")
def baseline(found):
    return Baseline.of(found, 64)


def _with(baseline, **figures):
    """The same question with other figures."""
    return baseline.model_copy(update=figures)


@pytest.fixture
def saved(tape, tmp_path):
    path = tmp_path / "tape"
    tape.save(path)
    return str(path)


def asked(capsys, *arguments):
    try:
        code = main(["check", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_passes_or_fails_in_one_line(saved, found, capsys):
    fits = asked(capsys, saved, "--gpu", "a100-40gb", "--require-batch", found.batch)
    fails = asked(capsys, saved, "--gpu", "a100-40gb", "--require-batch", found.batch + 1)

    counted = "Not counted: workspace and reserve of cuDNN's batch norm\n"
    assert fits == (0, bsmodel.check(found, require_batch=found.batch).line + f"\n{counted}", "")
    assert fails[0] == 1 and fails[1].startswith("FAILS: ") and fails[1].count("\n") == 2


def test_a_saved_baseline_is_the_same_whatever_says_its_batch(saved, found, tmp_path, capsys):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    first = asked(capsys, saved, "--gpu", "a100-40gb", "--batch", 64, "--save-baseline", one)
    second = asked(capsys, saved, "--gpu", "a100-40gb", "--require-batch", 64, "--save-baseline", two)

    assert first[0] == second[0] == 0 and one.read_bytes() == two.read_bytes() and Baseline.load(one) == Baseline.of(found, 64)
    assert first[1].startswith("saved: small at a micro-batch of 64 on a100-40gb") and second[1].startswith("fits: ") and "\nsaved: " in second[1]
    assert asked(capsys, saved, "--gpu", "A100-40GB", "--against", one, "--allow", "0")[0] == 0
    both = asked(capsys, saved, "--gpu", "a100-40gb", "--against", one, "--require-batch", found.batch + 1)
    assert both[0] == 1 and both[1].startswith("FAILS: small ") and "as before" in both[1]


def test_a_worse_training_fails_and_names_modules(saved, baseline, tmp_path, capsys):
    path = tmp_path / "baseline.json"
    _with(baseline, allocated_bytes=1, by_module={name: size // 2 for name, size in baseline.by_module.items()}).save(path)
    code, text, _ = asked(capsys, saved, "--gpu", "a100-40gb", "--against", path)

    assert code == 1 and text.startswith("FAILS: ") and "\n  5: " in text
    assert asked(capsys, saved, "--gpu", "a100-40gb", "--against", path, "--allow", "memory=1e15%")[0] == 0


def test_a_training_that_does_not_fit_is_not_saved(saved, found, tmp_path, capsys):
    path, beyond = tmp_path / "beyond.json", found.batch + 1
    asking = (saved, "--gpu", "a100-40gb", "--save-baseline", path)
    alone, required = asked(capsys, *asking, "--batch", beyond), asked(capsys, *asking, "--require-batch", beyond)

    assert alone[0] == 2 and "does not train at a micro-batch of" in str(alone)
    assert required[0] == 1 and "FAILS: " in str(required) and "no baseline is written of a training that fails" in str(required)
    assert not path.exists()


@pytest.mark.parametrize("more", [(), ("--against",), ("--save-baseline",)])
def test_a_document_follows_its_published_schema(more, saved, baseline, tmp_path, capsys):
    path = tmp_path / "baseline.json"
    baseline.save(path)
    code, text, _ = asked(capsys, saved, "--gpu", "a100-40gb", "--require-batch", 64, *more, *([path] if more else []), "--json")
    main(["schema", "check"])
    schema, document = json.loads(capsys.readouterr().out), json.loads(text)

    jsonschema.Draft202012Validator(schema).validate(document)
    assert code == 0 and document["passes"] and document["line"].startswith("fits: ")
    assert (document["verdict"]["before"] is not None) == ("--against" in more) and (document["saved"] is not None) == ("--save-baseline" in more)


REFUSED = {
    "nothing is to be checked": ("gpt2", "--gpu", "a100-40gb"),
    "a check is of one GPU, and none is given": ("gpt2", "--require-batch", 8),
    "a check is of one GPU, and a100-40gb, t4-16gb is given": ("gpt2", "--gpu", "a100-40gb", "--gpu", "t4-16gb", "--require-batch", 8),
    "give one of them": ("gpt2", "--gpu", "a100-40gb", "--against", "FILE", "--save-baseline", "FILE"),
    "--allow is for --against FILE": ("gpt2", "--gpu", "a100-40gb", "--require-batch", 8, "--allow", "1%"),
    "--batch is for --against": ("gpt2", "--gpu", "a100-40gb", "--require-batch", 8, "--batch", 8),
    "give --batch N": ("gpt2", "--gpu", "a100-40gb", "--save-baseline", "OTHER"),
    "cannot write the baseline": ("gpt2", "--gpu", "a100-40gb", "--batch", 8, "--save-baseline", "no/such/folder.json"),
    "write it with --save-baseline": ("gpt2", "--gpu", "a100-40gb", "--against", "MISSING"),
    "unknown GPU 'a100'": ("gpt2", "--gpu", "a100x", "--require-batch", 8),
    "--allow: allowance '1' may be meant": ("gpt2", "--gpu", "a100-40gb", "--against", "FILE", "--allow", "1"),
    "gpu 'a100-40gb', and 't4-16gb'": ("gpt2", "--gpu", "t4-16gb", "--against", "FILE"),
    "devices 1, and 4": ("gpt2", "--gpu", "a100-40gb", "--devices", 4, "--against", "FILE"),
    "batch 64, and 32": ("gpt2", "--gpu", "a100-40gb", "--batch", 32, "--against", "FILE"),
    "seq-len none, and 128": ("gpt2", "--gpu", "a100-40gb", "--seq-len", 128, "--against", "FILE"),
    "precision 'fp32', and 'bf16-mixed'": ("gpt2", "--gpu", "a100-40gb", "--precision", "bf16-mixed", "--against", "FILE"),
    "optimizer 'sgd-momentum', and 'adamw'": ("gpt2", "--gpu", "a100-40gb", "--optimizer", "adamw", "--against", "FILE"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_checked_is_one_line_before_the_work(said, baseline, tmp_path, capsys, monkeypatch):
    baseline.save(tmp_path / "FILE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bsmodel.command.arguments.tapes_for", lambda *_: pytest.fail("it began to work"))
    code, out, line = asked(capsys, *REFUSED[said])

    assert (code, out, line.count("\n")) == (2, "", 1) and said.removesuffix("'") in line
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_names_of_users_are_text(tape, a100, tmp_path, capsys):
    evil = replace(tape, name="a\n::error::b\x1b[31m", modules=tuple(f"{name}\n::x::" for name in tape.modules))
    evil.save(tmp_path / "tape")
    _with(Baseline.of(bsmodel.fit(evil, a100), 8), allocated_bytes=1, by_module={}).save(tmp_path / "baseline.json")
    _, text, _ = asked(capsys, tmp_path / "tape", "--gpu", "a100-40gb", "--against", tmp_path / "baseline.json")

    assert "\x1b" not in text and all(not line.lstrip().startswith("::") for line in text.splitlines())


def test_a_workload_of_ones_own_is_checked(capsys):
    code, text, _ = asked(capsys, SMALL, "--cache", "--gpu", "rtx-3070-8gb", "--require-batch", 512)

    assert code == 0 and text.startswith("fits: attention trains at a micro-batch of 512 on rtx-3070-8gb (largest ")
