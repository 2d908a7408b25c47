# SPDX-License-Identifier: Apache-2.0
"""What trackers hold of a trial, which of them are refused, and that none sends what it is not to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bsmodel.trials import Trial, trial
from tests.test_refusals import line_of
from tests.trials import line

ROOT = Path(__file__).parent.parent


def records(path):
    """What an offline run of wandb holds: protocol buffers in blocks as LevelDB writes its log."""
    from wandb.proto import wandb_internal_pb2

    content, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


TRACKED = """
import os, sys
from tests.trials import line
from bsmodel.trials import trial
asked = {"batches": (8, 16), "steps": 4, "micro_batch": 4, "split": 0.25, "evaluate_every": 2}
trial(line(), **asked, track=("tensorboard", "wandb", "jsonl"), offline=True, out=sys.argv[1])
"""


def test_trackers_hold_what_was_seen(tmp_path):
    """In a process of their own, which has no network to use: a proxy that nobody serves stands before it."""
    pytest.importorskip("wandb")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    away = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | away
    result = subprocess.run([sys.executable, "-c", TRACKED, str(tmp_path / "out")], env=surroundings, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = Trial.load(tmp_path / "out")
    losses = {run.rung.batch: [update.loss for update in run.updates] for run in found.runs}

    assert sorted(path.name for path in tmp_path.iterdir()) in (["home", "out"], ["out"])
    for run in found.runs:
        events = accumulator(str(tmp_path / "out" / "tracked" / f"batch-{run.rung.batch}-seed-0" / "bsmodel-trial"))
        events.Reload()
        assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses[run.rung.batch])
        assert [event.step for event in events.Scalars("validation_loss")] == [2, 4]
        assert {"learning_rate", "samples_per_s", "samples", "seconds"} <= set(events.Tags()["scalars"])
        lines = [json.loads(line) for line in (tmp_path / "out" / "runs" / f"batch-{run.rung.batch}-seed-0.jsonl").read_text().splitlines()]
        assert [line["loss"] for line in lines[:-1]] == losses[run.rung.batch] and lines[-1] == {"status": "finished"}
    tracked = {}
    for path in (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"):
        told = list(records(path))
        settings = {item.key: json.loads(item.value_json) for record in told for item in record.config.update}
        history = [{item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item} for record in told]
        tracked[settings["batch"]] = [float(row["loss"]) for row in history if "loss" in row]
        assert settings["optimizer"] == "sgd" and settings["micro_batch"] == 4
    assert tracked == losses


def test_a_tracker_that_is_unknown_or_does_not_start_is_refused(tmp_path):
    assert line_of(trial, line(), batches=(8, 8), steps=1, track=("tensorbord",)).startswith("unknown tracker 'tensorbord'; nearest: tensorboard")
    (tmp_path / "tracked").write_text("where a folder should be")
    told = line_of(trial, line(), batches=(8, 8), steps=1, track=("tensorboard",), out=tmp_path)
    assert told.startswith("a tracker does not start: ")


@pytest.mark.parametrize("name", ["comet", "mlflow"])
def test_trackers_that_send_whatever_is_said_are_not_offline(name):
    assert line_of(trial, line(), batches=(8, 8), steps=1, track=(name,), offline=True).startswith(f"tracker {name} sends to wherever it is set up for")
