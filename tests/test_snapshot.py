# SPDX-License-Identifier: Apache-2.0
"""The snapshot of a run that was not made: PyTorch's own tools read it, and it says what `predict` says."""

import contextlib
import dataclasses
import io
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._utils import _Block, _Segment, _TraceEntry
from torch.cuda import _memory_viz

import bsmodel
from bsmodel.command import main
from bsmodel.memory import data_parallel, pickled
from bsmodel.memory.settings import Settings, spelled
from bsmodel.tape import Polynomial
from bsmodel.tape.tape import Workspace
from bsmodel.units import MiB
from tests.test_surface import MINE

# What the interpreter of pickles in torch/utils/viz/MemoryViz.js knows.
OPERATIONS = set(
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT EMPTY_LIST EMPTY_TUPLE FRAME LIST LONG1 LONG_BINGET "
    "LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO SETITEM SETITEMS SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)
KIND = "contiguous tf32 dense forward"  # of convolution whose workspace cards take
GROWTH = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
SETTINGS = st.builds(
    Settings,
    expandable_segments=st.booleans(),
    max_split_size_bytes=st.sampled_from([None, 20 * MiB]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.4]),
    roundup_power2_divisions=st.sampled_from([0, 4, (1, 2, *[4] * 14)]),
    max_non_split_rounding_bytes=st.sampled_from([20 * MiB, 64 * MiB]),
    per_process_memory_fraction=st.sampled_from([1.0, 0.9]),
)


@st.composite
def steps(draw, tape, card):
    """A run of a few tensors like those of a recording, and a card with hardly more room than it takes, or less."""
    sizes = draw(st.lists(st.integers(0, 4096) | st.integers(0, 40 * MiB), min_size=4, max_size=12))
    kept, passing = range(len(sizes) // 3), range(len(sizes) // 3, len(sizes) - 1)
    events = draw(st.permutations([*passing, *passing]))
    alive = set()
    micro = tuple(~k if k in alive else alive.add(k) or k for k in events)
    words = {
        name: tuple(draw(st.sampled_from(options)) for _ in sizes)
        for name, options in (
            ("operators", ["to", "aten.mm.default"]),
            ("modules", ["", "a", "a.b.c"]),
            ("phases", ["forward", "backward"]),
            ("categories", ["saved", "gradient"]),
        )
    }
    last = len(sizes) - 1
    blocks = {"init": tuple(kept), "first": micro, "first_step": (last,), "micro": micro, "accumulate": micro, "step": ()}
    streams = {k: 7 for k in passing if draw(st.booleans())}
    spaces = {k: Workspace(KIND, Polynomial(0, 0)) for k in passing if draw(st.integers(0, 3)) == 0}
    numbers = {"fixed_bytes": np.array(sizes, np.int64), "per_sample_bytes": np.zeros(len(sizes), np.int64), "per_pair_bytes": np.zeros(len(sizes), np.int64)}
    made = dataclasses.replace(tape, terms={}, workspaces=spaces, streams=streams, blocks=blocks, lent={}, waits={}, collectives=(), **words, **numbers)
    room = draw(st.integers(10 * MiB, 300 * MiB))
    return made, card.model_copy(update={"memory_bytes": card.memory_bytes - card.usable_bytes + room})


def peaks(found):
    """The most alive and the most reserved at once in a trace, whose every event is checked against what there is then; and what is left at its end."""
    alive, pages, lots, requested = {}, {}, [], set()
    allocated = most_allocated = most_reserved = 0
    for event in found["device_traces"][0]:
        action, address, size, stream = event["action"], event.get("addr"), event["size"], event["stream"]
        if action == "alloc":
            assert all(address + size <= other or other + length <= address for other, (length, _) in alive.items())
            assert any(start <= address and address + size <= start + length and stream == of for start, (length, of) in lots)
            alive[address] = size, stream
            allocated += size
        elif action == "free_requested":
            assert alive[address] == (size, stream)
            requested.add(address)
        elif action == "free_completed":
            assert alive.pop(address) == (size, stream)
            requested.remove(address)
            allocated -= size
        elif action in GROWTH:
            for page in range(address, address + size, 2 * MiB):
                assert (pages.pop(page, None) == stream) == (GROWTH[action] < 0)
                pages |= {page: stream} if GROWTH[action] > 0 else {}
            lots = stretches(pages)
        else:
            assert action == "oom" and event["device_free"] >= 0
        most_allocated, most_reserved = max(most_allocated, allocated), max(most_reserved, 2 * MiB * len(pages))
    assert not requested
    return most_allocated, most_reserved, alive, pages


def stretches(pages):
    """Contiguous pages of one stream, each as its start, its bytes and the stream."""
    found = []
    for page, stream in sorted(pages.items()):
        if found and found[-1][0] + found[-1][1][0] == page and found[-1][1][1] == stream:
            found[-1] = found[-1][0], (found[-1][1][0] + 2 * MiB, stream)
        else:
            found.append((page, (2 * MiB, stream)))
    return found


@given(st.data(), SETTINGS, st.integers(1, 2))
def test_any_run_has_the_peaks_that_predict_says_and_blocks_that_never_overlap(tape, a100, data, settings, accumulation):
    made, card = data.draw(steps(tape, a100))
    peak = bsmodel.predict(made, card, 1, accumulation, settings)
    found = bsmodel.snapshot(made, card, 1, accumulation, settings)
    allocated, reserved, alive, pages = peaks(found)

    assert (allocated, reserved) == (peak.allocated_bytes, peak.reserved_bytes)
    blocks = [(block, segment["stream"]) for segment in found["segments"] for block in segment["blocks"]]
    assert {block["address"]: (block["size"], stream) for block, stream in blocks if block["state"] == "active_allocated"} == alive
    assert sum(segment["total_size"] for segment in found["segments"]) == 2 * MiB * len(pages)
    for segment in found["segments"]:
        sizes = [block["size"] for block in segment["blocks"]]
        assert [block["address"] for block in segment["blocks"]] == [segment["address"] + sum(sizes[:i]) for i in range(len(sizes))]
        assert sum(sizes) == segment["total_size"] and segment["allocated_size"] <= segment["total_size"]
    assert all(block["requested_size"] <= block["size"] and bool(block["frames"]) == bool(block["requested_size"]) for block, _ in blocks)
    summary, events = _memory_viz.segsum(found), _memory_viz.trace(found)
    assert f"segments: {len(found['segments'])}\n" in summary and events.startswith("Device 0") == bool(found["device_traces"][0])


@given(SETTINGS)
def test_settings_are_read_from_what_they_are_spelled_as(settings):
    assert Settings.parse(spelled(settings)) == settings


def test_what_is_done_without_is_an_error_that_the_run_survives(tape, a100):
    """A workspace that there is no memory for, once: the run does without it from then on."""
    big = dataclasses.replace(tape, blocks={**tape.blocks, "first": (*tape.blocks["first"], len(tape.categories), ~len(tape.categories))})
    big = dataclasses.replace(
        big,
        fixed_bytes=np.append(tape.fixed_bytes, a100.memory_bytes),
        per_sample_bytes=np.append(tape.per_sample_bytes, 0),
        per_pair_bytes=np.append(tape.per_pair_bytes, 0),
        workspaces={**tape.workspaces, len(tape.categories): Workspace(KIND, Polynomial(0, 0))},
        **{name: (*getattr(tape, name), getattr(tape, name)[-1]) for name in ("operators", "modules", "phases", "categories")},
    )
    errors = [event for event in bsmodel.snapshot(big, a100, 8)["device_traces"][0] if event["action"] == "oom"]

    assert len(errors) == 1 and errors[0]["size"] == a100.memory_bytes and 0 < errors[0]["device_free"] < a100.memory_bytes


@pytest.mark.parametrize("batch", [1, 512, 1_000_000])
def test_a_recorded_step_has_the_peaks_that_predict_says_whether_it_fits_or_not(tape, a100, batch):
    peak = bsmodel.predict(tape, a100, batch)

    assert peaks(bsmodel.snapshot(tape, a100, batch))[:2] == (peak.allocated_bytes, peak.reserved_bytes)
    assert peak.fits == (batch < 1_000_000)


def test_gradient_buckets_are_in_it(tape, a100):
    shared = data_parallel(tape)
    peak = bsmodel.predict(shared, a100, 64)
    found = bsmodel.snapshot(shared, a100, 64)

    assert peaks(found)[:2] == (peak.allocated_bytes, peak.reserved_bytes)
    assert "gradient bucket" in {event["category"] for event in found["device_traces"][0]}


def test_it_has_the_fields_that_torch_writes(tape, a100):
    """Those that torch 2.13 declares, and those that its visualiser reads beside them."""
    found = bsmodel.snapshot(tape, a100, 64)
    segment = found["segments"][0]

    assert set(found) == {"segments", "device_traces", "allocator_settings", "external_annotations"}
    assert set(_Segment.__annotations__) <= set(segment) and set(_Block.__annotations__) == set(segment["blocks"][0])
    assert {"device", "requested_size", "segment_pool_id", "is_expandable", "frames"} <= set(segment)
    for event in found["device_traces"][0]:
        missing = set(_TraceEntry.__annotations__) - set(event)
        assert missing == ({"addr"} if event["action"] == "oom" else {"device_free"})
        assert {"time_us", "pool_id", "compile_context", "user_metadata", "category"} <= set(event)
    assert "unknown" in {event["category"] for event in found["device_traces"][0]}  # MemoryViz.js fails on categories without this one


def test_the_stack_is_the_operator_its_modules_the_model_and_the_step(tape, a100):
    found = bsmodel.snapshot(tape, a100, 64, steps=2)["device_traces"][0]
    stacks = [[f"{frame['filename']}:{frame['line']}:{frame['name']}" for frame in event["frames"]] for event in found]

    assert stacks[0] == ["parameter:0:to", "module:0:0", f"model:0:{tape.name}", "step:0:loading the model"]
    assert ["saved:0:aten.addmm.default", "module:0:5", f"model:0:{tape.name}", "step:2:forward"] in stacks
    assert {frame["line"] for event in found for frame in event["frames"] if frame["filename"] == "step"} == {0, 1, 2}


def test_modules_are_under_those_they_are_in(tape, a100):
    nested = dataclasses.replace(tape, modules=tuple("encoder.layers.3" for _ in tape.modules))
    frames = bsmodel.snapshot(nested, a100, 1)["device_traces"][0][0]["frames"]

    assert [frame["name"] for frame in frames[1:4]] == ["encoder.layers.3", "encoder.layers", "encoder"]


def test_steps_are_a_whole_number(tape, a100):
    with pytest.raises(bsmodel.InvalidInputError, match="steps"):
        bsmodel.snapshot(tape, a100, 1, steps=0)


def test_the_tools_of_torch_read_it(tape, a100):
    found, empty = bsmodel.snapshot(tape, a100, 64), bsmodel.snapshot(tape, a100, 1, steps=1)
    tree, said = _memory_viz.memory(found, str), io.StringIO()
    with contextlib.redirect_stdout(said):
        changed = _memory_viz.compare(empty["segments"], found["segments"], str)

    assert f"stream_0;active_allocated;step:0:loading the model;model:0:{tape.name};module:0:5;parameter:0:to " in tree
    assert all(line.rsplit(" ", 1)[1].isdecimal() for line in tree.splitlines())
    assert f"stream_0;seg_{found['segments'][0]['address']};active_allocated" in _memory_viz.segments(found, str)
    assert "only_after = " in said.getvalue() and changed.count("only_after") > 0
    assert repr(_memory_viz.Bytes(sum(segment["total_size"] for segment in found["segments"]))) in _memory_viz.segsum(found)
    for kind, page in (("Active Memory Timeline", _memory_viz.trace_plot(found)), ("Allocator State History", _memory_viz.segment_plot(found))):
        assert kind in page
    left = _memory_viz.filter_alloc_free_pairs(pickle.loads(pickled(found)))["device_traces"][0]
    assert not any(event["action"].startswith("free") for event in left)


def test_the_visualiser_can_read_the_pickle(tape, a100):
    """It interprets pickles itself, of protocol 2 to 4, and knows a part of their operations."""
    found = bsmodel.snapshot(tape, a100, 64)
    content = pickled(found)
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(content)]

    assert pickle.loads(content) == found
    assert {name for name, _ in operations} <= OPERATIONS and operations[0] == ("PROTO", 4)


def test_explain_writes_it_and_torch_makes_a_page_of_it(tmp_path, capsys):
    file, page = tmp_path / "step.pickle", tmp_path / "page.html"
    code = main(["explain", MINE, "--batch", "64", "--gpu", "a100-40gb", "--snapshot", str(file), "--json"])
    printed = capsys.readouterr().out
    made = subprocess.run([sys.executable, "-m", "torch.cuda._memory_viz", "trace_plot", str(file), "-o", str(page)], capture_output=True, text=True)
    most = peaks(pickle.loads(file.read_bytes()))[0]

    assert code == 0 and f'"allocated_bytes": {most}' in printed
    assert made.returncode == 0 and "snapshot.pickle" in page.read_text(), made.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "a100-40gb", "--gpu", "h100-80gb", "--snapshot", "x"), "--snapshot is of one GPU, and a100-40gb, h100-80gb are asked about; give one --gpu"),
        (("--snapshot", "nowhere/step.pickle"), "cannot write the snapshot 'nowhere/step.pickle'"),
    ],
)
def test_a_snapshot_that_cannot_be_is_refused_in_a_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["explain", MINE, "--batch", "64", *arguments]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []
