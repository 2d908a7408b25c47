# SPDX-License-Identifier: Apache-2.0
"""What is planned: exact splits, rates for what was published, advice for what is there, and what bounds a batch said as it is."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import InvalidInputError, Settings, Training, planning
from bsmodel.errors import UnreachableTargetError
from bsmodel.planning import Split
from bsmodel.studies import Goal, study
from bsmodel.studies.executors import Here
from bsmodel.timing import curve, knee, step_time
from bsmodel.units import MiB
from tests.models import SGD, attention, of_size, workload


@pytest.fixture(scope="module")
def fit(tape, a100):
    return bsmodel.fit(tape, of_size(a100, 600))


# -- splits ------------------------------------------------------------------------------------------------------------------------------


@given(st.integers(8, 5000), st.integers(1, 600), st.integers(1, 8))
def test_every_split_that_hits_the_target_is_a_candidate(target, largest, devices):
    exact = {split.micro_batch for split in planning.splits(target, largest, largest, devices) if split.effective_batch == target}
    per_device = target // devices
    possible = {micro for micro in range(1, largest + 1) if target % devices == 0 and per_device % micro == 0}

    assert exact == possible


def test_an_exact_split_below_half_of_the_largest_is_taken_where_it_costs_little(tape, a100):
    """8,005 is 1,601 x 5, and 2,668 x 3 is next to it; 19,997 is prime."""

    def chosen(target):
        candidates = planning.splits(target, 4000, 4000)
        assert candidates[0].effective_batch != target
        return planning.fastest(planning.eligible(candidates, target, tape, a100), tape, a100)

    assert chosen(8005) == Split(1601, 5, 1)
    assert chosen(19_997).effective_batch != 19_997 and chosen(19_997).micro_batch >= 2000
    assert step_time(tape, a100, 1601, 5).seconds / 8005 <= 1.05 * step_time(tape, a100, 2668, 3).seconds / 8004


# -- how often --------------------------------------------------------------------------------------------------------------------------


def test_a_recipe_that_accumulates_is_planned_timed_and_counted_with_its_micro_steps(tape, a100):
    """Without a target: the split has them, and so have the batch, its seconds and the steps of an epoch."""
    fit = bsmodel.fit(tape, of_size(a100, 600), 4)
    plan = bsmodel.plan(fit, samples=100_000, epochs=1)
    near = bsmodel.plan(fit, fit.batch, samples=100_000, epochs=1)  # a target that takes one micro-step, of what fits with four

    assert plan.split == plan.fewest == Split(fit.batch, 4, 1) and plan.exact and plan.target_batch == 4 * fit.batch
    assert near.split == Split(fit.batch, 1, 1) and near.micro_steps == 4
    for each in (plan, near):
        step = step_time(tape, fit.gpu, each.split.micro_batch, each.split.accumulation)
        assert each.timing.step == step and each.steps_per_epoch == -(-100_000 // each.split.effective_batch)
        assert each.timing.hours == pytest.approx(step.seconds * each.total_steps / 3600)


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 110), (0.07, 7), (3, 300), (1.101, 111), (1e9, 10**11)])
def test_steps_are_those_of_the_epochs_as_they_are_written(fit, epochs, steps):
    assert bsmodel.plan(fit, 64, samples=6400, epochs=epochs).total_steps == steps


def test_epochs_without_end_are_refused(fit):
    for ask in (lambda: bsmodel.plan(fit, 64, samples=6400, epochs=1e308), lambda: Goal(samples=6400, epochs=1e308)):
        with pytest.raises(InvalidInputError, match="at most 1e"):
            ask()


# -- learning rates and advice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "reason"), [({"lora_rank": 4}, "adapters"), ({"frozen": ("embed",)}, "frozen")], ids=["lora", "frozen"])
def test_a_rate_of_the_whole_model_is_not_proposed_for_a_part_of_it(changes, reason):
    known = dataclasses.replace(attention(), base_lr=3e-4, base_batch=64)
    whole, part, given_rate = (
        study([known], [recipe], ["a100-40gb"], goals=[goal], executor=Here()).rows[0]
        for recipe, goal in (({}, Goal()), (changes, Goal()), (changes, Goal(base_lr=1e-3, base_batch=64)))
    )

    assert whole.learning_rate is not None and not any("no learning rate" in advice for advice in whole.advice)
    assert part.learning_rate is None and any("no learning rate" in advice and reason in advice for advice in part.advice)
    assert given_rate.learning_rate is not None and not any("no learning rate" in advice for advice in given_rate.advice)


def test_a_rate_is_not_proposed_for_an_optimizer_of_another_family():
    known = dataclasses.replace(attention(), base_lr=3e-4, base_batch=64)
    names = ("adamw", "adamw-8bit", "sgd", "lamb")
    rows = [study([known], [{"optimizer": name}], ["a100-40gb"], executor=Here()).rows[0] for name in names]

    assert [row.learning_rate is not None for row in rows] == [True, True, False, False]
    assert all(row.fits for row in rows)  # and none is refused for it


def test_a_layerwise_optimizer_is_not_told_to_be_one(a100):
    def said(name):
        tape = dataclasses.replace(fit.tape, optimizer_family=name)
        return [advice for advice in bsmodel.plan(dataclasses.replace(fit, tape=tape), 1 << 15).advice if "tune the learning rate" in advice]

    fit = bsmodel.fit(bsmodel.trace(attention(), SGD, a100), a100)
    assert "consider lars, and tune" in said("sgd")[0] and "consider lamb, and tune" in said("adam")[0] and "consider" not in said("layerwise")[0]


def test_a_card_without_a_rate_is_untimed_and_says_which(tape, a100):
    """A tape in float32, and one product of it in bfloat16."""
    from bsmodel.timing.kernels import KINDS, product_seconds
    from bsmodel.timing.rates import rates_of

    def without(name):
        return a100.model_copy(update={name: None, "sources": tuple(kept for each in a100.sources if (kept := each.without(name)))})

    fit, missing, unhalved = bsmodel.fit(tape, a100), without("fp32_flops_per_s"), without("bf16_dense_flops_per_s")
    plan = bsmodel.plan(dataclasses.replace(fit, gpu=missing))

    assert plan.timing is None and "a100-40gb has no fp32_flops_per_s; step time needs it, add it to the row" in plan.untimed
    with pytest.raises(InvalidInputError, match="no bf16_dense_flops_per_s"):
        product_seconds([np.ones(1)] * 4, [KINDS["matmul"]], unhalved, rates_of(unhalved, "bf16", "likely"), "bf16")


def test_a_learning_rate_is_finite():
    with pytest.raises(InvalidInputError, match="learning rate is inf"):
        planning.learning_rate("sgd", 2**20, 1e305, 1)


def test_batch_norm_is_spoken_of_where_there_is_one(tape, a100):
    said = [
        any("batch norm" in advice for advice in bsmodel.plan(bsmodel.fit(recorded, of_size(a100, 600)), 10_000).advice)
        for recorded in (tape, bsmodel.trace(attention(), Training(), a100))
    ]

    assert said == [True, False]


# -- what bounds a batch -----------------------------------------------------------------------------------------------------------------


def test_a_model_that_memory_does_not_limit_is_said_to_be_one(a100):
    import torch

    tiny = workload(lambda: torch.nn.Linear(4, 2), lambda size: torch.zeros(size, 4), lambda model, batch: model(batch).sum(), name="tiny")
    fit = bsmodel.fit(bsmodel.trace(tiny, SGD, a100), a100)
    row = study([tiny], [SGD], ["a100-40gb"], executor=Here()).rows[0]

    assert fit.batch == 1 << 20 and not fit.bounded and not row.bounded
    assert "1,048,576" in fit.verdict and "memory does not limit it" in fit.verdict and fit.binding == "not by memory"
    assert bsmodel.plan(fit).split.micro_batch == 1 << 20


def test_no_batch_on_another_path_is_the_largest(tape, a100):
    capped = dataclasses.replace(tape, same_path_up_to=63)
    fit = bsmodel.fit(capped, a100)

    assert (fit.batch, fit.likely_batch, fit.bounded) == (63, 63, False)
    assert "another path from batch 64 on" in fit.binding and "another path from batch 64 on" in fit.verdict
    assert bsmodel.plan(fit, 1024).split.micro_batch <= 63
    small = of_size(a100, 520)
    assert bsmodel.fit(capped, small) == dataclasses.replace(bsmodel.fit(tape, small), tape=capped)
    for ask in (lambda: bsmodel.predict(capped, a100, 64), lambda: step_time(capped, a100, [1, 64]), lambda: bsmodel.breakdown(capped, 64)):
        with pytest.raises(InvalidInputError, match="batch is 64; the step takes another path from batch 64 on"):
            ask()


def test_peaks_are_shown_of_the_recorded_path_and_refused_of_another_card(tape, a100):
    capped = dataclasses.replace(tape, same_path_up_to=63)

    assert [peak.batch for peak in planning.peaks_around(capped, a100, 1, (10, 60))] == [1, 2, 4, 8, 10, 16, 32, 60]
    with pytest.raises(InvalidInputError, match="compute capability"):
        planning.peaks_around(tape, bsmodel.Gpu.named("t4-16gb"), 1, (10, 60))


# -- a step of the workload's own --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_step(a100):
    def step(model, optimizer, batch):
        model(batch[0].cuda()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return bsmodel.trace(workload(loss=None, step=step), SGD, a100)


def test_an_own_step_is_not_repeated_to_reach_a_target(own_step, a100):
    card = of_size(a100, 600)
    fit = bsmodel.fit(own_step, card)
    row = study([own_step], gpus=[card], goals=[Goal(target_batch=10 * fit.batch)], executor=Here()).rows[0]

    assert bsmodel.plan(fit, fit.batch).split == Split(fit.batch, 1, 1)
    assert bsmodel.plan(fit, fit.batch // 2).split.accumulation == 1
    with pytest.raises(UnreachableTargetError, match="its own step does not accumulate"):
        bsmodel.plan(fit, 10 * fit.batch)
    assert row.status == "does not fit" and "its own step does not accumulate" in row.verdict


def test_an_own_step_has_no_micro_steps(own_step, a100):
    for ask in (bsmodel.fit, lambda tape, gpu, n: bsmodel.predict(tape, gpu, 8, n), lambda tape, gpu, n: step_time(tape, gpu, 8, n)):
        with pytest.raises(InvalidInputError, match="does not accumulate"):
            ask(own_step, a100, 2)
    assert bsmodel.fit(dataclasses.replace(own_step, accumulation=4), a100).accumulation == 1


# -- numbers -----------------------------------------------------------------------------------------------------------------------------

WRONG_COUNTS = [0, -1, 2.5, math.nan, math.inf, 10**26, True, "8", None]
TAKES_COUNTS = {
    "batch of predict": lambda fit, n: bsmodel.predict(fit.tape, fit.gpu, n),
    "batch of footprint": lambda fit, n: bsmodel.footprint(fit.tape)(n),
    "batches of footprint": lambda fit, n: bsmodel.footprint(fit.tape)([1, n]),
    "batch of breakdown": lambda fit, n: bsmodel.breakdown(fit.tape, n),
    "batch of step_time": lambda fit, n: step_time(fit.tape, fit.gpu, n),
    "batches of step_time": lambda fit, n: step_time(fit.tape, fit.gpu, [1, n]),
    "largest of curve": lambda fit, n: curve(fit.tape, fit.gpu, n),
    "target of splits": lambda fit, n: planning.splits(n, 8, 8),
    "batch of learning_rate": lambda fit, n: planning.learning_rate("sgd", n, 0.1, 256),
    "accumulation of a recipe": lambda fit, n: Training(accumulation=n),
}
OR_NONE = {
    "devices": lambda fit, n: bsmodel.plan(bsmodel.fit(fit.tape, of_size(fit.gpu, 4000)), 64, n),  # with room for NCCL
    "target": lambda fit, n: bsmodel.plan(fit, n),
    "samples": lambda fit, n: bsmodel.plan(fit, 64, samples=n),
    "base batch": lambda fit, n: bsmodel.plan(fit, 64, base_lr=0.1, base_batch=n),
    "accumulation of fit": lambda fit, n: bsmodel.fit(fit.tape, fit.gpu, n),
    "accumulation of predict": lambda fit, n: bsmodel.predict(fit.tape, fit.gpu, 8, n),
    "accumulation of footprint": lambda fit, n: bsmodel.footprint(fit.tape, n),
    "accumulation of step_time": lambda fit, n: step_time(fit.tape, fit.gpu, 8, n),
    "rank of a recipe": lambda fit, n: Training(lora_rank=n),
}


@pytest.mark.parametrize("value", WRONG_COUNTS, ids=str)
@pytest.mark.parametrize("name", [*TAKES_COUNTS, *OR_NONE])
def test_what_is_no_count_is_refused_in_one_line(fit, name, value):
    if value is None and name in OR_NONE:
        OR_NONE[name](fit, value)
        return
    with pytest.raises(InvalidInputError) as caught:
        {**TAKES_COUNTS, **OR_NONE}[name](fit, value)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize("value", [8, 8.0, np.int32(8), np.float64(8)], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", [*TAKES_COUNTS, *OR_NONE])
def test_a_whole_number_is_taken_whatever_its_type(fit, name, value):
    ask = {**TAKES_COUNTS, **OR_NONE}[name]

    assert str(ask(fit, value)) == str(ask(fit, 8))


def test_bytes_that_64_bits_do_not_hold_are_refused(fit, a100):
    form = bsmodel.footprint(fit.tape)
    most = form.envelope.polynomials[-1].per_sample

    for batch in ((1 << 63) // most + 1, [1, (1 << 63) // most + 1]):
        with pytest.raises(InvalidInputError, match="batch is"):
            form(batch)
    with pytest.raises(InvalidInputError, match="half an exbibyte"):
        bsmodel.predict(fit.tape, a100, (1 << 62) // most)
    for capacity in (-1, math.nan, 2.5, 10**26, "24GiB"):
        with pytest.raises(InvalidInputError, match="capacity is"):
            form.largest(capacity)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, "1", True], ids=str)
@pytest.mark.parametrize(
    "ask",
    [
        lambda fit, x: bsmodel.plan(fit, 64, samples=100, epochs=x),
        lambda fit, x: bsmodel.plan(fit, 64, base_lr=x),
        lambda fit, x: bsmodel.Price(x, "mine"),
        lambda fit, x: Training(gradient_clipping=x),
        lambda fit, x: knee(curve(fit.tape, fit.gpu, 8), x),
    ],
    ids=["epochs", "base_lr", "price", "gradient_clipping", "share"],
)
def test_what_is_no_finite_number_is_refused_in_one_line(fit, ask, value):
    with pytest.raises(InvalidInputError, match=r"^[^\n]*expected a finite number above 0( and at most 1e\+09)?$"):
        ask(fit, value)


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name in ("garbage_collection_threshold", "per_process_memory_fraction") for value in (math.nan, math.inf, "0.5", True)),
        *({name: value} for name in ("max_split_size_bytes", "max_non_split_rounding_bytes") for value in (math.nan, math.inf, 3e7 + 0.5, "32", True)),
        *({"roundup_power2_divisions": value} for value in (math.nan, 4.5, -4, "4", (4,) * 15, (4.5,) * 16)),
    ],
    ids=str,
)
def test_allocator_settings_that_are_no_numbers_are_refused(options):
    with pytest.raises(InvalidInputError, match=r"^allocator setting [^\n]*expected"):
        Settings(**options)
    with pytest.raises(InvalidInputError):
        Settings.parse("garbage_collection_threshold:nan")
    assert Settings(max_split_size_bytes=np.int64(64 * MiB)) == Settings(max_split_size_bytes=64.0 * MiB)


@pytest.mark.parametrize("field", ["memory_bytes", "bandwidth_bytes_per_s", "price_usd_per_hour"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 10**26], ids=str)
def test_a_row_of_a_card_has_finite_figures(a100, field, value):
    if field != "memory_bytes" and value == 10**26:
        return
    with pytest.raises(InvalidInputError):
        a100.model_copy(update={field: value})


def test_a_number_that_says_nothing_without_another_is_refused(tape, a100):
    found = bsmodel.fit(tape, a100)
    for alone in ({"epochs": 3}, {"base_batch": 256}):
        with pytest.raises(bsmodel.InvalidInputError, match="says nothing alone"):
            bsmodel.plan(found, **alone)
        with pytest.raises(bsmodel.InvalidInputError, match="says nothing alone"):
            bsmodel.Goal(**alone)


@pytest.mark.parametrize("mebibytes", [0, 20, 24, 64, 150])
def test_a_part_of_a_card_is_as_good_as_a_card_of_that_size(mebibytes, tape, a100):
    """Largest batch, headroom and verdict: what the context takes is not of the part."""
    part = bsmodel.fit(tape, of_size(a100, 1000), settings=Settings(per_process_memory_fraction=mebibytes / 1000))
    if not mebibytes:
        assert part.batch == 0 and "of 0 B, " in part.verdict
        return
    all_of_it = bsmodel.fit(tape, of_size(a100, 500 + mebibytes))

    for name in ("batch", "likely_batch", "headroom_bytes", "verdict"):
        assert getattr(part, name) == getattr(all_of_it, name)
