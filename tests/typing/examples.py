# SPDX-License-Identifier: Apache-2.0
"""Right and wrong uses of the library as type checkers see them, in the manner of msgspec's tests/typing; read by mypy and pyright, never run.

A wrong use that a checker comes to accept leaves its `type: ignore` unused, which both count as an error.
"""

from typing import assert_type

import altair
import numpy as np
from numpy.typing import NDArray

import bsmodel
from bsmodel import Envelope, Fit, Footprint, Gpu, ModuleRow, OperatorRow, Peak, Plan, Settings, StepTime, Study, Tape, Training, Trial, Workload
from bsmodel.memory import Breakdown, Moment, Share
from bsmodel.planning import Rung, Split, Timing, fastest, power_of_two_at_most, ranked, splits
from bsmodel.prices import Price
from bsmodel.timing import curve, knee

Counts = NDArray[np.int64]
Array = NDArray[np.float64]


def an_int_in_gives_an_int_an_array_an_array(form: Footprint, envelope: Envelope, batches: Counts) -> None:
    assert_type(envelope(8), int)
    assert_type(envelope(np.int64(8)), int)
    assert_type(envelope(batches), Counts)
    assert_type(envelope(range(1, 257)), Counts)
    assert_type(envelope.largest(24 * 2**30), int)
    assert_type(envelope.largest([24 * 2**30, 40 * 2**30]), Counts)
    assert_type(envelope.binding(8), int)
    assert_type(form(8), int)
    assert_type(form([1, 2, 3]), Counts)
    assert_type(form.largest(24 * 2**30), int)
    assert_type(form.largest(batches), Counts)
    assert_type(form.binding(8), Moment)

    envelope("8")  # type: ignore[arg-type]
    envelope(8.5)  # type: ignore[call-overload]
    envelope(batches / 2)  # type: ignore[arg-type]
    envelope.largest("24GiB")  # type: ignore[arg-type]
    form(None)  # type: ignore[call-overload]
    form.largest(24e9)  # type: ignore[call-overload]
    form(8).tolist()  # type: ignore[attr-defined]
    form(batches).bit_length()  # type: ignore[attr-defined]


def times_are_numbers_or_arrays(tape: Tape, gpu: Gpu, batches: Counts) -> None:
    one = bsmodel.step_time(tape, gpu, 8)
    assert_type(one, StepTime[int, float])
    assert_type(one.batch, int)
    assert_type(one.seconds, float)
    assert_type(one.mfu, float)
    assert_type(one.phases["forward"], float)
    assert_type(bsmodel.step_time(tape, gpu, 8, 4), StepTime[int, float])

    many = bsmodel.step_time(tape, gpu, range(1, 257))
    assert_type(many, StepTime[Counts, Array])
    assert_type(many.batch, Counts)
    assert_type(many.tokens_per_s, Array)
    assert_type(many.phases, dict[str, Array])
    assert_type(many.tokens_per_sample, int)
    assert_type(bsmodel.step_time(tape, gpu, batches, batches), StepTime[Counts, Array])
    assert_type(bsmodel.step_time(tape, gpu, 8, [1, 2, 4]), StepTime[Counts, Array])
    assert_type(curve(tape, gpu, 256), StepTime[Counts, Array])
    assert_type(knee(many), int)

    bsmodel.step_time(tape, gpu, 8.0)  # type: ignore[call-overload]
    bsmodel.step_time(tape, "a100-40gb", 8)  # type: ignore[call-overload]
    bsmodel.step_time(gpu, tape, 8)  # type: ignore[call-overload]
    one.seconds.max()  # type: ignore[attr-defined]
    one.seconds = 1.0  # type: ignore[misc]
    knee(one)  # type: ignore[arg-type]


def a_recipe_shows_its_fields() -> None:
    training = Training(precision="bf16-mixed", optimizer="adamw-8bit", accumulation=4, frozen=("embeddings",), zero_grad="zeros", lora_rank=8)
    assert_type(training.precision, str)
    assert_type(training.lora_rank, int | None)
    Training(optimizer=dict)  # any function of the parameters
    assert_type(Training(), Training)

    Training(precison="fp32")  # type: ignore[call-arg]
    Training(precision=16)  # type: ignore[arg-type]
    Training(accumulation="two")  # type: ignore[arg-type]
    Training(zero_grad="ones")  # type: ignore[arg-type]
    Training(optimizer=1e-4)  # type: ignore[arg-type]
    Training(ema=None)  # type: ignore[arg-type]
    training.precision = "fp32"  # type: ignore[misc]


