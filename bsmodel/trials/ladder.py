# SPDX-License-Identifier: Apache-2.0
"""Which batches a trial tries: powers of two up to what is predicted to fit, each split, timed and given its learning rate by a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bsmodel.errors import InvalidInputError, UnreachableTargetError
from bsmodel.memory import Fit, predict
from bsmodel.planning import LARGE_BATCH, Split, learning_rate, plan, splits, warmup_steps
from bsmodel.timing import step_time
from bsmodel.training import Training
from bsmodel.trials.values import Rung
from bsmodel.units import whole


@dataclass(frozen=True)
class Rate:
    """A learning rate that works, and the batch that it works at."""

    learning_rate: float
    batch: int


@dataclass(frozen=True)
class Course:
    """How long each run is: so many `steps`, or as many as see `samples`; and its warm-up, by the plan's rule where it is not given.

    `length` are the samples of an epoch, None where nobody knows.
    """

    steps: int | None
    samples: int | None = None
    warmup: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.samples is not None:
            raise InvalidInputError("steps and samples are both given; give one: at each batch it makes the other")

    def of(self, batch: int) -> tuple[int, int]:
        """Steps at a batch, and those of its warm-up."""
        steps = whole("steps", self.steps) if self.samples is None else -(-whole("samples", self.samples) // batch)
        if self.warmup is not None:
            return steps, whole("warmup", self.warmup, least=0)
        return steps, warmup_steps(steps if self.length is None else math.ceil(self.length / batch), steps) or 0


@dataclass(frozen=True)
class Ladder:
    """The rungs, from the smallest batch to the largest, and what is to be said of those that were left out."""

    rungs: tuple[Rung, ...]
    remarks: tuple[str, ...] = ()


def powers(low: int, high: int) -> list[int]:
    """`low`, its doublings below `high`, and `high`; raises `InvalidInputError` where that is below `low`."""
    low, high = whole("smallest batch", low), whole("largest batch", high)
    if high < low:
        raise InvalidInputError(f"batches are {low}:{high}; expected the smaller one first")
    doublings = [low << times for times in range((high // low).bit_length())]
    return sorted({*doublings, high})


def rungs(
    batches: Sequence[int],
    training: Training,
    rate: Rate,
    course: Course,
    devices: int = 1,
    micro_batch: int | None = None,
    fitted: Fit | None = None,
) -> Ladder:
    """A rung for each batch of an optimizer step that can be reached.

    `fitted` is the prediction for the card it runs on; a micro-batch is no larger than that, nor than `micro_batch` where it is given. Without either a
    step is one micro-batch. Raises `InvalidInputError` where none is left, or a batch is none.
    """
    if fitted is not None and fitted.batch < 1:
        raise InvalidInputError(f"{fitted.tape.name} {fitted.verdict}")
    made, remarks = [], []
    for batch in batches:
        try:
            made.append(_rung(batch, training, rate, course, devices, micro_batch, fitted))
        except (UnreachableTargetError, InvalidInputError) as error:
            remarks.append(f"batch {batch} is left out: {error}")
    if not made:
        raise InvalidInputError(remarks[0] if remarks else "there is no batch to try")
    if made[-1].batch > LARGE_BATCH and training.optimizer_family != "layerwise":
        remarks.append(f"batches above {LARGE_BATCH:,} are trained by layer-wise rates as a rule; optimizer lars or lamb has them (You 2017, You 2019)")
    return Ladder(tuple(made), tuple(remarks))


def _rung(batch: int, training: Training, rate: Rate, course: Course, devices: int, micro_batch: int | None, fitted: Fit | None) -> Rung:
    split, predicted = _split(batch, devices, micro_batch, fitted)
    if split.effective_batch != batch:
        raise UnreachableTargetError(f"no split over {devices} devices hits it; {split.effective_batch} would be one")
    found, _ = learning_rate(training.optimizer_family, batch, rate.learning_rate, rate.batch)
    steps, warmup = course.of(batch)
    return Rung(batch, split.micro_batch, split.accumulation, devices, found, steps, warmup, *predicted)


def _split(batch: int, devices: int, micro_batch: int | None, fitted: Fit | None) -> tuple[Split, tuple[int | None, int | None, float | None]]:
    """The split of a batch, and what it is predicted to take: allocated and reserved bytes, and seconds a step."""
    most = batch if micro_batch is None else whole("micro-batch", micro_batch)
    if fitted is not None and (micro_batch is None or fitted.batch <= most):
        made = plan(fitted, batch, devices)
        return made.split, (made.peak.allocated_bytes, made.peak.reserved_bytes, made.timing.step.seconds if made.timing else None)
    split = splits(batch, most, most, devices)[0]
    if fitted is None:
        return split, (None, None, None)
    peak = predict(fitted.tape, fitted.gpu, split.micro_batch, split.accumulation, fitted.settings)
    if not peak.fits:  # gradients that are kept between micro-batches take more than one of them alone
        raise UnreachableTargetError(f"{fitted.gpu.id} has no room for {split.accumulation} micro-batches of {split.micro_batch}, as is predicted")
    try:
        seconds = step_time(fitted.tape, fitted.gpu, split.micro_batch, split.accumulation).seconds
    except InvalidInputError:  # a card whose row lacks a rate
        seconds = None
    return split, (peak.allocated_bytes, peak.reserved_bytes, seconds)
