# SPDX-License-Identifier: Apache-2.0
"""What is known of physical cards: the context, workspaces, and the interval that a prediction gives where they are not known."""

import functools
import importlib
import json
import statistics
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bsmodel
from bsmodel.command import main
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import KINDS, Gpu, Source, rule_of, runtime
from bsmodel.hardware.runtime import threads_per_sm
from bsmodel.tape.tape import Workspace
from bsmodel.units import GiB, MiB
from tests.models import SGD, of_size, workload

ROOT = Path(__file__).parent.parent
CONTEXTS = [json.loads(line) for line in (ROOT / "benchmarks" / "data" / "contexts.jsonl").read_text().splitlines()]
GPUS = Gpu.all()


def loaded_bytes(row):
    """What a process of the published rows holds on top of the threads' local memory."""
    return row["context_bytes"] - row["sm_count"] * row["threads_per_sm"] * runtime().thread_bytes


# -- the context -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in CONTEXTS if row["group"] == "bare"], ids=lambda row: row["card"])
def test_a_bare_context_is_the_local_memory_of_its_threads(row):
    assert row["sm_count"] * row["threads_per_sm"] * runtime().thread_bytes == pytest.approx(row["context_bytes"], rel=0.06)


@pytest.mark.parametrize(("loading", "capability"), [("lazy", ""), ("lazy", "9.0"), ("eager", "")])
def test_kernels_are_what_the_messages_say(loading, capability):
    of_group = [row for row in CONTEXTS if row["group"] == loading and row.get("use", "training") == "training"]
    sizes = [loaded_bytes(row) / MiB for row in of_group if loading == "eager" or row["capability"] == capability]
    deciles = statistics.quantiles(sizes, n=10, method="inclusive")
    last = statistics.quantiles([loaded_bytes(row) / MiB for row in of_group], n=10, method="inclusive")[-1] if len(sizes) < 10 else deciles[-1]
    kernels = next(row for row in runtime().kernels if row.loading == loading and row.capabilities == ((capability,) if capability else ()))

    assert len(of_group) >= 15
    assert kernels.low_bytes / MiB == pytest.approx(max(0, deciles[0]), abs=1)
    assert kernels.usual_bytes / MiB == pytest.approx(statistics.median(sizes), abs=1)
    assert kernels.high_bytes / MiB == pytest.approx(last, abs=1)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.id)
def test_the_context_grows_with_the_multiprocessors(gpu):
    assert gpu.sm_count
    larger = gpu.model_copy(update={"sm_count": gpu.sm_count + 1})

    assert gpu.context.low_bytes < gpu.context.usual_bytes == gpu.context_bytes < gpu.context.high_bytes
    assert larger.context_bytes - gpu.context_bytes == gpu.threads_per_sm * runtime().thread_bytes
    assert gpu.sure_bytes < gpu.usable_bytes < gpu.memory_bytes


def test_contexts_of_known_cards():
    """Medians of published messages: 140 on a T4, 307 on an RTX 3090, about 525 on an A100 and 682 MiB on an H100."""
    usual = {name: Gpu.named(name).context_bytes // MiB for name in ("t4-16gb", "rtx-3090-24gb", "a100-80gb", "h100-80gb")}

    assert usual == {"t4-16gb": 149, "rtx-3090-24gb": 315, "a100-80gb": 501, "h100-80gb": 714}


@given(st.integers(0, 4 * GiB), st.integers(1, 4 * GiB))
def test_what_is_left_to_others_is_not_usable(headroom_bytes, context_bytes):
    gpu = Gpu.named("t4-16gb")
    own = gpu.leaving(headroom_bytes, context_bytes)

    assert own.usable_bytes == own.sure_bytes == gpu.memory_bytes - headroom_bytes - context_bytes
    assert own.context == (context_bytes,) * 3 and own.source_of("context_bytes").source == "given with the question"
    assert gpu.leaving(headroom_bytes).usable_bytes == gpu.usable_bytes - headroom_bytes
    assert own.leaving(context_bytes=context_bytes).sources == own.sources  # the source once, not twice


def test_a_card_smaller_than_what_is_left_to_others_is_refused():
    with pytest.raises(InvalidInputError, match=r"t4-16gb has 14\.75 GiB, of which a CUDA context of 149\.00 MiB and 16\.00 GiB left free would leave nothing"):
        Gpu.named("t4-16gb").leaving(16 * GiB)


def answered(capsys, *words):
    """Exit code and JSON of a command."""
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


MINE = f"{Path(__file__).parent / 'models.py'}:workload"


def test_context_and_headroom_on_the_command_line(capsys):
    _, free = answered(capsys, "predict", MINE, "--batch", "8", "--gpu", "t4-16gb", "--precision", "fp32")
    _, less = answered(capsys, "predict", MINE, "--batch", "8", "--gpu", "t4-16gb", "--precision", "fp32", "--context", "900MiB", "--headroom", "1GiB")

    assert less["gpus"][0]["usable_bytes"] == Gpu.named("t4-16gb").memory_bytes - 900 * MiB - GiB
    assert less["gpus"][0]["device_bytes"] == less["gpus"][0]["reserved_bytes"] + 900 * MiB
    assert less["notes"] == ["a CUDA context of 900.00 MiB and 1.00 GiB left free on each card, as asked"] and free["notes"] == []


@pytest.mark.parametrize("command", ["plan", "compare"])
def test_a_headroom_costs_samples(capsys, command):
    words = (command, MINE, "--gpu", "t4-16gb", "--precision", "fp32")
    largest = [answered(capsys, *words, *more)[1]["gpus"][0]["largest_batch"] for more in ((), ("--headroom", "8GiB"))]

    assert largest[1] < 0.6 * largest[0]


# -- workspaces ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(a100):
    return bsmodel.trace(workload(), SGD.model_copy(update={"precision": "fp16-mixed"}), a100)


def of_kinds(gpu, **taken):
    """The card with a row of its own for these kinds of workspaces."""
    source = Source(figures=("workspaces",), source="measured", checked=date(2026, 11, 25), kind="measured")
    return gpu.model_copy(update={"workspaces": {name.replace("_", " "): value for name, value in taken.items()}, "sources": (*gpu.sources, source)})


def test_every_kind_has_a_rule_with_a_source():
    rules = [rule_of(kind, capability) for kind in KINDS for capability in ("7.0", "8.0", "9.0")]
    assert all(rule.source and rule.checked for rule in rules)
    assert rule_of(KINDS[-1], "8.0").taken and not rule_of(KINDS[-1], "8.6").taken
    assert len(KINDS) == len(set(KINDS)) == 64


def test_a_row_of_ones_own_goes_before_the_rules(mixed, a100):
    kinds = {workspace.kind.replace(" ", "_") for workspace in mixed.workspaces.values()}
    planned, bare = (mixed.sizes(64, of_kinds(a100, **dict.fromkeys(kinds, taken))) for taken in (True, False))

    assert (bare == mixed.lower_sizes(64, a100)).all() and planned.sum() > bare.sum()
    totals = [mixed.coefficients(of_kinds(a100, **dict.fromkeys(kinds, taken))).sum() for taken in (True, False)]
    assert totals[0] > totals[1]


@pytest.mark.parametrize("channels", [64, 128])
def test_winograd_transforms_are_those_of_tiles_of_four_by_four(channels):
    """36 products a tile for input, gradient and filters, in float32; with 64 channels only the upper end has them on a V100."""
    v100 = Gpu.named("v100-32gb")
    images = functools.partial(torch.zeros, 1, channels, 10, 10)
    tape = bsmodel.trace(
        bsmodel.Workload(
            lambda: nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)),
            lambda size: images().expand(size, -1, -1, -1).contiguous(),
            lambda model, batch: model(batch).square().mean(),
        ),
        SGD,
        v100,
    )
    name = "winograd" if channels > 64 else "narrow-winograd"
    found = [number for number, workspace in tape.workspaces.items() if workspace.kind == f"contiguous fp32 {name} filter gradient"]
    expected = 36 * 4 * (channels * channels + 2 * channels * 5 * 3 * 3)

    assert len(found) == 2 * 3  # two convolutions in each recorded micro-step
    assert set(tape.sizes(5)[found]) == {expected if channels > 64 else 0} and set(tape.upper_sizes(5)[found]) == {expected}


def test_an_unknown_kind_is_refused(a100):
    with pytest.raises(InvalidInputError, match="unknown kind of workspace 'contiguous half dense foreward'; nearest: contiguous half dense forward"):
        of_kinds(a100, contiguous_half_dense_foreward=True)


@given(st.integers(1, 3000), st.sampled_from([600, 700, 1000, 40_000]))
@settings(max_examples=40)
def test_the_likely_peak_lies_in_its_interval(mixed, a100, batch, mebibytes):
    peak = bsmodel.predict(mixed, of_size(a100, mebibytes), batch)

    assert peak.reserved_lower_bytes <= peak.reserved_bytes <= peak.reserved_upper_bytes
    assert peak.device_lower_bytes <= peak.device_bytes <= peak.device_upper_bytes
    assert peak.likely_fits or not peak.fits


