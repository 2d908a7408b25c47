# SPDX-License-Identifier: Apache-2.0
"""Pass or fail: whether a batch trains, and whether a training is no worse than its baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from bsmodel.errors import InvalidInputError
from bsmodel.gate import wording
from bsmodel.gate.allowance import Allowance
from bsmodel.gate.baseline import Baseline, devices_of, question
from bsmodel.memory import Fit, Peak, predict

Measure = Literal["peak memory", "largest batch", "step time"]


@dataclass(frozen=True)
class Required:
    """Whether a micro-batch trains: it is at most the largest, and its own replay survives."""

    peak: Peak
    largest_batch: int
    likely_batch: int
    bounded: bool
    usable_bytes: int
    passes: bool


@dataclass(frozen=True)
class Change:
    """One measure, in bytes, samples or seconds, before and now, and the last value that is still allowed."""

    measure: Measure
    before: float
    after: float
    allowed: float
    direction: Literal["worse", "better", "the same"]  # by more than is allowed, or not


@dataclass(frozen=True)
class Growth:
    """Bytes of a module or category at the moment that binds, before and now; None where there is none of it."""

    name: str
    before_bytes: int | None
    after_bytes: int | None

    @property
    def bytes(self) -> int:
        """How much more it is; below zero where it is less."""
        return (self.after_bytes or 0) - (self.before_bytes or 0)


@dataclass(frozen=True)
class Verdict:
    """What a check found. `str()` of it is `line`, and below it which modules grew and what is to be known.

    `required`: of the batch that has to train; `before`, `after` and `changes`: of the baseline, the figures now and each measure. `modules` are those that
    hold more, new ones with None before, worst first, then those that are gone; `categories` the same by what bytes are for, where no module holds more;
    both only where memory or the largest batch is worse. `notes`: versions that differ, what could not be compared, whether the baseline should be renewed.
    """

    workload: str
    gpu: str
    devices: int
    required: Required | None
    before: Baseline | None
    after: Baseline | None
    changes: tuple[Change, ...]
    modules: tuple[Growth, ...]
    categories: tuple[Growth, ...]
    notes: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether nothing that was asked for fails."""
        return (self.required is None or self.required.passes) and all(change.direction != "worse" for change in self.changes)

    @property
    def line(self) -> str:
        """`fits: ...`, `holds: ...` where no batch is required, or `FAILS: ...`."""
        return wording.line(self)

    @property
    def below(self) -> tuple[str, ...]:
        """The lines that belong below it: what grew, and notes."""
        return tuple(wording.below(self))

    def __str__(self) -> str:
        return "\n".join((self.line, *self.below))


def check(fit: Fit, require_batch: int | None = None, against: Baseline | None = None, allow: Allowance | str = "1%") -> Verdict:
    """Whether micro-batch `require_batch` trains on the fit's card, and whether its training is no worse than a baseline by more than is allowed.

    Compared are, at the baseline's batch, the peak (`max_memory_allocated`) and the time of an optimizer step, and the largest batch: memory and time fail
    above `before (1 + share)`, the largest batch below `floor(before (1 - share))`, and below the baseline's own batch where that trained. `allow` is an
    `Allowance` or what it is parsed from, by default 1 %.
    Raises `InvalidInputError` where neither is given, for what is no batch, and for a baseline of another question.
    """
    if require_batch is None and against is None:
        raise InvalidInputError("nothing is to be checked; give a batch that has to train, a baseline, or both")
    allowance = Allowance.parse(allow) if isinstance(allow, str) else allow
    if against is not None:
        against.require_same(**question(fit, against.batch))
    required = None if require_batch is None else _required(fit, require_batch)
    after = None if against is None else Baseline.of(fit, against.batch)
    changes = () if against is None or after is None else tuple(_changes(against, after, allowance))
    grown = tuple[Growth, ...](), tuple[Growth, ...]()
    if against and after and any(change.direction == "worse" and change.measure != "step time" for change in changes):
        grown = _grown(against, after)
    notes = () if against is None or after is None else tuple(_notes(against, after, changes))
    devices = devices_of(fit.tape)
    return Verdict(fit.tape.name, fit.gpu.id, devices, required, against, after, changes, *grown, notes)


def _required(fit: Fit, batch: int) -> Required:
    peak = predict(fit.tape, fit.gpu, batch, fit.accumulation, fit.settings)
    return Required(peak, fit.batch, fit.likely_batch, fit.bounded, fit.gpu.usable_bytes, peak.fits and peak.batch <= fit.batch)


def _changes(before: Baseline, after: Baseline, allowance: Allowance) -> Iterator[Change]:
    yield _more("peak memory", before.allocated_bytes, after.allocated_bytes, allowance.memory)
    share, largest = _exact(allowance.batch), after.largest_batch
    least, most = math.floor(before.largest_batch * (1 - share)), math.ceil(before.largest_batch * (1 + share))
    if before.batch <= before.largest_batch:  # what trained has to train, whatever else is allowed
        least = max(least, before.batch)
    yield Change("largest batch", before.largest_batch, largest, least, "worse" if largest < least else "better" if largest > most else "the same")
    if before.seconds is not None and after.seconds is not None:
        yield _more("step time", before.seconds, after.seconds, allowance.time)


def _more(measure: Measure, before: float, after: float, share: float) -> Change:
    """Of what is worse the more there is."""
    most, least = (Fraction(before) * (1 + sign * _exact(share)) for sign in (1, -1))
    direction: Literal["worse", "better", "the same"] = "worse" if after > most else "better" if after < least else "the same"
    return Change(measure, before, after, float(most), direction)


def _exact(share: float) -> Fraction:
    """The share as it is written: 0.07 is seven hundredths."""
    return Fraction(repr(share))


def _grown(before: Baseline, after: Baseline) -> tuple[tuple[Growth, ...], tuple[Growth, ...]]:
    """Modules, and where none of them holds more, categories."""
    modules = _more_bytes(before.by_module, after.by_module)
    if any(growth.bytes > 0 for growth in modules):
        return modules, ()
    return modules, _more_bytes(before.by_category, after.by_category)


def _more_bytes(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[Growth, ...]:
    """What holds more, worst first, then what is gone."""
    every = [Growth(name, before.get(name), after.get(name)) for name in sorted({*before, *after})]
    more, gone = [each for each in every if each.bytes > 0], [each for each in every if each.after_bytes is None]
    return (*sorted(more, key=lambda growth: -growth.bytes), *sorted(gone, key=lambda growth: growth.bytes))


def _notes(before: Baseline, after: Baseline, changes: tuple[Change, ...]) -> Iterator[str]:
    others = [name for name in sorted({*before.versions, *after.versions}) if before.versions.get(name) != after.versions.get(name)]
    for name in others:
        yield f"the baseline was made with {name} {before.versions.get(name, 'absent')}, and it is {after.versions.get(name, 'absent')} now"
    if after.seconds is None or before.seconds is None:
        yield f"step time is not compared: {'the baseline has none' if after.seconds else f'none can be predicted for {after.gpu}'}"
    directions = {change.direction for change in changes}
    if "better" in directions and "worse" not in directions:
        yield "better than the baseline by more than is allowed; renew it to keep that"
