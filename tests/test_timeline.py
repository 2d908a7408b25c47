# SPDX-License-Identifier: Apache-2.0
"""A step drawn event by event: as long as `step_time` says, each kernel as often as it runs, one after the other, in a format that viewers open."""

import collections
import dataclasses
import gzip
import itertools
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import Parallel, Training
from bsmodel.command import main
from bsmodel.memory import on_devices
from bsmodel.tape import Collective, Operations, Polynomial
from bsmodel.timing.schedule import Pass, waited
from bsmodel.timing.timeline import drawn
from tests import models
from tests.test_collectives import schedules
from tests.test_refusals import line_of

MINE = f"{Path(__file__).parent}/models.py:attention"
HOST, DEVICE = "host launches", "compute stream"
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
RECIPES = {
    "one": {"precision": "bf16-mixed"},
    "checkpointing": {"checkpointing": True, "gradient_clipping": 1.0},
    "reducer": {"parallel": Parallel(kind="ddp", devices=8)},
    "last micro-step alone sums": {"parallel": Parallel(kind="ddp", devices=8, sync_each_micro_step=False)},
    "shards": {"parallel": Parallel(kind="fsdp2", devices=8)},
    "shards, the last sums": {"parallel": Parallel(kind="fsdp2", devices=8, sync_each_micro_step=False)},
    "states": {"parallel": Parallel(kind="zero1", devices=8)},
    "two kinds of groups": {"parallel": Parallel(kind="hsdp", devices=16)},
}
# From "Trace Event Format" (Google): complete events, metadata, and what JSON Object Format has beside them.
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "traceEvents": {"type": "array", "items": {"oneOf": [{"$ref": "#/$defs/complete"}, {"$ref": "#/$defs/metadata"}]}},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
    },
    "additionalProperties": False,
    "$defs": {
        "complete": {
            "type": "object",
            "required": ["ph", "name", "cat", "pid", "tid", "ts", "dur"],
            "properties": {
                "ph": {"const": "X"},
                "name": {"type": "string", "minLength": 1},
                "cat": {"type": "string"},
                "pid": {"type": "integer"},
                "tid": {"type": "integer"},
                "ts": {"type": "number", "minimum": 0},
                "dur": {"type": "number", "minimum": 0},
                "args": {"type": "object"},
            },
            "additionalProperties": False,
        },
        "metadata": {
            "type": "object",
            "required": ["ph", "name", "pid", "tid", "args"],
            "properties": {
                "ph": {"const": "M"},
                "name": {"enum": ["process_name", "process_labels", "process_sort_index", "thread_name", "thread_sort_index"]},
                "pid": {"type": "integer"},
                "tid": {"type": "integer"},
                "args": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "sort_index": {"type": "integer"}},
                    "minProperties": 1,
                    "additionalProperties": False,
                },
            },
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def recordings(a100):
    return {name: bsmodel.trace(models.attention(), Training(**recipe), a100) for name, recipe in RECIPES.items()}


def of(timeline, track):
    return [event for event in timeline.events if event.track == track]


def require_drawn_as_timed(tape, gpu, batch, accumulation=None):
    """As long as `step_time` says, in order, nothing beside itself on one track, nothing after the end; returns both."""
    found, step = bsmodel.timeline(tape, gpu, batch, accumulation), bsmodel.step_time(tape, gpu, batch, accumulation)
    starts = [event.start_seconds for event in found.events]
    assert found.seconds == pytest.approx(step.seconds, rel=1e-9) and (found.batch, found.accumulation) == (step.batch, step.accumulation)
    assert max(event.end_seconds for event in found.events) == pytest.approx(found.seconds, rel=1e-9)
    assert starts == sorted(starts) and starts[0] == 0 and min(event.seconds for event in found.events) >= 0
    for track in found.tracks:
        assert all(one.end_seconds <= other.start_seconds + 1e-12 * found.seconds for one, other in itertools.pairwise(of(found, track))), track
    return found, step


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (1, 3), (700, 2), (20_000, 4)])
def test_a_timeline_is_as_long_as_the_step(recordings, a100, recipe, batch, accumulation):
    """Whoever is slower, the host (of few samples) or the device (of many)."""
    found, step = require_drawn_as_timed(recordings[recipe], a100, batch, accumulation)
    said = [event for event in found.events if event.track not in (HOST, DEVICE)]
    assert sum(event.seconds for event in of(found, HOST)) == pytest.approx(step.host_seconds)
    assert step.communication_seconds * (1 - 1e-9) <= sum(event.seconds for event in said)
    assert sum(event.flops for event in found.events if event.phase in ("forward", "backward")) == pytest.approx(step.flops)
    assert bool(said) == (step.communication_seconds > 0) and step.bound == ("host" if batch < 20_000 else "device")