def test_an_interval_is_a_point_where_nothing_is_unknown(mixed, a100):
    card = a100.leaving(context_bytes=500 * MiB)
    peak = bsmodel.predict(replace(mixed, workspaces={}), card, 64)

    assert peak.reserved_lower_bytes == peak.reserved_bytes == peak.reserved_upper_bytes
    assert peak.device_lower_bytes == peak.device_bytes == peak.device_upper_bytes == peak.reserved_bytes + 500 * MiB


def test_the_safe_batch_allows_for_a_large_context(mixed, a100):
    """What only fits with the usual context may fit, and is not called safe."""
    peak = bsmodel.predict(mixed, a100, 64)
    between = (a100.context.usual_bytes + a100.context.high_bytes) // 2
    card = a100.model_copy(update={"memory_bytes": peak.reserved_upper_bytes + between})
    tight = bsmodel.predict(mixed, card, 64)

    assert tight.likely_fits and not tight.fits
    assert bsmodel.fit(mixed, card).batch < bsmodel.fit(mixed, card).likely_batch


def test_a_workspace_survives_the_file(mixed, tmp_path):
    mixed.save(tmp_path / "mixed.tape")
    found = bsmodel.Tape.load(tmp_path / "mixed.tape").workspaces

    assert found == mixed.workspaces and all(isinstance(workspace, Workspace) for workspace in found.values())


# -- the table of cards ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (ROOT / "benchmarks" / "cards.jsonl").read_text().splitlines()]


def test_every_row_says_where_it_is_from_and_what_is_predicted(rows, monkeypatch):
    fields = {"id", "source", "quotation", "card", "versions", "family", "model", "options", "script", "recipe", "batch", "metric", "peak_bytes", "predicted"}
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("BSMODEL_HARDWARE_PATH", str(ROOT / "benchmarks" / "data" / "cards"))
    library, scripts = (importlib.import_module(f"cases.{name}") for name in ("library", "scripts"))

    for row in rows:
        assert fields <= set(row) and row["source"] and row["quotation"] and row["predicted"], row["id"]
        assert row["script"] in scripts.SCRIPTS and row["model"].partition(":")[0] in library.KINDS, row["id"]
        assert row["metric"] in ("allocated", "reserved", "process", "device", "bracket"), row["id"]
        assert (row["peak_bytes"] is None) == (row["metric"] == "bracket" or (row["peak_bytes"] is None and row["out_of_memory"])), row["id"]
        bsmodel.Training(**row["recipe"])
        Gpu.named(row["card"])
    assert len({row["id"] for row in rows}) == len(rows) >= 300
    assert len({row["card"] for row in rows}) >= 12


def test_no_run_that_died_is_called_safe_and_hardly_any_that_ran_is_refused(rows, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    best = importlib.import_module("cases.errors").best
    found = [(row, answer) for row in rows if row["metric"] != "bracket" and (answer := best(row))]

    assert not [row["id"] for row, answer in found if row.get("out_of_memory") and (answer["fits"] or answer["likely_fits"])]
    assert len([row["id"] for row, answer in found if not row.get("out_of_memory") and not answer["likely_fits"]]) <= 2


def test_every_large_residual_is_explained(rows, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    error = importlib.import_module("cases.errors").error

    assert not [row["id"] for row in rows if abs(error(row) or 0) > 0.05 and not row.get("cause")]


def test_likely_batches_lie_between_those_that_trained_and_those_that_failed():
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "results" / "brackets.jsonl").read_text().splitlines()]
    places = [row["place"] for row in rows if "place" in row]

    assert len(places) >= 200 and len(places) > 0.97 * len(rows)
    assert (places.count("inside") + places.count("tied")) / len(places) >= 0.93
    assert places.count("above") / len(places) <= 0.04 and places.count("below") / len(places) <= 0.015


def test_threads_of_a_multiprocessor_are_those_of_nvidias_own_table():
    """NVIDIA/cccl, cuda/__device/arch_traits.h."""
    known = {"7.0": 2048, "7.5": 1024, "8.0": 2048, "8.6": 1536, "8.9": 1536, "9.0": 2048, "10.0": 2048, "10.3": 2048, "11.0": 1536, "12.0": 1536, "12.1": 1536}
    assert {capability: threads_per_sm(capability) for capability in known} == known
