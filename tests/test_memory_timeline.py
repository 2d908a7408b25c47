# SPDX-License-Identifier: Apache-2.0
"""Memory over the seconds of a step in torch.profiler's form: its own reader takes it, it is as long as the step, and its peak is the breakdown's total."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import _memory_profiler as profiler

import bsmodel
from bsmodel import Training
from bsmodel.command import main
from bsmodel.tape import CATEGORIES, Operations
from bsmodel.timing import TORCH_CATEGORIES, event_seconds
from bsmodel.timing.memory_timeline import CREATE, DESTROY, IN_TORCH, PREEXISTING
from tests import models
from tests.test_over_time import RECIPES, loading
from tests.test_refusals import line_of

MINE = f"{Path(__file__).parent}/models.py:attention"
DEVICE = "cuda:0"


@pytest.fixture(scope="module")
def recordings(a100):
    return {name: bsmodel.trace(models.attention(), Training(**recipe), a100) for name, recipe in RECIPES.items()}


class Categories(dict):
    """What torch asks for the category of a tensor."""

    def get(self, key, version):
        return self[key]


def read_by_torch(raw):
    """Torch's own timeline of the raw events, each of its own tensor: the oldest of its size and category is given back."""
    profile, living, categories = [], {}, Categories()
    for number, (time, action, size, category) in enumerate(raw):
        if action == DESTROY:
            key = living[-size, category].pop(0)
        else:
            key = profiler.TensorKey(torch.device(DEVICE), number, profiler._Storage(number, number))
            living.setdefault((size, category), []).append(key)
            categories[key] = next(name for name, index in profiler._CATEGORY_TO_INDEX.items() if index == category)
        profile.append((time, profiler.Action(action), (key, 0), abs(size)))
    found = profiler.MemoryProfileTimeline.__new__(profiler.MemoryProfileTimeline)
    found.timeline, found.categories = profile, categories
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (700, 2), (20_000, 5)])
def test_it_is_as_long_as_the_step_and_as_high_as_the_breakdown(recordings, a100, recipe, batch, accumulation):
    tape = recordings[recipe]
    found, step = bsmodel.memory_timeline(tape, a100, batch, accumulation), bsmodel.step_time(tape, a100, batch, accumulation)
    times, sizes = found.sizes()

    assert found.seconds == pytest.approx(step.seconds, rel=1e-9) and times[-1] == int(found.seconds * 1e6) and times[0] == 0
    assert times == sorted(times) and (np.diff(found.at_seconds) >= 0).all() and found.at_seconds[-1] <= found.seconds
    assert max(map(sum, sizes)) == found.peak_bytes == sum(share.bytes for share in bsmodel.breakdown(tape, batch, accumulation, a100))
    assert sizes[0] == sizes[-1] and min(map(min, sizes)) >= 0  # the next step begins as this one did


@given(batch=st.integers(1, 50_000), accumulation=st.integers(1, 4))
def test_at_any_batch(recordings, a100, batch, accumulation):
    found = bsmodel.memory_timeline(recordings["one"], a100, batch, accumulation)

    assert found.peak_bytes == sum(share.bytes for share in bsmodel.breakdown(recordings["one"], batch, accumulation, a100))
    assert found.seconds == pytest.approx(bsmodel.step_time(recordings["one"], a100, batch, accumulation).seconds)


def test_torch_reads_the_events_and_finds_the_sizes_that_are_written(recordings, a100):
    """Torch keeps the last of all entries of one microsecond, which it numbers from the first event on, and none at the end."""
    found = bsmodel.memory_timeline(recordings["shards"], a100, 700, 2)
    times, sizes = found.sizes()
    theirs = read_by_torch(found.raw())._coalesce_timeline(DEVICE)
    last = dict(zip(times[:-1], sizes[:-1], strict=True))

    assert dict(zip(*theirs, strict=True)) == last
    assert theirs[1][0] == sizes[0] or theirs[0][0] == theirs[0][1]


