# SPDX-License-Identifier: Apache-2.0
"""From the largest micro-batch to what to run: split, learning rate, number of steps, hours and money."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from bsmodel.errors import InvalidInputError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.memory import LARGEST, Fit, Peak, Settings, buckets_bytes, devices_of, footprint, on_devices, predict
from bsmodel.memory import fit as fit_tape
from bsmodel.planning.advice import advice
from bsmodel.planning.learning_rate import learning_rate, warmup_steps
from bsmodel.planning.money import Timing, catalogue_price, timing_of, why_untimed
from bsmodel.planning.splits import Split, eligible, fastest, splits
from bsmodel.prices import Price
from bsmodel.shown import Charted
from bsmodel.tape import Tape
from bsmodel.timing import nodes
from bsmodel.units import finite, whole

MOST_EPOCHS = 1e9


@dataclass(frozen=True)
class Rung:
    """One step of the ladder of batches to try, with its memory."""

    batch: int
    peak: Peak


@dataclass(frozen=True)
class Plan(Charted):
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

    @property
    def micro_steps(self) -> int:
        """Those that memory is of: the split's, or the fit's where it was asked with more; from two on, gradients are kept between them."""
        return max(self.fit.accumulation, self.split.accumulation)


def ladder(fit: Fit) -> tuple[Rung, ...]:
    """Powers of two up to the largest micro-batch, and that batch itself: what to try in short runs, with the memory of each."""
    powers = [1 << k for k in range(fit.batch.bit_length())]
    return tuple(Rung(batch, predict(fit.tape, fit.gpu, batch, fit.accumulation, fit.settings)) for batch in sorted({*powers, fit.batch} - {0}))


def peaks_around(tape: Tape, gpu: Gpu, accumulation: int, batches: tuple[int, int], settings: Settings | None = None) -> list[Peak]:
    """The memory that a picture shows: at powers of two up to the larger of `batches`, at both, and at the next power of two, which is too large.

    Batches at which the step takes another path than recorded are left out. Raises `InvalidInputError` for a card that the recording is not of.
    """
    known = LARGEST if tape.same_path_up_to is None else min(LARGEST, tape.same_path_up_to)
    asked = sorted({*batches, *(1 << power for power in range(max(batches).bit_length() + 1))})
    return [predict(tape, gpu, batch, accumulation, settings) for batch in asked if 0 < batch <= known]


def plan(
    fit: Fit,
    target_batch: int | None = None,
    devices: int | None = None,
    samples: int | None = None,
    epochs: float | None = None,
    base_lr: float | None = None,
    base_batch: int | None = None,
    price: Price | Sequence[Price] | None = None,
) -> Plan:
    """How to reach `target_batch` samples per optimizer step on `devices` GPUs like the fit's (default: the largest micro-batch, as often as the fit's
    accumulation says; with a target the split says how often, and the fit's accumulation only how much memory there has to be).

    `samples` in the training set and `epochs` give steps, hours and, with a price (default: the catalogue's; of several the cheapest for so
    many devices), money; `base_lr` at `base_batch` gives the learning rate. A plan with accumulation uses the peak with gradients kept alive
    between micro-steps, one for several devices a fit with the gradient buckets of data parallelism. Raises `InvalidInputError` for numbers
    that are none or out of range, or a fit of nothing; `UnreachableTargetError` for a target that needs accumulation where the step cannot.
    """
    require_together(samples=samples, epochs=epochs, base_lr=base_lr, base_batch=base_batch)
    fit, target, devices, samples, epochs = _asked(fit, target_batch, devices_of(fit.tape) if devices is None else devices, samples, epochs)
    untimed = why_untimed(fit.tape, fit.gpu)
    fewest, chosen, peak = _chosen(fit, target, devices, in_time=not untimed and target_batch is not None)
    rate, rule = _rate(fit, chosen, base_lr, base_batch)
    per_epoch = math.ceil(samples / chosen.effective_batch) if samples is not None else None
    total = _steps(per_epoch, epochs) if per_epoch is not None and epochs is not None else None
    timing = None if untimed else timing_of(fit, chosen, per_epoch, total, _prices(fit, price))
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
        *(warmup_steps(per_epoch, total), per_epoch, total),
        advice(fit.tape, fit.gpu, chosen, rate),
    )


def _steps(per_epoch: int, epochs: float) -> int:
    """Optimizer steps of so many epochs, as they are written in decimals: 110 of 1.1 times 100, and not what the float next to it gives."""
    return math.ceil(per_epoch * Fraction(repr(epochs)))


def _prices(fit: Fit, given: Price | Sequence[Price] | None) -> tuple[Price, ...] | None:
    """The prices that are given, else that of the card's row, where it has one."""
    found = catalogue_price(fit.gpu) if given is None else given
    return None if found is None else (found,) if isinstance(found, Price) else tuple(found)


