# SPDX-License-Identifier: Apache-2.0
"""Saved tapes: whatever is broken in a file is one line that names the field, and nobody ever sees half a file."""

import gzip
import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.hardware import DEFAULT_GPUS, KINDS
from bsmodel.tape import is_tape, load_all, save_all
from bsmodel.tape.saved import LIMIT_BYTES
from bsmodel.tape.schema import SavedTape
from tests.models import SGD, attention, workload

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def families():
    """The recordings of one workload for two families of kernels."""
    return tuple(bsmodel.trace(workload(), SGD, bsmodel.Gpu.named(name)) for name in ("a100-40gb", "h100-80gb"))


@pytest.fixture(scope="module")
def document(tape, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tape"
    replace(tape, base_lr=0.1, base_batch=256).save(path)
    return gzip.decompress(path.read_bytes())


def line_of(call, *arguments):
    with pytest.raises(bsmodel.InvalidInputError) as refusal:
        call(*arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def changed(document, path, value):
    """The document with another value in one place."""
    whole = json.loads(document)
    place = whole["tapes"][0]
    *parents, last = path
    for part in parents:
        place = place[part]
    if value is _MISSING:
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
    return whole


_MISSING = object()
CORRUPTIONS = [
    (("name",), 3, "name is 3"),
    (("name",), _MISSING, "name is missing"),
    (("nme",), "x", "nme is 'x': extra inputs are not permitted"),
    (("precision",), "fp33", "precision unknown precision 'fp33'; nearest: fp32"),
    (("precision",), "bf16", "recipe.precision is 'fp32'; expected 'bf16'"),
    (("optimizer_family",), "newton", "optimizer_family is 'newton'"),
    (("gpu", "memory_bytes"), -1, "gpu.memory_bytes is -1"),
    (("gpu", "compute_capability"), "nine", "gpu.compute_capability is 'nine'"),
    (("accumulation",), 0, "accumulation is 0"),
    (("accumulation",), True, "accumulation is True"),
    (("accumulation",), 2, "recipe.accumulation is 1; expected 2"),
    (("versions",), {}, "versions has no torch"),
    (("recorded_batches",), [], "recorded_batches is []"),
    (("parameter_count",), 1.5, "parameter_count is 1.5"),
    (("trained_parameter_count",), 1 << 50, "trained_parameter_count is 1125899906842624; expected at most"),
    (("tokens_per_sample",), -4, "tokens_per_sample is -4"),
    (("fixed_bytes", 3), "many", "fixed_bytes.3 is 'many'"),
    (("fixed_bytes", 3), 1e400, "fixed_bytes.3"),
    (("fixed_bytes", 3), 10**26, "fixed_bytes.3 is 100000000000000000000000000"),
    (("fixed_bytes", 3), -(10**6), "per_sample_bytes.3 gives -1000000 + "),
    (("fixed_bytes",), lambda sizes: sizes[:-1], "per_sample_bytes has"),
    (("fixed_bytes",), lambda sizes: [1 << 52] * len(sizes), "fixed_bytes adds up to more than"),
    (("per_sample_bytes", 0), -5, "per_sample_bytes.0 gives"),
    (("per_pair_bytes", 0), -5, "per_pair_bytes.0 gives"),
    (("per_pair_bytes",), lambda sizes: sizes[:-1], "per_pair_bytes has"),
    (("per_pair_bytes",), lambda sizes: [1 << 52] * len(sizes), "per_pair_bytes adds up to more than"),
    (("terms",), [[0, "reduction", [[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]]]], "terms.0 gives 'reduction' 1 + 0 b + 1 b(b-1)/2 for along_rows"),
    (("terms",), [[0, "reduction", [[1, 1, 0], [4, -2, 1], [1, 0, 0], [1, 0, 0]]]], "terms.0 gives 'reduction' 4 + -2 b + 1 b(b-1)/2 for inputs"),
    (("workspaces",), [[0, KINDS[0], [0, -2, 1]]], "workspaces.0 may be 0 + -2 b + 1 b(b-1)/2 bytes larger"),
    (("operators", "index"), lambda index: index[1:], "operators.index has"),
    (("modules", "index", 0), 10**6, "modules.index goes up to 1000000"),
    (("modules", "index", 0), -1, "modules.index.0 is -1"),
    (("categories", "words", 0), "parmeter", "categories.words unknown categories 'parmeter'; nearest: parameter"),
    (("phases", "words", 0), "backwards", "phases.words unknown phases 'backwards'; nearest: backward"),
    (("terms",), [[0, "magic", []]], "terms.0 unknown formula 'magic'"),
    (("terms",), [[0, "reduction", [[1, 1, 0]]]], "terms.0 gives 'reduction' 1 parameters; expected 4"),
    (("terms",), [[10**6, "reduction", [[1, 1, 0]] * 4]], "terms is of allocations 1000000"),
    (("workspaces",), [[0, KINDS[0], [-9, 0, 0]]], "workspaces.0 may be -9 + 0 b bytes larger"),
    (("workspaces",), [[0, "large", [0, 0, 0]]], "workspaces.0 unknown kind 'large'"),
    (("workspaces",), [[0, KINDS[0], [1, 1, 0]], [0, KINDS[0], [1, 1, 0]]], "workspaces is of allocations 0 and below; expected each of the"),
    (("blocks", "micro"), _MISSING, "blocks are accumulate, first"),
    (("blocks", "micro", 0), 10**6, "blocks.micro goes from"),
    (("blocks", "micro", 0), 0.5, "blocks.micro.0 is 0.5"),
    (("blocks", "init", 0), -1, "blocks.init.0 releases allocation 0, which is not there then"),
    (("reached", "step"), _MISSING, "reached is of micro, accumulate; expected micro, accumulate, step"),
    (("reached", "micro"), lambda places: places[1:], "reached.micro has"),
    (("reached", "micro", 0), 10**6, "reached.micro goes up to 1000000; expected numbers of kernels in order, at most the"),
    (("reached", "step", 0), -1, "reached.step.0 is -1"),
    (("operations", "phases", 0), "later", "operations.phases unknown phase 'later'"),
    (("operations", "kinds"), lambda kinds: kinds[1:], "operations.kinds has"),
    (("operations", "fixed", 0), [1.0], "operations.fixed.0 has 1 numbers; expected 8"),
    (("operations", "fixed", 0, 0), math.nan, "operations.fixed.0.0 is nan"),
    (("operations", "per_sample", 0, 4), -1e9, "operations.per_sample.0 gives"),
    (("operations", "per_pair", 0, 4), -1.0, "operations.per_pair.0 gives"),
    (("operations", "per_pair"), lambda rows: rows[1:], "operations.per_pair has"),
    (("recipe", "precison"), "fp32", "recipe is none: unknown training field 'precison'"),
    (("base_lr",), -0.1, "base_lr is -0.1"),
    (("base_lr",), math.inf, "base_lr is inf"),
    (("base_batch",), 0, "base_batch is 0"),
    (("own_step",), 1, "own_step is 1"),
    (("remarks",), "none", "remarks is 'none'"),
]


@pytest.mark.parametrize(("path", "value", "said"), CORRUPTIONS, ids=[f"{'.'.join(map(str, path))} {number}" for number, (path, *_) in enumerate(CORRUPTIONS)])
def test_a_corrupted_field_is_one_line_that_names_it(path, value, said, document, tmp_path):
    file = tmp_path / "tape"
    file.write_bytes(gzip.compress(json.dumps(changed(document, path, value)).encode()))

    assert line_of(bsmodel.Tape.load, file).startswith(f"the tape {str(file)!r}: {said}")


@pytest.mark.parametrize("cut", [0, 1, 2, 9, 100, -1, -9])
def test_a_file_that_is_cut_off_is_one_line(cut, document, tmp_path):
    file, content = tmp_path / "tape", gzip.compress(document)
    file.write_bytes(content[:cut])

    assert str(file) in line_of(bsmodel.Tape.load, file)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"3", b"{}", b"\xff\xfe", b"[" * 10**5, b'{"schema_version": true, "tapes": []}', b'{"schema_version": 7, "tapes": []}']
)
def test_what_is_no_tape_is_one_line(content, tmp_path):
    file = tmp_path / "tape"
    file.write_bytes(gzip.compress(content))

    assert str(file) in line_of(bsmodel.Tape.load, file)
    file.write_bytes(b"\x1f\x8b\x08\x00" + content * 20)
    assert str(file) in line_of(bsmodel.Tape.load, file)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs a system that tells how much memory a process had")
