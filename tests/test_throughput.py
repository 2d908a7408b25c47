# SPDX-License-Identifier: Apache-2.0
"""Laws of the step time: what may never happen on any card, at any batch, for any recording."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import planning
from bsmodel.errors import UnreachableTargetError
from bsmodel.hardware import Source
from bsmodel.tape.operations import COLUMNS, PHASES, Operations
from bsmodel.timing import KINDS, curve, knee, step_time
from tests.models import attention, of_size, workload

BATCHES = st.integers(1, 4096)
FACTORS = st.floats(1.0, 8.0)


@pytest.fixture(scope="module")
def tape(a100):
    return bsmodel.trace(attention(), bsmodel.Training(precision="bf16-mixed"), a100)


@pytest.fixture(scope="module")
def fit(tape, a100):
    return bsmodel.fit(tape, a100)


@st.composite
def operations(draw):
    """Kernels of every kind, growing with the batch as recorded ones do: groups, rows or the contraction do, columns do not."""
    rows = draw(
        st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(PHASES), st.integers(0, 2), *[st.integers(1, 600)] * 5), min_size=1, max_size=8)
    )
    fixed, per_sample = np.zeros((len(rows), len(COLUMNS))), np.zeros((len(rows), len(COLUMNS)))
    for number, (kind, _, grows, groups, m, n, k, moved) in enumerate(rows):
        fixed[number] = (groups, m, n, k, moved, 1, 0, 0)
        if kind in ("elementwise", "norm", "beside convolution", "contiguous batch norm", "contiguous batch norm backward"):
            fixed[number, :4] = 0
            per_sample[number, 4] = moved * 1000
        else:
            column = (0, 1, 3)[grows]
            per_sample[number, column], fixed[number, column] = fixed[number, column], 0
    count = len(rows)
    words = (("op",) * count, ("",) * count, tuple(row[1] for row in rows), tuple(row[0] for row in rows), ("bf16",) * count)
    return Operations(*words, fixed, per_sample, np.zeros_like(fixed))


@given(found=operations(), batch=BATCHES, more=st.integers(1, 1000))
def test_time_never_falls_with_the_batch(tape, a100, found, batch, more):
    made = dataclasses.replace(tape, operations=found)

    assert step_time(made, a100, batch + more).seconds >= (1 - 1e-12) * step_time(made, a100, batch).seconds


def test_a_product_with_a_row_for_every_pair_of_samples_counts_as_one(tape, a100):
    """Also at a batch of one, which has no pairs."""
    words = (("op",), ("",), ("forward",), ("matmul",), ("fp32",))
    fixed, per_pair = np.array([[1.0, 0, 8, 16, 0, 1, 0, 0]]), np.array([[0.0, 1, 0, 0, 0, 0, 0, 0]])
    made = dataclasses.replace(tape, operations=Operations(*words, fixed, np.zeros_like(fixed), per_pair))
    step = step_time(made, a100, [1, 2, 100_000])

    assert step.flops.tolist() == [2 * 8 * 16 * batch * (batch - 1) / 2 for batch in (1, 2, 100_000)]
    assert step.device_seconds[2] > 1000 * step.device_seconds[1] and 0 < step.mfu[2] <= 1


def test_a_step_without_kernels_takes_no_time_and_has_no_rates(tape, a100):
    words = (("op",), ("",), ("accumulation",), ("elementwise",), ("bf16",))  # runs from the second micro-step on
    made = dataclasses.replace(tape, operations=Operations(*words, *np.zeros((3, 1, len(COLUMNS)))))
    step = step_time(made, a100, 8)

    assert step.seconds == step.launches == 0 and np.isinf(step.samples_per_s) and np.isnan(step.mfu)


def test_time_of_a_recorded_step_never_falls_with_the_batch(tape, a100):
    seconds = curve(tape, a100, 4096).seconds

    assert (np.diff(seconds) >= -1e-12 * seconds[1:]).all()


@given(batch=BATCHES, factor=FACTORS)
def test_more_bandwidth_or_arithmetic_is_never_slower(tape, a100, batch, factor):
    faster = a100.model_copy(update={"bandwidth_bytes_per_s": a100.bandwidth_bytes_per_s * factor})
    stronger = a100.model_copy(update={name: getattr(a100, name) * factor for name in ("fp32_flops_per_s", "tf32_dense_flops_per_s", "bf16_dense_flops_per_s")})
    seconds = step_time(tape, a100, batch).seconds

    assert step_time(tape, faster, batch).seconds <= seconds
    assert step_time(tape, stronger, batch).seconds <= seconds


@given(largest=st.integers(1, 3000))
def test_the_knee_has_nine_tenths_of_the_best_throughput_and_nothing_smaller_has(tape, a100, largest):
    times = curve(tape, a100, largest)
    found = knee(times)
    best = times.samples_per_s.max()

    assert step_time(tape, a100, found).samples_per_s >= 0.9 * best
    assert (times.samples_per_s[times.batch < found] < 0.9 * best).all()


@given(st.integers(1, 200), st.integers(1, 10**6), st.floats(0.1, 100), st.floats(0.01, 50), st.integers(1, 8))
def test_cost_is_time_times_price(fit, target, samples, epochs, usd_per_hour, devices):
    plan = bsmodel.plan(fit, target * devices, devices, samples=samples, epochs=epochs, price=bsmodel.Price(usd_per_hour, "mine"))

    assert plan.timing.cost_usd == pytest.approx(plan.timing.hours * usd_per_hour * devices)
    assert plan.timing.hours == pytest.approx(plan.total_steps * plan.timing.step.seconds / 3600)


def test_arrays_give_what_single_batches_give(tape, a100):
    batches = np.array([1, 7, 64, 1000])
    together = step_time(tape, a100, batches)

    assert together.seconds.tolist() == [step_time(tape, a100, int(batch)).seconds for batch in batches]
    assert (together.low_seconds <= together.seconds).all() and (together.seconds <= together.high_seconds).all()


def test_phases_add_up_and_every_micro_step_counts(tape, a100):
    one, four = step_time(tape, a100, 512), step_time(tape, a100, 512, accumulation=4)

    assert sum(four.phases.values()) == pytest.approx(four.device_seconds)
    assert four.phases["forward"] == pytest.approx(4 * one.phases["forward"])
    assert four.phases["step"] == one.phases["step"]
    assert four.phases["backward"] > 4 * one.phases["backward"]  # gradients are added up


def test_checkpointing_adds_a_forward_pass_and_no_useful_flops(a100):
    plain, checkpointed = (bsmodel.trace(attention(), bsmodel.Training(checkpointing=on), a100) for on in (False, True))
    one, other = step_time(plain, a100, 256), step_time(checkpointed, a100, 256)

    assert one.phases["recompute"] == 0
    assert 0.5 * one.phases["forward"] < other.phases["recompute"] < 1.1 * one.phases["forward"]
    assert other.flops == one.flops and other.mfu < one.mfu


def linear(gpu):
    big = workload(
        lambda: torch.nn.Linear(8192, 8192, bias=False), lambda size: torch.zeros(size, 8192), lambda model, batch: model(batch).sum(), name="linear"
    )
    return bsmodel.trace(big, bsmodel.Training(precision="bf16", optimizer="sgd"), gpu)


def test_a_matmul_at_least_takes_its_flops_at_the_measured_rate():
    gpu = bsmodel.Gpu.named("h100-80gb")
    step = step_time(linear(gpu), gpu, 8192)
    ideal = 2 * 8192**3 / (gpu.bf16_dense_flops_per_s * gpu.matmul_efficiency["bf16"])

    assert ideal <= step.phases["forward"] <= 1.2 * ideal


def test_an_unmeasured_card_and_a_power_limited_one_have_an_interval(a100):
    bare = a100.model_copy(update={"matmul_efficiency": None})
    throttled = bare.model_copy(
        update={
            "matmul_efficiency": {"bf16": 0.6, "fp32": 0.6},
            "power_limited": True,
            "sources": (*a100.sources, Source(figures=("matmul_efficiency",), source="a test", checked=a100.sources[0].checked, kind="measured")),
        }
    )
    for gpu in (bare, throttled):
        step = step_time(linear(gpu), gpu, 8192)
        assert step.low_seconds <= step.seconds < step.high_seconds


def test_a_card_without_rates_has_a_plan_without_a_time(tape, a100):
    sources = tuple(
        source.model_copy(update={"figures": tuple(f for f in source.figures if f not in ("bandwidth_bytes_per_s", "bandwidth_efficiency"))})
        for source in a100.sources
        if set(source.figures) - {"bandwidth_efficiency"}
    )
    unknown = a100.model_copy(update={"bandwidth_bytes_per_s": None, "bandwidth_efficiency": None, "sources": sources})
    plan = bsmodel.plan(bsmodel.fit(tape, unknown), target_batch=64)

    assert plan.timing is None and "no bandwidth_bytes_per_s" in plan.untimed
    with pytest.raises(bsmodel.InvalidInputError, match="at least 1"):
        step_time(tape, a100, 0)
    with pytest.raises(bsmodel.InvalidInputError, match="trace again with this GPU"):
        step_time(tape, bsmodel.Gpu.named("h100-80gb"), 8)


def test_the_fastest_split_is_chosen_and_the_fewest_steps_are_kept(tape, a100):
    fit = bsmodel.fit(tape, of_size(a100, 2048))
    plan = bsmodel.plan(fit, target_batch=4096)
    candidates = planning.splits(4096, fit.batch, bsmodel.fit(tape, fit.gpu, accumulation=2).batch)
    exact = [s for s in candidates if s.effective_batch == plan.split.effective_batch]
    seconds = [float(step_time(tape, a100, s.micro_batch, s.accumulation).seconds) for s in exact]

    assert len(exact) > 1
    assert seconds[exact.index(plan.split)] == min(seconds)
    assert plan.fewest == candidates[0]


def test_a_target_that_only_accumulation_reaches_is_refused_where_gradients_leave_no_room():
    with pytest.raises(UnreachableTargetError, match="at most 4 without"):
        planning.splits(64, largest=2, largest_accumulating=0, devices=2)
    assert planning.splits(4, largest=2, largest_accumulating=0, devices=2)[0] == planning.Split(2, 1, 2)


def test_float32_convolutions_are_held_against_the_rate_they_run_at(a100):
    """cuDNN rounds them to TF32 from Ampere on, whether asked or not."""
    step = step_time(bsmodel.trace(workload(), bsmodel.Training(precision="fp32", optimizer="sgd"), a100), a100, 4096)

    assert step.flops / a100.tf32_dense_flops_per_s < step.ideal_seconds < step.flops / a100.fp32_flops_per_s
    assert 0 < step.mfu < 1


@pytest.mark.parametrize(("name", "precision", "newest"), [("resnet50", "fp32", 12), ("vit-b-16", "bf16-mixed", 12), ("sd15-unet", "fp32", 7)])
def test_no_card_is_used_more_than_wholly(name, precision, newest):
    """Also where an algorithm saves arithmetic (Winograd's), and where a card clocks higher than its box says."""
    named = bsmodel.Workload.named(name)
    training = named.training.model_copy(update={"precision": precision})
    able = [gpu for gpu in bsmodel.Gpu.all() if gpu.capability[0] <= newest and (gpu.supports_bf16 or not training.numerics.needs_bf16)]
    for family in sorted({gpu.kernel_family for gpu in able}):
        cards = [gpu for gpu in able if gpu.kernel_family == family]
        traced = bsmodel.trace(named, training, cards[0])
        for gpu in (gpu for gpu in cards if gpu.bandwidth_bytes_per_s):
            mfu = step_time(traced, gpu, [1, 2, 8, 64, 512, 8192]).mfu
            assert (mfu > 0).all() and (mfu <= 1).all(), (gpu.id, mfu)


def test_saved_arithmetic_is_not_counted_as_done():
    """A float32 convolution of 3 x 3 on the float32 units, where cuDNN has Winograd's."""
    gpu = bsmodel.Gpu.named("v100-16gb")
    step = step_time(bsmodel.trace(workload(), bsmodel.Training(precision="fp32", optimizer="sgd"), gpu), gpu, 4096)

    assert step.ideal_seconds < step.flops / gpu.fp32_flops_per_s