@given(batch=st.integers(1, 50_000), accumulation=st.integers(1, 4), devices=st.sampled_from([1, 2, 8, 64]))
def test_at_any_batch(recordings, a100, batch, accumulation, devices):
    require_drawn_as_timed(on_devices(recordings["one"], devices), a100, batch, accumulation)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("devices", [1, 4])
def test_a_configuration_of_transformers(config, a100, devices):
    pytest.importorskip("transformers")
    workload = bsmodel.Workload.named(config(LLAMA), seq_len=64)
    shared = {"parallel": Parallel(kind="fsdp2", devices=devices)} if devices > 1 else {}
    found, _ = require_drawn_as_timed(bsmodel.trace(workload, Training(precision="bf16-mixed", **shared), a100), a100, 16, 2)
    assert any(event.module.endswith("layers.1.mlp.down_proj") and event.phase == "backward" and event.flops > 0 for event in of(found, DEVICE))


@pytest.mark.parametrize("recipe", ["one", "checkpointing", "last micro-step alone sums", "shards"])
def test_each_kernel_is_there_as_often_as_it_runs(recordings, a100, recipe):
    tape, times = recordings[recipe], 3
    often = {"gradient": 1, "accumulation": times - 1, "step": 1}
    expected = collections.Counter()
    for words in zip(tape.operations.operators, tape.operations.modules, tape.operations.phases, strict=True):
        expected[words] += often.get(words[2], times)
    found = bsmodel.timeline(tape, a100, 8, times)
    for track in (HOST, DEVICE):
        assert collections.Counter((event.name, event.module, event.phase) for event in of(found, track)) == +expected
    alike = [[(event.name, event.module) for event in of(found, DEVICE) if event.micro_step == number and event.phase in often] for number in (2, 3)]
    assert alike[0] == alike[1] and {event.phase for event in found.events if event.micro_step is None} == {"step"}


def test_kernels_come_as_they_were_recorded(recordings, a100):
    operations = recordings["one"].operations
    rows = np.flatnonzero(operations.where("forward", "backward", "recompute"))
    found = [event for event in of(bsmodel.timeline(recordings["one"], a100, 8, 2), DEVICE) if event.micro_step == 2 and event.phase != "accumulation"]
    assert [(event.name, event.module) for event in found] == [(operations.operators[row], operations.modules[row]) for row in rows]


def test_gradients_are_summed_by_the_last_micro_step_alone(recordings, a100):
    summing = {
        recipe: {event.micro_step for event in bsmodel.timeline(recordings[recipe], a100, 8, 3).events if event.name in ("all-reduce", "reduce-scatter")}
        for recipe in RECIPES
    }
    assert summing["reducer"] == summing["shards"] == {1, 2, 3} and summing["one"] == set()
    assert summing["last micro-step alone sums"] == summing["shards, the last sums"] == {3}


def test_where_the_device_is_slower_kernels_follow_on_one_another_and_else_they_have_gaps(recordings, a100):
    for batch, gaps in ((20_000, False), (1, True)):
        found, step = require_drawn_as_timed(recordings["one"], a100, batch)
        computing = sum(event.seconds for event in of(found, DEVICE))
        assert computing == pytest.approx(step.device_seconds) and (computing < 0.9 * found.seconds) == gaps
        for phase in ("forward", "recompute", "step"):
            assert sum(event.seconds for event in of(found, DEVICE) if event.phase == phase) == pytest.approx(step.phases[phase])


def test_a_pass_by_hand():
    """Three kernels of two seconds; what begins after the first takes three beside a quarter of the second: half a second more, and one to wait."""
    said = [Collective("all-gather", Polynomial(1, 0), "forward", 1, 2, 2, 1)]
    computing = {1: np.array(2.0), 2: np.array(2.0), 3: np.array(2.0)}
    each = Pass(np.array([True] * 3), said, [np.array(3.0)], computing, np.array(0.0))
    found = drawn(each, np.full(3, 2.0), 1.0, 1.0, 0.25)
    assert (found.starts.tolist(), found.ends.tolist()) == ([0, 2, 5.5], [2, 4.5, 7.5])
    assert (found.begun.tolist(), found.done.tolist(), found.over) == ([2], [5.5], 7.5)
    spaced = drawn(dataclasses.replace(each, said=[], lasting=[]), np.full(3, 1.0), 2.0, 2.0, 0.25)
    assert (spaced.starts.tolist(), spaced.ends.tolist(), spaced.over) == ([1, 3, 5], [2, 4, 6], 6)


