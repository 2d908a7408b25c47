# SPDX-License-Identifier: Apache-2.0
"""From the largest micro-batch to accumulation, learning rate, number of steps, hours and money."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bsmodel.errors import InvalidInputError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, Peak, footprint, predict
from bsmodel.memory import fit as fit_tape
from bsmodel.tape import Tape
from bsmodel.throughput import StepTime, curve, knee, step_time

LARGE_BATCH = 16_384  # above it layer-wise rates (LARS, LAMB) are the usual advice: You 2017, arXiv 1708.03888; You 2019, arXiv 1904.00962
WARMUP_EPOCHS = 5  # Goyal 2017, arXiv 1706.02677: gradual warm-up over the first five epochs
_ROUNDING = 8  # micro-batches divisible by this are preferred over slightly larger ones

TRADE_OFF = "small batches: noisier gradients, often better generalisation; large batches: smoother, fewer steps, may end in sharper minima"


@dataclass(frozen=True)
class Split:
    """`micro_batch x accumulation x devices` samples per optimizer step."""

    micro_batch: int
    accumulation: int
    devices: int

    @property
    def effective_batch(self) -> int:
        """Samples per optimizer step."""
        return self.micro_batch * self.accumulation * self.devices


@dataclass(frozen=True)
class Rung:
    """One step of the ladder of batches to try, with its memory."""

    batch: int
    peak: Peak


@dataclass(frozen=True)
class Price:
    """US dollars for one card and hour, whose figure it is, and of which day."""

    usd_per_hour: float
    source: str


@dataclass(frozen=True)
class Timing:
    """How long the plan takes on its GPUs, and what that costs; what needs samples, epochs or a price is None without them.

    `step` is one optimizer step on one device. Devices are taken to share the work evenly; what they say to each other is not counted.
    """

    step: StepTime
    samples_per_s: float
    knee: int  # the smallest micro-batch with nine tenths of the best throughput
    fastest_batch: int  # the micro-batch with the best throughput
    hours_per_epoch: float | None
    hours: float | None
    price: Price | None
    cost_usd: float | None


@dataclass(frozen=True)
class Plan:
    """What to run: how the batch is split, at which learning rate, for how many steps, how long and for how much.

    `split` is the fastest of those nearest to the target, `fewest` the one with the fewest micro-steps. `timing` is None where the card's
    row lacks a rate; `untimed` then says which.
    """

    fit: Fit
    target_batch: int
    split: Split
    fewest: Split
    exact: bool
    peak: Peak
    timing: Timing | None
    untimed: str
    learning_rate: float | None
    learning_rate_rule: str
    warmup_steps: int | None
    steps_per_epoch: int | None
    total_steps: int | None
    advice: tuple[str, ...]


def power_of_two_at_most(batch: int) -> int:
    """The largest power of two at or below `batch`; 0 for 0."""
    return 1 << (batch.bit_length() - 1) if batch > 0 else 0


def ladder(fit: Fit) -> tuple[Rung, ...]:
    """Powers of two up to the largest micro-batch, and that batch itself: what to try in short runs, with the memory of each."""
    powers = [1 << k for k in range(fit.batch.bit_length())]
    return tuple(Rung(batch, predict(fit.tape, fit.gpu, batch, fit.accumulation, fit.settings)) for batch in sorted({*powers, fit.batch} - {0}))


def splits(target_batch: int, largest: int, largest_accumulating: int, devices: int = 1) -> tuple[Split, ...]:
    """The splits to choose from: nearest to the target first, then fewest micro-steps, then even micro-batches.

    Without accumulation the micro-batch may be `largest`; with it, gradients stay alive and it may be `largest_accumulating`.
    Micro-batches down to half of that are tried, so none takes more than twice the fewest steps. The first hits the target exactly
    whenever one of those divides the target over the devices.
    Raises `InvalidInputError` for a target or number of devices below 1, or where no batch fits, `UnreachableTargetError` where one fits
    without accumulation only.
    """
    if target_batch < 1 or devices < 1:
        raise InvalidInputError(f"target batch is {target_batch} on {devices} devices; expected at least 1 of each")
    if largest < 1:
        raise InvalidInputError("no batch fits, so there is nothing to split")
    per_device = max(1, round(target_batch / devices))
    if per_device > largest and largest_accumulating < 1:
        raise UnreachableTargetError(f"the target needs accumulation, and its gradients leave no room for a sample; at most {largest * devices} without")
    whole = [Split(per_device, 1, devices)] if per_device <= largest else []
    most = min(largest_accumulating, per_device // 2) if whole else largest_accumulating
    accumulated = [Split(micro, max(1, round(per_device / micro)), devices) for micro in range(max(1, most // 2), most + 1)]
    candidates = whole + [split for split in accumulated if split.accumulation > 1 or not whole]
    return tuple(sorted(candidates, key=lambda s: (_missed(s, target_batch), s.accumulation, s.micro_batch % 2, s.micro_batch % _ROUNDING != 0)))


def _missed(split: Split, target_batch: int) -> int:
    return abs(split.effective_batch - target_batch)


def fastest(candidates: Sequence[Split], tape: Tape, gpu: Gpu) -> Split:
    """The split whose optimizer step is predicted to take the least time; among equals the earliest."""
    micro_batches, accumulations = (np.array([getattr(split, name) for split in candidates]) for name in ("micro_batch", "accumulation"))
    return candidates[int(np.argmin(step_time(tape, gpu, micro_batches, accumulations).seconds))]


def learning_rate(family: str, batch: int, base_lr: float, base_batch: int) -> tuple[float, str]:
    """The learning rate at an effective batch, from one known at another.

    SGD: `lr = base_lr * batch / base_batch` (linear; Goyal 2017, arXiv 1706.02677, shown to 8192). Adam family and layer-wise
    optimizers: `lr = base_lr * sqrt(batch / base_batch)` (Krizhevsky 2014, arXiv 1404.5997; Malladi 2022, arXiv 2205.10287).
    Returns the rate and the name of the rule. Valid below the gradient noise scale; beyond it neither rule holds.
    """
    if base_lr <= 0 or base_batch < 1:
        raise InvalidInputError(f"base learning rate {base_lr} at base batch {base_batch}; expected both positive")
    ratio = batch / base_batch
    return (base_lr * ratio, "linear") if family == "sgd" else (base_lr * math.sqrt(ratio), "square root")


def plan(
    fit: Fit,
    target_batch: int | None = None,
    devices: int = 1,
    samples: int | None = None,
    epochs: float | None = None,
    base_lr: float | None = None,
    base_batch: int | None = None,
    price: Price | None = None,
) -> Plan:
    """How to reach `target_batch` samples per optimizer step on `devices` GPUs like the fit's (default: the largest micro-batch).

    `samples` in the training set and `epochs` give steps, hours and, with a price (default: the catalogue's), money; `base_lr` at
    `base_batch` gives the learning rate. A plan with accumulation uses the peak with gradients kept alive between micro-steps.
    Raises `InvalidInputError` for numbers below 1 or a fit of nothing.
    """
    if fit.batch < 1:
        raise InvalidInputError(f"{fit.tape.name} {fit.verdict}")
    for name, value in (("samples", samples), ("epochs", epochs)):
        if value is not None and value <= 0:
            raise InvalidInputError(f"{name} is {value}; expected a positive number")
    target = fit.batch * devices if target_batch is None else target_batch
    untimed = _untimed(fit.tape, fit.gpu)
    fewest, chosen, peak = _chosen(fit, target, devices, in_time=not untimed and target_batch is not None)
    rate, rule = (None, "")
    if base_lr is not None:
        rate, rule = learning_rate(fit.tape.optimizer_family, chosen.effective_batch, base_lr, 256 if base_batch is None else base_batch)
    per_epoch = math.ceil(samples / chosen.effective_batch) if samples is not None else None
    total = math.ceil(per_epoch * epochs) if per_epoch is not None and epochs is not None else None
    timing = None if untimed else _timing(fit, chosen, per_epoch, total, price or catalogue_price(fit.gpu))
    return Plan(
        fit,
        target,
        chosen,
        fewest,
        chosen.effective_batch == target,
        peak,
        timing,
        untimed,
        rate,
        rule,
        _warmup(per_epoch, total),
        per_epoch,
        total,
        _advice(fit, chosen),
    )


def _chosen(fit: Fit, target: int, devices: int, in_time: bool) -> tuple[Split, Split, Peak]:
    """Of the nearest splits the one with the fewest micro-steps and the fastest, with its peak; both survive.

    Where none of the nearest does, the next nearest that does: a micro-batch below the largest need not survive, since what is cached fits
    the larger one better, now and then.
    """

    @functools.cache
    def peak_of(split: Split) -> Peak:
        accumulation = max(fit.accumulation, split.accumulation)
        known = fit.peak if (split.micro_batch, accumulation) == (fit.batch, fit.accumulation) else None
        return known or predict(fit.tape, fit.gpu, split.micro_batch, accumulation, fit.settings)

    candidates: tuple[Split, ...] = ()
    for limit in _limits(fit, target, devices):
        candidates = splits(target, fit.batch, limit, devices)
        nearest = [split for split in candidates if _missed(split, target) == _missed(candidates[0], target)]
        fewest, best = nearest[0], fastest(nearest, fit.tape, fit.gpu) if in_time else nearest[0]
        if peak_of(fewest).fits and peak_of(best).fits:
            return fewest, best, peak_of(best)
    for split in candidates:
        if peak_of(split).fits:
            return split, split, peak_of(split)
    raise UnreachableTargetError(f"no split of {target} survives; a micro-batch of {fit.batch}, the largest, does")


def _limits(fit: Fit, target: int, devices: int) -> Iterator[int]:
    """The largest micro-batch that accumulates: by the closed form, which is seldom too large for the split it leads to; else by replay."""
    if target <= fit.batch * devices or fit.accumulation > 1:
        yield fit.batch
        return
    yield min(int(footprint(fit.tape, 2).largest(fit.gpu.usable_bytes)), fit.batch)
    yield fit_tape(fit.tape, fit.gpu, 2, fit.settings).batch


def ranked(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Plans by what the run costs, or a sample where the run is not given, then by throughput; those without a price or a time come last."""

    def rank(plan: Plan) -> tuple[float, float]:
        timing = plan.timing
        if timing is None:
            return math.inf, 0.0
        if timing.price is None:
            return math.inf, -timing.samples_per_s
        a_sample = timing.price.usd_per_hour * plan.split.devices / timing.samples_per_s
        return (a_sample if timing.cost_usd is None else timing.cost_usd), -timing.samples_per_s

    return tuple(sorted(plans, key=rank))


def catalogue_price(gpu: Gpu) -> Price | None:
    """The price in the card's row, with its source and day, or None where it has none."""
    source = gpu.source_of("price_usd_per_hour")
    if gpu.price_usd_per_hour is None or source is None:
        return None
    return Price(gpu.price_usd_per_hour, f"{source.source}, {source.checked}")


def _untimed(tape: Tape, gpu: Gpu) -> str:
    """Why no time can be predicted on this card, or nothing."""
    try:
        step_time(tape, gpu, 1)
    except InvalidInputError as error:
        return str(error)
    return ""


def _timing(fit: Fit, chosen: Split, per_epoch: int | None, total: int | None, price: Price | None) -> Timing:
    step = step_time(fit.tape, fit.gpu, chosen.micro_batch, max(fit.accumulation, chosen.accumulation))
    times = curve(fit.tape, fit.gpu, fit.batch)
    seconds = float(step.seconds)
    hours = seconds * total / 3600 if total is not None else None
    return Timing(
        step,
        float(step.samples_per_s) * chosen.devices,
        knee(times),
        int(times.batch[np.argmax(times.samples_per_s)]),
        seconds * per_epoch / 3600 if per_epoch is not None else None,
        hours,
        price,
        hours * price.usd_per_hour * chosen.devices if hours is not None and price is not None else None,
    )


def _warmup(per_epoch: int | None, total: int | None) -> int | None:
    """Five epochs, but at most a tenth of the run."""
    if per_epoch is None:
        return None
    return WARMUP_EPOCHS * per_epoch if total is None else min(WARMUP_EPOCHS * per_epoch, math.ceil(total / 10))


def _advice(fit: Fit, chosen: Split) -> tuple[str, ...]:
    found = [TRADE_OFF]
    if chosen.effective_batch > LARGE_BATCH:
        better = "lars" if fit.tape.optimizer_family == "sgd" else "lamb"
        found.append(f"above {LARGE_BATCH} samples a step consider {better}, and tune the learning rate: no scaling rule is safe there")
    if chosen.devices > 1:
        found.append("times take the devices to share the work evenly; what they say to each other comes on top")
    if chosen.accumulation > 1:
        found.append("batch norm sees the micro-batch, not the effective batch; other layers do not notice accumulation")
    return tuple(found)