def test_torch_draws_it(recordings, a100, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("agg")
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    read_by_torch(bsmodel.memory_timeline(recordings["one"], a100, 700).raw()).export_memory_timeline_html(str(tmp_path / "step.html"), DEVICE)

    assert "data:image/png" in (tmp_path / "step.html").read_text()


def test_categories_and_actions_are_torchs():
    names = [None if category is None else category.name for category in profiler._CATEGORY_TO_INDEX]

    assert [*TORCH_CATEGORIES] == names and set(IN_TORCH) == set(CATEGORIES) and set(IN_TORCH.values()) < set(names)
    assert tuple(profiler.Action[name].value for name in ("PREEXISTING", "CREATE", "DESTROY")) == (PREEXISTING, CREATE, DESTROY)


def test_an_allocation_is_made_when_the_kernels_before_it_are_done(recordings, a100):
    tape = recordings["one"]
    times = event_seconds(tape, a100, 20_000)
    ends = [0.0, *(event.end_seconds for event in bsmodel.timeline(tape, a100, 20_000).events if event.track == "compute stream")]
    kernels = [event for event in bsmodel.timeline(tape, a100, 20_000).events if event.track == "compute stream" and event.phase in ("forward", "backward")]
    own = [0.0, *(event.end_seconds for event in kernels)]

    assert times[: len(tape.blocks["micro"])] == pytest.approx([own[place] for place in tape.reached["micro"]])
    assert times[-1] == pytest.approx(max(ends)) and len(times) == sum(len(tape.blocks[name]) for name in ("micro", "step")) + 2
    assert times[-2] <= times[len(tape.blocks["micro"])] <= times[-1]


def test_memory_of_the_first_step_alone_is_not_in_it(recordings, a100):
    usual, loaded = (bsmodel.memory_timeline(tape, a100, 8) for tape in (recordings["one"], loading(recordings["one"], 1 << 40)))

    assert loaded.peak_bytes == usual.peak_bytes < 1 << 40


def test_a_step_without_kernels_is_over_at_once(recordings, a100):
    words = (("op",), ("",), ("accumulation",), ("elementwise",), ("bf16",))
    found = bsmodel.memory_timeline(replace(recordings["one"], operations=Operations(*words, *np.zeros((3, 1, 8)))), a100, 8)

    assert found.seconds == 0 and found.peak_bytes > 0 and set(found.sizes()[0]) == {0}


def test_what_cannot_be_told_is_refused(recordings, a100):
    assert line_of(bsmodel.memory_timeline, recordings["one"], a100, [1, 2]).startswith("batch is [1, 2]; expected a whole number")
    assert "at most 1,000,000 are drawn; ask for fewer micro-steps" in line_of(bsmodel.memory_timeline, recordings["one"], a100, 8, 10**5)
    assert "trace again with this GPU" in line_of(bsmodel.memory_timeline, recordings["one"], bsmodel.Gpu.named("h100-80gb"), 8)


@pytest.mark.parametrize("name", ["step.json", "step.json.gz", "step.raw.json.gz"])
def test_the_command_writes_it_and_answers_as_without(name, tmp_path, capsys):
    question = ("explain", MINE, "--cache", "--batch", "64", "--gpu", "a100-40gb", "--devices", "8", "--accumulation", "2")
    assert main([*question, "--json"]) == 0
    plain = capsys.readouterr().out
    assert main([*question, "--json", "--memory-timeline", str(tmp_path / name)]) == 0
    content = (tmp_path / name).read_bytes()
    found = json.loads(gzip.decompress(content) if name.endswith(".gz") else content)
    peak = max(np.cumsum([size for _, _, size, _ in found])) if "raw" in name else max(map(sum, found[1]))

    assert capsys.readouterr().out == plain and [path.name for path in tmp_path.iterdir()] == [name]
    assert peak == json.loads(plain)["gpus"][0]["total_bytes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("step.json", "--gpu", "h100-80gb"), "--memory-timeline is of one GPU, and a100-40gb, h100-80gb are asked about; give one --gpu"),
        (("no/such/folder/step.json",), "cannot write the memory timeline 'no/such/folder/step.json'"),
        (("step.html",), "--memory-timeline is 'step.html'; expected a name that ends in .json, .json.gz or .raw.json.gz, which says the form"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_a_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["explain", MINE, "--batch", "64", "--gpu", "a100-40gb", "--memory-timeline", *arguments]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []
