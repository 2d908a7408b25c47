# SPDX-License-Identifier: Apache-2.0
"""Trials as they are run: ladders of small workloads on a CPU, what they leave behind, how they end and go on."""

import contextlib
import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bsmodel
from bsmodel.planning import power_of_two_at_most
from bsmodel.trials import Run, Rung, Trial, trial
from bsmodel.trials.asking import Options, _batches
from bsmodel.trials.ladder import Course, Rate, rungs
from bsmodel.trials.measured import rows_of
from tests.test_refusals import line_of
from tests.trials import DIGITS, PERCEPTRON, REVERSING, SPELLING, buffered, half_square, line, line_data

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _unswept():
    """What there is now is not gone through whenever a run lets go of its memory: that takes longer than the runs."""
    gc.freeze()
    yield
    gc.unfreeze()


def without_seconds(found):
    """All that a trial has seen but the time it took."""
    return [
        (run.rung, run.seed, run.status, [{name: value for name, value in vars(update).items() if name != "seconds"} for update in run.updates])
        for run in found.runs
    ]


# -- ladders -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workload", "steps", "micro_batch", "share"), [(DIGITS, 60, 16, 0.9), (SPELLING, 25, 8, 0.8), (REVERSING, 40, 16, 0.8)])
def test_a_ladder_is_climbed_and_losses_fall(workload, steps, micro_batch, share):
    pytest.importorskip("sklearn")
    watched = []
    found = trial(workload, batches=(16, 64), steps=steps, micro_batch=micro_batch, watch=lambda rung, seed, update: watched.append(update))

    assert [row.rung.batch for row in found.rows] == [16, 32, 64]
    assert [row.rung.accumulation for row in found.rows] == [batch // micro_batch for batch in (16, 32, 64)]
    assert [update for run in found.runs for update in run.updates] == watched
    for row, run in zip(found.rows, found.runs, strict=True):
        assert row.status == "finished" and len(run.updates) == steps and run.updates[-1].samples == steps * row.rung.batch
        assert row.step_seconds > 0 and row.samples_per_s > 0 and (row.allocated_bytes is None) == (not torch.cuda.is_available())
        assert (row.noise_scale is None) == (row.rung.accumulation == 1)
    first, last = found.runs[-1].updates[0].loss, found.rows[-1].final_loss.mean
    assert last < share * first
    assert found.rows[-1].rung.learning_rate > found.rows[0].rung.learning_rate
    assert any("no CUDA device" in remark for remark in found.remarks) == (not torch.cuda.is_available())


def test_as_many_samples_are_fewer_steps_of_larger_batches():
    found = trial(line(), batches=(8, 32), samples=100, warmup=2)

    assert [len(run.updates) for run in found.runs] == [13, 7, 4]
    assert [update.learning_rate / found.runs[0].rung.learning_rate for update in found.runs[0].updates[:3]] == [0.5, 1, 1]


def test_without_data_the_workloads_own_example_is_taken_and_that_is_said():
    found = trial(line(data=None), batches=(8, 8), steps=2)

    assert found.question["data"] == "synthetic" and any("losses say nothing of learning" in remark for remark in found.remarks)


def test_steps_to_a_loss_follow_the_law_and_the_recommended_batch_is_worth_having():
    """On digits, within the spread of seeds, over batches of 16 to 256; above, where the rate grows as the batch, they do not fall as the law says."""
    pytest.importorskip("sklearn")
    found = trial(PERCEPTRON, batches=(16, 256), steps=700, seeds=4, target_loss=0.5, warmup=10)
    measured = {row.rung.batch: row.steps_to_target for row in found.rows}
    seconds = {row.rung.batch: row.steps_to_target.mean * row.step_seconds for row in found.rows}

    assert list(measured) == [16, 32, 64, 128, 256] and all(row.seeds_at_target == 4 for row in found.rows)
    for batch, steps in measured.items():
        assert steps.low <= float(found.law.steps(batch)) <= steps.high
    assert 256 < found.law.low <= found.law.critical_batch <= found.law.high
    assert seconds[found.recommended.batch] <= 2 * min(seconds.values())


def test_for_another_card_seconds_and_money_are_predicted_at_the_batches_that_can_be_split(a100):
    pytest.importorskip("sklearn")
    found = trial(PERCEPTRON, batches=(16, 128), steps=200, target_loss=1.5)
    fitted = bsmodel.fit(bsmodel.trace(PERCEPTRON, PERCEPTRON.training, a100), a100)
    one, several = (found.recommended_on(fitted, devices, bsmodel.Price(2.0, "here")) for devices in (1, 32))

    assert [choice.batch for choice in one.choices] == [16, 32, 64, 128] and [choice.batch for choice in several.choices] == [32, 64, 128]
    assert one.by == "money, seconds a step predicted for a100-40gb"
    assert all(choice.usd == pytest.approx(choice.seconds / 3600 * 2.0) for choice in one.choices)
    assert "less than one sample for each of 256 devices" in line_of(found.recommended_on, fitted, 256)


def test_rungs_that_are_predicted_not_to_fit_are_left_out_and_what_is_left_out_is_said(tape, a100):
    """Also where micro-batches are given, below the largest: gradients that are kept between them take more."""
    fitted = bsmodel.fit(tape, a100)
    least = power_of_two_at_most(fitted.batch)
    roomier = replace(fitted, batch=8 * fitted.batch)  # as if more fitted than does
    ladder = rungs([least // 2, 8 * least], bsmodel.Training(optimizer="sgd"), Rate(0.1, 32), Course(1), micro_batch=4 * least, fitted=roomier)

    assert [rung.batch for rung in ladder.rungs] == [least // 2]
    assert f"batch {8 * least} is left out: a100-40gb has no room for 2 micro-batches of {4 * least}, as is predicted" in ladder.remarks
    said = line_of(_batches, Options(batches=(2 * fitted.batch, 4 * fitted.batch)), fitted, 1)
    assert said.startswith("there is no batch to try; ") and f"a100-40gb has room for {fitted.batch} at once" in said


# -- interrupted -------------------------------------------------------------------------------------------------------------------------


ASKED = {"batches": (16, 32), "steps": 6, "seeds": 2, "micro_batch": 8, "evaluate_every": 2, "split": 0.1}


class InterruptionError(Exception):
    pass


def test_an_interrupted_trial_goes_on_to_the_same_rows(tmp_path):
    """To the bit, dropout and all; runs that were over are not run again."""
    whole, steps = trial(REVERSING, **ASKED), []

    def cut(rung, seed, update):
        steps.append((rung.batch, seed))
        if len(steps) == 15:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        trial(REVERSING, **ASKED, out=tmp_path, watch=cut)
    assert len(Trial.load(tmp_path).runs) == 2
    torch.manual_seed(1234)
    again = []
    found = trial(REVERSING, **ASKED, out=tmp_path, watch=lambda rung, seed, update: again.append((rung.batch, seed)))

    assert without_seconds(found) == without_seconds(whole)
    assert set(again) == {(32, 0), (32, 1)} and len(again) == 12
    assert trial(REVERSING, **ASKED, out=tmp_path, watch=cut) == found  # over: nothing is run


KILLED = """
import os, signal, sys
from tests.trials import REVERSING
from tests.test_trial import ASKED
from bsmodel.trials import trial
seen = []
def watch(rung, seed, update):
    seen.append(update)
    if len(seen) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
trial(REVERSING, **ASKED, out=sys.argv[1], watch=watch)
"""


def test_a_killed_trial_goes_on_to_the_same_rows(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    left = [line for path in (tmp_path / "runs").iterdir() for line in path.read_text().splitlines()]

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(left) == 10  # of two runs, and the first's end
    assert without_seconds(trial(REVERSING, **ASKED, out=tmp_path)) == without_seconds(trial(REVERSING, **ASKED))


STEP = '{"step": 1, "samples": 8, "seconds": 0.1, "loss": 1.0, "learning_rate": 0.1}'


@pytest.mark.parametrize("left", ["", STEP[:20], STEP, STEP + "\n", "7\n", '"status"\n', STEP + "\n" + '{"status": "fini'])
def test_what_is_no_whole_run_is_run_again(tmp_path, left):
    asked = {"batches": (8, 8), "steps": 3, "out": tmp_path}
    found = trial(line(), **asked)
    path = tmp_path / "runs" / "batch-8-seed-0.jsonl"
    path.write_text(left)

    assert Trial.load(tmp_path).runs == ()
    assert without_seconds(trial(line(), **asked)) == without_seconds(found)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"base_lr": 0.2, "base_batch": 32}, "rungs.0.learning_rate is 0.025 there, and 0.05 here"),
        ({"steps": 4}, "rungs.0.steps is 3 there, and 4 here"),
        ({"batches": (8, 16)}, "rungs is [{'batch': 8"),
        ({"seeds": 2}, "seeds is [0] there, and [0, 1] here"),
        ({"target_loss": 0.1}, "target_loss is None there, and 0.1 here"),
        ({"training": bsmodel.Training(optimizer="sgd", gradient_clipping=1.0)}, "recipe.gradient_clipping is None there, and 1.0 here"),
        ({"split": 0.5}, "data is 'TensorDataset, 256 samples' there, and 'TensorDataset, 128 samples and 128 for validation' here"),
    ],
)
def test_a_folder_with_another_question_is_refused_by_the_field(tmp_path, change, field):
    asked = {"batches": (8, 8), "steps": 3, "out": tmp_path}
    trial(line(), **asked)

    assert line_of(trial, line(), **{**asked, **change}).startswith(f"{str(tmp_path)!r} holds another trial: {field}")


def test_options_of_a_workload_are_part_of_the_question(tmp_path):
    """Runs by another attention, at another length or of another input are others."""
    pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}))
    asked = {"batches": (2, 2), "steps": 1, "base_lr": 0.1, "out": tmp_path / "out"}
    eager, sdpa = (bsmodel.Workload.named(str(tmp_path), seq_len=8, attention=attention) for attention in ("eager", "sdpa"))
    found = trial(eager, **asked)

    assert found.question["options"] == {"attention": "eager", "seq_len": 8} and trial(eager, **asked) == found
    assert "options.attention is 'eager' there, and 'sdpa' here" in line_of(trial, sdpa, **asked)
    assert "options" not in Trial.load(ROOT / "benchmarks" / "results" / "digits-trial").question


def test_numbers_are_taken_as_numpy_and_floats_have_them(tmp_path):
    asked = {"batches": (8, 8), "steps": 2, "split": 0.1, "out": tmp_path}
    plain = trial(line(), **asked, seeds=2, evaluate_every=1, target_loss=-2.0)

    assert trial(line(), **asked, seeds=2.0, evaluate_every=np.int64(1), target_loss=np.float32(-2)) == plain


def test_each_run_keeps_the_environment_it_ran_in():
    """A trial may go on on another day, with another driver; runs of older versions did not keep theirs."""
    rung = Rung(8, 8, 1, 1, 0.1, 1, 0, 1, 1, 0.1)
    old, new = (Run(rung, seed, "finished", (), 1, 1, kept) for seed, kept in ((0, None), (1, {"gpu": "a100-40gb", "driver": "then"})))
    rows = rows_of([old, new], "line", "fp32 sgd", {"gpu": "a100-40gb", "driver": "now"})

    assert [row["environment"]["driver"] for row in rows] == ["now", "then"]


def test_folders_without_a_trial_are_refused(tmp_path):
    assert "holds no trial" in line_of(Trial.load, tmp_path)
    (tmp_path / "trial.json").write_text('{"schema_version": 0}')
    assert "holds a trial of another version than 1" in line_of(Trial.load, tmp_path)
    (tmp_path / "file").write_text("")
    recipe = {"precision": "fp32", "optimizer": "sgd"}
    kept = {"workload": "line", "device": "cpu", "recipe": recipe, "data": "synthetic", "seeds": [0], "target_loss": None, "remarks": []}
    for question, said in (({}, "workload: Field required"), (kept | {"rungs": [{"batch": "many"}]}, "rungs.0.batch: Input should be a valid integer")):
        (tmp_path / "trial.json").write_text(json.dumps({"schema_version": 1, **question}))
        assert said in line_of(Trial.load, tmp_path) and "expected what bsmodel trial --out wrote" in line_of(Trial.load, tmp_path)
    (tmp_path / "trial.json").unlink()
    assert "cannot write" in line_of(trial, line(), batches=(8, 8), steps=1, out=tmp_path / "file")


# -- how runs end ------------------------------------------------------------------------------------------------------------------------


def test_a_run_is_over_once_it_is_at_the_target():
    found = trial(line(), batches=(16, 32), steps=200, target_loss=0.3, base_lr=0.3, base_batch=32)

    assert [run.status for run in found.runs] == ["reached", "reached"]
    assert [row.steps_to_target.mean for row in found.rows] == [len(run.updates) for run in found.runs]
    assert found.law is not None and found.recommended is not None


def test_with_validation_its_loss_alone_decides():
    """A low loss in training is no target reached before there is one in validation."""
    other = line_data(64)
    far = [(inputs, target + 3) for inputs, target in (other[place] for place in range(64))]
    found = trial(line(), validation=far, batches=(32, 32), steps=30, target_loss=1.0, evaluate_every=15)

    assert found.runs[0].status == "finished" and found.rows[0].seeds_at_target == 0
    assert [update.step for update in found.runs[0].updates if update.validation_loss is not None] == [15, 30]


def test_patience_ends_what_does_not_get_better():
    """The rate is so high for so few samples that validation soon rises."""
    backwards = [(inputs, -target) for inputs, target in (line_data(64)[place] for place in range(64))]
    found = trial(line(), validation=backwards, batches=(32, 32), steps=50, evaluate_every=2, patience=3)

    assert found.runs[0].status == "stopped" and found.runs[0].updates[-1].step == 8  # the first is the lowest, and three more
    assert line_of(trial, line(), batches=(8, 8), steps=1, patience=2).startswith("patience waits for a lower loss in validation")


def test_a_run_whose_loss_is_no_number_is_over_and_its_file_is_json(tmp_path):
    found = trial(line(), batches=(16, 32), steps=400, base_lr=50.0, base_batch=16, target_loss=-1.0, warmup=0, out=tmp_path)
    texts = [(tmp_path / "runs" / f"batch-{batch}-seed-0.jsonl").read_text() for batch in (16, 32)]

    assert [run.status for run in found.runs] == ["diverged", "diverged"]
    assert math.isnan(found.runs[0].updates[-1].loss) and "NaN" not in texts[0] + texts[1] and "Infinity" not in texts[0] + texts[1]
    assert json.loads(texts[0].splitlines()[-2])["loss"] is None
    assert all(row.final_loss is None and row.loss_at_samples is None and row.steps_to_target is None for row in found.rows)
    assert found.recommended is None and found.law is None


def too_large(model, batch):
    """The memory is used up above 16 samples, as a device says it."""
    if len(batch[0]) > 16:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return half_square(model, batch)


def test_running_out_of_memory_is_a_row_and_not_the_end():
    found = trial(line(loss=too_large), batches=(8, 32), steps=3)

    assert [(run.rung.batch, run.status, len(run.updates)) for run in found.runs] == [(8, "finished", 3), (16, "finished", 3), (32, "out of memory", 0)]
    assert found.rows[-1].final_loss is None and found.rows[-1].step_seconds is None
    assert found.rows[0].loss_at_samples is not None

    def broken(model, batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        trial(line(loss=broken), batches=(8, 8), steps=1)


def test_accelerators_of_the_caller_are_as_they_were():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    with contextlib.ExitStack() as after:
        after.callback(AcceleratorState._reset_state)
        own = Accelerator(gradient_accumulation_steps=4)
        trial(line(), bsmodel.Training(optimizer="sgd", precision="bf16-mixed"), batches=(8, 8), steps=1, micro_batch=4)
        assert own.gradient_accumulation_steps == GradientState().num_steps == 4
        assert own.mixed_precision == "no"


# -- refusals ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "asked", "reason"),
    [
        ({"base_lr": None}, {}, "no learning rate is known for line; give one that works and its batch"),
        ({}, {"training": bsmodel.Training(optimizer="adam")}, "no learning rate is known for line with adam; give one"),
        ({}, {"batches": None}, "batches are not given, and without a CUDA device nothing says what fits; give the smallest and the largest"),
        ({}, {"effective_batches": (8, 16)}, "batches and effective_batches are both given; give micro-batches, or samples of an optimizer step"),
        ({}, {"batches": (16, 8)}, "batches are 16:8; expected the smaller one first"),
        ({}, {"steps": 3, "samples": 30}, "steps and samples are both given; give one"),
        ({}, {"base_lr": math.nan}, "base learning rate is nan; expected a finite number above 0"),
        ({}, {"evaluate_every": 0}, "evaluate_every is 0; expected a whole number of at least 1"),
        ({}, {"training": bsmodel.Training(optimizer="sgd", ema=True)}, "a trial keeps no average of the weights; leave ema out of the recipe"),
        ({"loss": None, "step": lambda model, optimizer, batch: None}, {}, "line has a step of its own, which a trial cannot split into micro-batches"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="without a CUDA device")
def test_what_cannot_be_run_is_refused(changes, asked, reason):
    assert line_of(trial, line(**changes), **{"batches": (8, 8), "steps": 1, **asked}).startswith(reason)


# -- several processes -------------------------------------------------------------------------------------------------------------------


SPLIT = {"steps": 4, "split": 0.06, "evaluate_every": 2, "micro_batch": 4}
TOGETHER = """
import sys
from bsmodel.command import main
from tests.test_trial import SPLIT
from tests.trials import buffered
from bsmodel.trials import trial
written = []
found = trial(buffered(), batches=(8, 16), **SPLIT, track=("tensorboard",), out=sys.argv[1], watch=lambda *seen: written.append(seen))
nowhere = trial(buffered(), batches=(8, 8), **SPLIT)
print(f"RUNS {len(found.runs)} {len(nowhere.runs)} {len(written)}", flush=True)
digits = f"{sys.argv[2]}/benchmarks/digits.py:workload"
for words in (["--steps", "1"], ["--lr-range", "1e-3:1e-2", "--steps", "10"]):
    assert main(["trial", digits, "--batches", "8", *words]) == 0
"""


def test_two_processes_see_what_one_sees(tmp_path):
    """Validation in an odd number of batches, by a model whose buffers are sent along in forward: nothing waits for ever."""
    pytest.importorskip("sklearn")
    (tmp_path / "together.py").write_text(TOGETHER)
    script = [str(tmp_path / "together.py"), str(tmp_path / "out"), str(ROOT)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(launch, env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    two, one = Trial.load(tmp_path / "out"), trial(buffered(), batches=(16, 32), **SPLIT)

    assert sorted(re.findall(r"RUNS 2 1 \d", result.stdout)) == ["RUNS 2 1 0", "RUNS 2 1 8"]  # two write to one stream, each its words at once
    assert result.stdout.count("digits: fp32, sgd; ") == 2 and "8 x 1 x 2" in result.stdout  # of two processes one answers, for each command
    assert "sgd; 16 samples a step, 10 steps" in result.stdout  # eight on each of them
    assert [(run.rung.batch, run.rung.devices, run.rung.micro_batch, run.rung.accumulation) for run in two.runs] == [(16, 2, 4, 2), (32, 2, 4, 4)]
    for name in ("loss", "validation_loss", "micro_square", "accumulated_square", "learning_rate", "samples"):
        for mine, theirs in zip(one.runs, two.runs, strict=True):
            expected = [getattr(update, name) for update in mine.updates]
            assert [getattr(update, name) for update in theirs.updates] == [None if value is None else pytest.approx(value, rel=1e-5) for value in expected]