def _asked(fit: Fit, target: int | None, devices: int, samples: int | None, epochs: float | None) -> tuple[Fit, int, int, int | None, float | None]:
    """The fit for that many devices, and target, devices, samples and epochs, in range."""
    devices = whole("devices", devices)
    tape = on_devices(fit.tape, devices)
    nodes(tape, fit.gpu)  # which refuses more devices than a node of its network has
    alike = buckets_bytes(tape) == buckets_bytes(fit.tape)  # however many share, each takes the same
    fit = replace(fit, tape=tape) if alike else fit_tape(tape, fit.gpu, fit.accumulation, fit.settings)
    if fit.batch < 1:
        raise InvalidInputError(f"{fit.tape.name} {fit.verdict}")
    known_samples = None if samples is None else whole("samples", samples)
    known_epochs = None if epochs is None else finite("epochs", epochs, above=0, most=MOST_EPOCHS)
    own = fit.batch * fit.accumulation * (devices // tape.tensor)
    return fit, own if target is None else whole("target batch", target), devices, known_samples, known_epochs


def require_together(**given: object) -> None:
    """Raises `InvalidInputError` for a number that says nothing without another: epochs without samples, a base batch without its rate."""
    for name, other in (("epochs", "samples"), ("base_batch", "base_lr")):
        if given[name] is not None and given[other] is None:
            raise InvalidInputError(f"{name} is given without {other}, and says nothing alone; give both")


def _rate(fit: Fit, chosen: Split, base_lr: float | None, base_batch: int | None) -> tuple[float | None, str]:
    """The learning rate of a split and its rule, where one is known at some batch (256 unless said)."""
    if base_lr is None:
        return None, ""
    return learning_rate(fit.tape.optimizer_family, chosen.effective_batch, base_lr, 256 if base_batch is None else base_batch)


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

    gpu = fit.gpu if in_time else None
    candidates: list[Split] = []

    def best(among: Sequence[Split]) -> tuple[Split, Split]:
        found = eligible(among, target, fit.tape, gpu)
        return found[0], fastest(found, fit.tape, fit.gpu) if in_time else found[0]

    for limit in _limits(fit, target, devices // fit.tape.tensor):
        candidates = list(splits(target, fit.batch, limit, devices, fit.tape.tensor))
        fewest, chosen = best(candidates)
        if peak_of(fewest).fits and peak_of(chosen).fits:
            return fewest, chosen, peak_of(chosen)
    while candidates:
        fewest, chosen = best(candidates)
        failing = [split for split in (fewest, chosen) if not peak_of(split).fits]
        if not failing:
            return fewest, chosen, peak_of(chosen)
        candidates = [split for split in candidates if split not in failing]
    raise UnreachableTargetError(f"no split of {target} survives; a micro-batch of {fit.batch}, the largest, does")


def _limits(fit: Fit, target: int, replicas: int) -> Iterator[int]:
    """The largest micro-batch that accumulates: by the closed form, which is seldom too large for the split it leads to; else by replay."""
    if fit.tape.own_step:
        if round(target / replicas) > fit.batch:
            raise UnreachableTargetError(f"{target} samples a step are more than {fit.batch * replicas}, and its own step does not accumulate gradients")
        yield 0
        return
    if target <= fit.batch * replicas or fit.accumulation > 1:
        yield fit.batch
        return
    yield min(footprint(fit.tape, 2, fit.gpu).largest(fit.gpu.usable_bytes), fit.batch)
    yield fit_tape(fit.tape, fit.gpu, 2, fit.settings).batch