@given(schedule=schedules(), busy=st.floats(0, 1), apart=st.floats(1, 4))
def test_a_pass_is_as_much_longer_as_is_waited_for_and_slowed(schedule, busy, apart):
    said, lasting, computing = schedule
    own = np.array([*computing.values()])
    each = Pass(np.full(len(own), True), said, lasting, computing, np.array(0.0))
    found = drawn(each, own, 1.0, apart, busy)
    exposed, total = float(waited(said, lasting, computing, np.array(0.0))), float(sum(lasting))
    assert found.over == pytest.approx(apart * own.sum() + exposed + busy * (total - exposed), abs=1e-9)
    assert (found.starts[1:] >= found.ends[:-1] - 1e-12).all() and (found.done - found.begun >= -1e-12).all()
    assert float(each.spoken(busy).exposed_seconds) == pytest.approx(exposed + busy * (total - exposed))


def test_a_step_without_kernels_has_no_events(recordings, a100):
    words = (("op",), ("",), ("accumulation",), ("elementwise",), ("bf16",))
    empty = dataclasses.replace(recordings["one"], operations=Operations(*words, *np.zeros((3, 1, 8))))
    found = bsmodel.timeline(empty, a100, 8)
    assert (found.seconds, found.events, found.tracks) == (0, (), ())


def test_what_cannot_be_drawn_is_refused(recordings, a100):
    tape = recordings["one"]
    assert line_of(bsmodel.timeline, tape, a100, [1, 2]).startswith("batch is [1, 2]; expected a whole number")
    assert "expected a whole number of at least 1" in line_of(bsmodel.timeline, tape, a100, 8, 0)
    assert "at most 1,000,000 are drawn; ask for fewer micro-steps" in line_of(bsmodel.timeline, tape, a100, 8, 10**12)
    assert "trace again with this GPU" in line_of(bsmodel.timeline, tape, bsmodel.Gpu.named("h100-80gb"), 8)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_trace_is_of_the_format(recordings, a100, recipe):
    found = bsmodel.timeline(recordings[recipe], a100, 700, 2)
    document = json.loads(json.dumps(found.chrome_trace(), allow_nan=False))
    jsonschema.validate(document, SCHEMA)
    complete = [event for event in document["traceEvents"] if event["ph"] == "X"]
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in document["traceEvents"] if event["name"] == "thread_name"}
    assert [names[event["pid"], event["tid"]] for event in complete] == [event.track for event in found.events] and [*names.values()] == [*found.tracks]
    assert max(event["ts"] + event["dur"] for event in complete) == pytest.approx(found.seconds * 1e6, abs=2e-3)
    for place in names:
        nanoseconds = [(int(event["ts"] * 1000), int(event["dur"] * 1000)) for event in complete if (event["pid"], event["tid"]) == place]
        assert all(start + lasting <= after for (start, lasting), (after, _) in itertools.pairwise(nanoseconds))  # as viewers cut them off


def test_an_event_says_what_it_moves_and_computes(recordings, a100):
    document = bsmodel.timeline(recordings["shards"], a100, 8).chrome_trace()
    product = next(event for event in document["traceEvents"] if "addmm" in event["name"] and event["args"].get("FLOPs"))
    gather = next(event for event in document["traceEvents"] if event["name"] == "all-gather")
    assert product["args"]["FLOPs"] > 0 and product["args"]["bytes"] > 0 and product["args"]["module"] and product["args"]["micro-step"] == 1
    assert gather["args"]["bytes"] > 0 and gather["args"]["phase"] == "forward" and "module" not in gather["args"]


@pytest.mark.parametrize("name", ["step.json", "step.json.gz"])
def test_the_command_writes_it_and_answers_as_without(name, tmp_path, capsys):
    question = ("explain", MINE, "--cache", "--batch", "64", "--gpu", "a100-40gb", "--devices", "8", "--accumulation", "2")
    assert main([*question]) == 0
    plain = capsys.readouterr().out
    assert main([*question, "--trace", str(tmp_path / name)]) == 0
    content = (tmp_path / name).read_bytes()
    document = json.loads(gzip.decompress(content) if name.endswith(".gz") else content)
    jsonschema.validate(document, SCHEMA)
    assert capsys.readouterr().out == plain and [path.name for path in tmp_path.iterdir()] == [name]
    assert document["otherData"]["accumulation"] == "2" and {"all-reduce"} < {event["name"] for event in document["traceEvents"]}


def test_the_command_draws_one_card_and_says_so_before_the_work(tmp_path, capsys):
    question = ("explain", MINE, "--batch", "64", "--gpu", "a100-40gb", "--trace")
    assert main([*question, str(tmp_path / "step.json"), "--gpu", "h100-80gb"]) == 2
    assert capsys.readouterr().err == "bsmodel: --trace is of one GPU, and a100-40gb, h100-80gb are asked about; give one --gpu\n"
    assert main([*question, str(tmp_path / "no" / "step.json")]) == 2
    assert "cannot write the trace" in capsys.readouterr().err and not [*tmp_path.iterdir()]
