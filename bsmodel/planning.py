# SPDX-License-Identifier: Apache-2.0
"""From the largest micro-batch to accumulation, learning rate and number of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bsmodel.errors import InvalidInputError
from bsmodel.memory import Fit, Peak, predict
from bsmodel.memory import fit as fit_tape

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
class Plan:
    """What to run: how the batch is split, at which learning rate, for how many steps."""

    fit: Fit
    target_batch: int
    split: Split
    exact: bool
    peak: Peak
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
    return tuple(Rung(batch, predict(fit.tape, fit.gpu, batch, fit.accumulation)) for batch in sorted({*powers, fit.batch} - {0}))


def split(target_batch: int, largest: int, largest_accumulating: int, devices: int = 1) -> Split:
    """Micro-batch and accumulation steps for a target: nearest to it first, then the fewest steps, then even micro-batches.

    Without accumulation the micro-batch may be `largest`; with it, gradients stay alive and it may be `largest_accumulating`.
    Micro-batches down to half of that are tried, so no plan takes more than twice the fewest steps. Exact whenever one of them divides
    the target over the devices.
    Raises `InvalidInputError` for a target or number of devices below 1, or where no batch fits.
    """
    if target_batch < 1 or devices < 1:
        raise InvalidInputError(f"target batch is {target_batch} on {devices} devices; expected at least 1 of each")
    if largest < 1:
        raise InvalidInputError("no batch fits, so there is nothing to split")
    per_device = max(1, round(target_batch / devices))
    if per_device <= largest:
        return Split(per_device, 1, devices)
    if largest_accumulating < 1:
        raise InvalidInputError(f"the target needs accumulation, and its gradients leave no room for a sample; at most {largest * devices} without")
    micro_batches = range(max(1, largest_accumulating // 2), largest_accumulating + 1)
    candidates = (Split(micro, max(1, round(per_device / micro)), devices) for micro in micro_batches)
    return min(candidates, key=lambda s: (abs(s.effective_batch - target_batch), s.accumulation, s.micro_batch % 2, s.micro_batch % _ROUNDING != 0))


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
) -> Plan:
    """How to reach `target_batch` samples per optimizer step on `devices` GPUs like the fit's (default: the largest micro-batch).

    `samples` in the training set and `epochs` give steps; `base_lr` at `base_batch` gives the learning rate. A plan with accumulation
    uses the peak with gradients kept alive between micro-steps. Raises `InvalidInputError` for numbers below 1 or a fit of nothing.
    """
    if fit.batch < 1:
        raise InvalidInputError(f"{fit.tape.name} {fit.verdict}")
    for name, value in (("samples", samples), ("epochs", epochs)):
        if value is not None and value <= 0:
            raise InvalidInputError(f"{name} is {value}; expected a positive number")
    target = fit.batch * devices if target_batch is None else target_batch
    accumulating = fit.batch
    if target > fit.batch * devices and fit.accumulation == 1:
        accumulating = fit_tape(fit.tape, fit.gpu, accumulation=2).batch
    chosen = split(target, fit.batch, accumulating, devices)
    accumulation = max(fit.accumulation, chosen.accumulation)
    known = fit.peak if (chosen.micro_batch, accumulation) == (fit.batch, fit.accumulation) else None
    peak = known or predict(fit.tape, fit.gpu, chosen.micro_batch, accumulation)
    rate, rule = (None, "")
    if base_lr is not None:
        rate, rule = learning_rate(fit.tape.optimizer_family, chosen.effective_batch, base_lr, 256 if base_batch is None else base_batch)
    per_epoch = math.ceil(samples / chosen.effective_batch) if samples is not None else None
    total = math.ceil(per_epoch * epochs) if per_epoch is not None and epochs is not None else None
    return Plan(
        fit,
        target,
        chosen,
        chosen.effective_batch == target,
        peak,
        rate,
        rule,
        _warmup(per_epoch, total),
        per_epoch,
        total,
        _advice(fit, chosen),
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
    if chosen.accumulation > 1:
        found.append("batch norm sees the micro-batch, not the effective batch; other layers do not notice accumulation")
    return tuple(found)