def memory(tape: Tape, gpu: Gpu, settings: Settings) -> None:
    peak = bsmodel.predict(tape, gpu, 8, accumulation=2, settings=settings)
    assert_type(peak, Peak)
    assert_type(peak.reserved_bytes, int)
    assert_type(peak.fits, bool)
    assert_type(bsmodel.footprint(tape), Footprint)
    assert_type(bsmodel.breakdown(tape, 8), Breakdown)
    assert_type(bsmodel.breakdown(tape, 8)[0], Share)
    assert_type(bsmodel.by_module(tape, 8), tuple[ModuleRow, ...])
    assert_type(bsmodel.by_operator(tape, 8), tuple[OperatorRow, ...])
    assert_type(bsmodel.by_operator(tape, 8)[0].flops, int | None)
    fit = bsmodel.fit(tape, gpu)
    assert_type(fit, Fit)
    assert_type(fit.tape, Tape)
    assert_type(fit.gpu, Gpu)
    assert_type(fit.peak, Peak | None)

    bsmodel.predict(tape, gpu, [8, 16])  # type: ignore[arg-type]
    bsmodel.predict(tape, gpu)  # type: ignore[call-arg]
    bsmodel.predict(tape, gpu, 8, settings="expandable_segments:True")  # type: ignore[arg-type]
    bsmodel.fit(tape, "a100-40gb")  # type: ignore[arg-type]
    bsmodel.fit(gpu, tape)  # type: ignore[arg-type]
    fit.peak.reserved_bytes  # type: ignore[union-attr]  # noqa: B018
    peak.reserved_gib  # type: ignore[attr-defined]  # noqa: B018
    peak.batch = 9  # type: ignore[misc]


def plans(fit: Fit, tape: Tape, gpu: Gpu) -> None:
    plan = bsmodel.plan(fit, target_batch=256, devices=2, samples=50_000, epochs=90, base_lr=0.1, price=Price(2.0, "mine"))
    assert_type(plan, Plan)
    assert_type(plan.split, Split)
    assert_type(plan.split.effective_batch, int)
    assert_type(plan.timing, Timing | None)
    assert_type(plan.total_steps, int | None)
    assert_type(bsmodel.ladder(fit), tuple[Rung, ...])
    assert_type(bsmodel.ladder(fit)[0].peak, Peak)
    assert_type(splits(256, 64, 32), tuple[Split, ...])
    assert_type(fastest(splits(256, 64, 32), tape, gpu), Split)
    assert_type(power_of_two_at_most(100), int)
    assert_type(ranked([plan]), tuple[Plan, ...])

    bsmodel.plan(fit, target_batch="256")  # type: ignore[arg-type]
    bsmodel.plan(tape)  # type: ignore[arg-type]
    bsmodel.plan(fit, 256, price=2.0)  # type: ignore[arg-type]
    plan.timing.hours  # type: ignore[union-attr]  # noqa: B018
    bsmodel.ladder(tape)  # type: ignore[arg-type]
    ranked([fit])  # type: ignore[type-var]


def recordings(workload: Workload, gpu: Gpu) -> None:
    assert_type(bsmodel.trace(workload), Tape)
    assert_type(bsmodel.trace(Workload.named("resnet50"), Training(), Gpu.named("a100-40gb")), Tape)
    assert_type(Gpu.all(), tuple[Gpu, ...])
    assert_type(gpu.usable_bytes, int)
    assert_type(gpu.price_usd_per_hour, float | None)

    bsmodel.trace("resnet50")  # type: ignore[arg-type]
    bsmodel.trace(workload, {"precision": "fp32"})  # type: ignore[arg-type]
    Gpu.named(40)  # type: ignore[arg-type]


def charts(fit: Fit, plan: Plan, tape: Tape, gpu: Gpu, study: Study, trial: Trial) -> None:
    for value in (fit, plan, bsmodel.step_time(tape, gpu, 8), bsmodel.step_time(tape, gpu, [8, 16]), bsmodel.breakdown(tape, 8), study, trial):
        assert_type(value.plot(), altair.LayerChart)

    gpu.plot()  # type: ignore[attr-defined]
    bsmodel.footprint(tape).plot()  # type: ignore[attr-defined]
    fit.plot("memory")  # type: ignore[call-arg]