def test_a_small_file_that_becomes_a_large_one_is_not_read_to_its_end(tmp_path):
    file = tmp_path / "tape"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        for _ in range(4 * LIMIT_BYTES // (1 << 26)):
            stream.write(bytes(1 << 26))
    program = (
        "import re, sys, bsmodel\n"
        "try: bsmodel.Tape.load(sys.argv[1])\n"
        "except bsmodel.InvalidInputError as error: print(error)\n"
        "print(1024 * int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]))\n"
    )
    said, peak = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()

    assert said.endswith("holds more than 256 MiB, which no recording does")
    assert int(peak) < 3 * LIMIT_BYTES


def test_the_schema_knows_every_field_of_a_tape():
    assert set(SavedTape.model_fields) == {field.name for field in fields(bsmodel.Tape)}


def test_several_families_are_one_file_that_keeps_everything(families, tmp_path):
    file = tmp_path / "any name"
    save_all([replace(tape, base_lr=0.1, base_batch=256, remarks=("a remark",), options={"seq_len": 64}) for tape in families], file)
    found = load_all(file)

    assert is_tape(file) and not is_tape(tmp_path) and not is_tape(__file__) and not is_tape("gpt2")
    assert [tape.gpu for tape in found] == [tape.gpu for tape in families]
    assert {(tape.base_lr, tape.base_batch, tape.remarks, tape.options["seq_len"]) for tape in found} == {(0.1, 256, ("a remark",), 64)}
    assert [tape.blocks for tape in found] == [tape.blocks for tape in families]
    assert "holds recordings for compute capability 8.0 and 9.0" in line_of(bsmodel.Tape.load, file)


def test_recordings_of_different_things_are_no_file(families, tmp_path):
    other = bsmodel.trace(attention(), SGD, bsmodel.Gpu.named("h100-80gb"))

    assert "name is 'small' in one recording and 'attention' in another" in line_of(save_all, [families[0], other], tmp_path / "tape")
    assert "two recordings are for compute capability 8.6" in line_of(save_all, [families[0], families[0]], tmp_path / "tape")
    assert "there is none" in line_of(save_all, [], tmp_path / "tape")
    assert not list(tmp_path.iterdir())


# -- writing -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_not_replaced(tape, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link to a folder").symlink_to(tmp_path / "folder")
    for name in ("folder", "fifo", "link to a folder"):
        assert "it is there, and no regular file" in line_of(tape.save, tmp_path / name)
    assert "no regular file" in line_of(tape.save, os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and len(list(tmp_path.iterdir())) == 3


def test_a_link_keeps_pointing_at_the_file_it_names(tape, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    tape.save(tmp_path / "link")

    assert (tmp_path / "link").is_symlink() and is_tape(tmp_path / "file")


WRITER = """
import sys, bsmodel
from dataclasses import replace
tape = bsmodel.Tape.load(sys.argv[1])
while True:
    replace(tape, name=sys.argv[3], recipe={}).save(sys.argv[2])
"""


def test_writers_and_a_reader_of_one_file_never_see_half_of_it(tape, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    tape.save(source)
    tape.save(target)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, source, target, name], cwd=ROOT) for name in ("one", "two")]
    seen, reads, end = {tape.name}, 0, time.monotonic() + 20
    while len(seen) < 3 or reads < 200:
        seen.add(bsmodel.Tape.load(target).name)
        reads += 1
        assert time.monotonic() < end
    for writer in writers:
        writer.kill()
        writer.wait()

    assert seen == {tape.name, "one", "two"}


def test_a_command_that_is_told_to_end_leaves_no_part_of_a_file(tape, tmp_path):
    """SIGTERM in the middle of writing: the command cleans up, in one line."""
    program = (
        "import os, signal, sys, bsmodel.files\n"
        "from bsmodel.command import run\n"
        "def replace(self, target): os.kill(os.getpid(), signal.SIGTERM)\n"
        "bsmodel.files.Path.replace = replace\n"
        "run()\n"
    )
    tape.save(tmp_path / "tape")
    command = [sys.executable, "-c", program, "predict", str(tmp_path / "tape"), "--batch", "8", "--gpu", "a100-40gb", "--save", str(tmp_path / "copy")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGTERM, "", "bsmodel: terminated\n")
    assert [path.name for path in tmp_path.iterdir()] == ["tape"]


# -- at the command line -----------------------------------------------------------------------------------------------------------------

MINE = f"{ROOT}/tests/models.py:attention"


def command(capsys, *arguments):
    code = main([*map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def of_attention(tmp_path_factory):
    """What `--save` writes for cards of two families, under a name that says nothing, with recipe and options that are not the default."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "mine.py").write_text("from tests.models import *\ndef work(seq_len=32):\n    return attention()\n")
    file = folder / "anything.at.all"
    question = ["predict", f"{folder}/mine.py:work", "--seq-len", "32", "--precision", "bf16-mixed", "--frozen", "embed", "--batch", "8"]
    assert main([*question, "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--save", str(file)]) == 0
    return file


def test_what_is_saved_is_asked_again_by_any_name(of_attention, capsys):
    code, printed, _ = command(capsys, "plan", of_attention, "--json")
    document = json.loads(printed)

    assert code == 0 and [row["gpu"] for row in document["gpus"]] == list(DEFAULT_GPUS)
    assert document["workload"]["precision"] == "bf16-mixed" and document["notes"] == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--precision", "fp32"), "precision fp32 is asked, and the recording was made with bf16-mixed"),
        (("--optimizer", "sgd"), "optimizer sgd is asked, and the recording was made with adamw"),
        (("--checkpointing",), "checkpointing on is asked, and the recording was made with off"),
        (("--channels-last",), "channels-last on is asked, and the recording was made with off"),
        (("--ema",), "ema on is asked"),
        (("--keep-outputs",), "keep-outputs on is asked"),
        (("--accumulation", "4"), "accumulation 4 is asked, and the recording was made with 1"),
        (("--gradient-clipping", "1"), "gradient-clipping 1.0 is asked, and the recording was made with none"),
        (("--zero-grad", "zeros"), "zero-grad zeros is asked, and the recording was made with none"),
        (("--lora-rank", "8"), "lora-rank 8 is asked, and the recording was made with none"),
        (("--frozen", "head"), "frozen head is asked, and the recording was made with embed"),
        (("--seq-len", "64"), "seq-len 64 is asked, and the recording was made with 32"),
        (("--image-size", "64"), "image-size 64 is asked, and the recording does not say which it was made with"),
        (("--attention", "eager"), "attention eager is asked, and the recording does not say which"),
        (("--input", "3x4"), "input 3x4 is asked, and the recording does not say which"),
        (("--loss", "mse"), "loss mse is asked, and the recording does not say which"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_flag_that_contradicts_a_recording_is_refused(flags, said, of_attention, capsys):
    for name, *more in (("plan",), ("compare",), ("predict", "--batch", "8"), ("explain", "--batch", "8")):
        code, printed, error = command(capsys, name, of_attention, *more, *flags)
        assert (code, printed, error.count("\n")) == (2, "", 1) and said in error


def test_flags_that_agree_with_a_recording_are_answered(of_attention, capsys):
    flags = ("--precision", "bf16-mixed", "--optimizer", "adamw", "--accumulation", "1", "--zero-grad", "none", "--frozen", "embed", "--seq-len", "32")

    assert command(capsys, "predict", of_attention, "--batch", "8", *flags)[:2] == command(capsys, "predict", of_attention, "--batch", "8")[:2]


def test_a_study_of_recordings_answers_only_what_they_are_of(of_attention, capsys):
    question = ("study", "--model", of_attention, "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--gpu", "t4-16gb")
    code, printed, _ = command(capsys, *question, "--precision", "bf16-mixed", "--precision", "fp32", "--json")
    rows = json.loads(printed)["rows"]

    assert code == 0 and [row["status"] for row in rows] == ["plan", "plan", "refused"] + ["refused"] * 3
    assert "precision fp32 is asked, and the recording was made with bf16-mixed" in rows[3]["verdict"] and "trace again" in rows[2]["verdict"]
    assert command(capsys, *question, "--seq-len", "64")[0] == 2


def test_without_a_card_a_recording_is_asked_of_those_it_is_for(families, tmp_path, capsys):
    t4 = bsmodel.trace(workload(), SGD, bsmodel.Gpu.named("t4-16gb"))
    save_all(families[1:], tmp_path / "hopper")
    save_all([t4], tmp_path / "turing")
    hopper, turing = (json.loads(command(capsys, "plan", tmp_path / name, "--json")[1]) for name in ("hopper", "turing"))

    assert [row["gpu"] for row in hopper["gpus"]] == ["h100-80gb"] and "rtx-3070-8gb, rtx-4090-24gb, a100-40gb left out" in hopper["notes"][0]
    assert [row["gpu"] for row in turing["gpus"]] == ["t4-16gb"] and "left out: the recording is for the kernels of compute capability 7.5" in turing["notes"][
        0
    ]
    assert "Note: rtx-3070-8gb, rtx-4090-24gb, a100-40gb left out" in command(capsys, "plan", tmp_path / "hopper")[1].replace("\n", " ")
    assert [card["gpu"] for card in json.loads(command(capsys, "explain", tmp_path / "hopper", "--batch", "8", "--json")[1])["gpus"]] == ["h100-80gb"]


def test_a_card_is_recorded_as_itself_and_not_as_the_one_that_stands_for_its_family(tmp_path, capsys):
    command(capsys, "predict", MINE, "--gpu", "a100-40gb", "--batch", "8", "--save", tmp_path / "tape")

    assert bsmodel.Tape.load(tmp_path / "tape").gpu == bsmodel.Gpu.named("a100-40gb")


def test_the_published_learning_rate_is_kept(tape, tmp_path, capsys):
    replace(tape, base_lr=0.1, base_batch=256).save(tmp_path / "tape")

    assert (
        json.loads(command(capsys, "plan", tmp_path / "tape", "--gpu", "a100-40gb", "--target-batch", "1024", "--json")[1])["gpus"][0]["learning_rate"] == 0.4
    )


def test_answers_name_versions_remarks_and_other_versions(tape, tmp_path, capsys):
    replace(tape, versions={"torch": "2.9.1", "made-up": "3"}, remarks=("the head is not trained.",)).save(tmp_path / "tape")
    asked = (("plan",), ("compare",), ("predict", "--batch", "8"), ("explain", "--batch", "8"), ("explain", "--batch", "8", "--by", "module"))
    for name, *more in (*asked, ("explain", "--batch", "8", "--by", "operator")):
        text = command(capsys, name, tmp_path / "tape", *more, "--gpu", "a100-40gb")[1]
        document = json.loads(command(capsys, name, tmp_path / "tape", *more, "--gpu", "a100-40gb", "--json")[1])
        assert "Recorded with made-up 3, torch 2.9.1.\nNote: the head is not trained.\nNote: recorded with torch 2.9.1, and " in text
        assert document["workload"]["remarks"] == ["the head is not trained."] and "recorded with torch 2.9.1" in document["notes"][0]
    text = command(capsys, "study", "--model", tmp_path / "tape", "--gpu", "a100-40gb")[1]
    assert "Recorded with made-up 3, torch 2.9.1.\nNote: the head is not trained.\nNote: recorded with torch 2.9.1, and " in text


def test_what_is_no_recording_says_so_before_and_where_it_would_be_saved(tmp_path, capsys):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "bomb").write_bytes(gzip.compress(b"hello"))

    assert f"no saved tape: {str(tmp_path / 'text')!r}" in command(capsys, "plan", tmp_path / "text")[2]
    assert "is not a saved tape" in command(capsys, "plan", tmp_path / "bomb")[2]
    assert "cannot read the tape" in command(capsys, "plan", tmp_path / "absent.json.gz")[2]
    code, printed, error = command(capsys, "plan", MINE, "--save", tmp_path)
    assert (code, printed) == (2, "") and error == f"bsmodel: cannot write the tape {str(tmp_path)!r}: it is there, and no regular file\n"  # nothing recorded
