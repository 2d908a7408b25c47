# SPDX-License-Identifier: Apache-2.0
"""The closed form of requested bytes, and who holds them at the moment that binds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bsmodel.hardware import Gpu
from bsmodel.shown import Charted, Shown
from bsmodel.tape import CATEGORIES, Coefficients, Envelope, Integer, Integers, Tape, micro_batches, micro_steps, polynomials, upper_envelope, values
from bsmodel.units import whole

REDUCER = "DistributedDataParallel"  # the operator of what data parallelism allocates between steps
STEPS = 3  # the optimizer's state exists from the second step on: the third repeats it, in bytes requested


@dataclass(frozen=True)
class Moment:
    """A point of the training step: just after one allocation."""

    block: str
    phase: str
    module: str
    operator: str

    def __str__(self) -> str:
        if self.block == "init":
            return "loading the model"
        if self.phase == "step":
            return "optimizer step"
        if self.operator == REDUCER:
            return "rebuilding the gradient buckets"
        return f"{self.phase}, at {self.module or 'the loss'}"


@dataclass(frozen=True)
class Footprint(Shown):
    """The closed form of requested bytes, `M(b) = max_t (f_t + s_t b + p_t b (b - 1) / 2)`, each polynomial with the moment it belongs to."""

    envelope: Envelope
    moments: tuple[Moment, ...]

    @overload
    def __call__(self, batch: Integer) -> int: ...
    @overload
    def __call__(self, batch: Integers) -> NDArray[np.int64]: ...
    def __call__(self, batch: Integer | Integers) -> int | NDArray[np.int64]:
        """`M(b)` in bytes, for one batch or several."""
        return self.envelope(batch)

    @overload
    def largest(self, capacity_bytes: Integer) -> int: ...
    @overload
    def largest(self, capacity_bytes: Integers) -> NDArray[np.int64]: ...
    def largest(self, capacity_bytes: Integer | Integers) -> int | NDArray[np.int64]:
        """The largest batch with `M(b) <= capacity`: one expression, `min_t floor((capacity - f_t) / s_t)` where no samples are paired."""
        return self.envelope.largest(capacity_bytes)

    def binding(self, batch: int) -> Moment:
        """The moment that decides at this batch."""
        return self.moments[self.envelope.binding(batch)]

    def __str__(self) -> str:
        return f"M(b) = max({', '.join(map(str, self.envelope.polynomials))})"


@dataclass(frozen=True)
class _Timeline:
    """Every allocation of a run in order: which moment it is, and the bytes of all that is alive just after it."""

    blocks: tuple[str, ...]
    numbers: NDArray[np.int64]
    alive: Coefficients


def _timeline(tape: Tape, accumulation: int | None, gpu: Gpu | None = None) -> _Timeline:
    program = list(tape.program(STEPS, micro_steps(tape, accumulation)))
    events = np.concatenate([np.asarray(block, np.int64) for _, block in program])
    names = [name for name, block in program for _ in block]
    numbers = np.where(events >= 0, events, ~events)
    sign = np.where(events >= 0, 1, -1)
    alive = np.cumsum(sign * tape.coefficients(gpu)[:, numbers], axis=1)
    births = np.flatnonzero(events >= 0)
    return _Timeline(tuple(names[i] for i in births), numbers[births], alive[:, births])


def _moment(tape: Tape, timeline: _Timeline, position: int) -> Moment:
    number = int(timeline.numbers[position])
    return Moment(timeline.blocks[position], tape.phases[number], tape.modules[number], tape.operators[number])


def footprint(tape: Tape, accumulation: int | None = None, gpu: Gpu | None = None) -> Footprint:
    """The closed form of the peak: `M(b) = max_t (f_t + s_t b + p_t b (b - 1) / 2)` over all moments t of three training steps.

    `f_t`, `s_t` and `p_t` are the bytes alive at moment t that are fixed, per sample and per pair of samples; the last are 0 but for losses
    and layers that compare the samples of a batch with one another. Only polynomials that are highest at some b >= 1 are kept.
    Counts bytes as requested; rounding, caching and the few kernel buffers that are no polynomial in b come on top, see `predict`.
    Valid when every allocation is such a polynomial in the micro-batch, which `trace` has checked. `accumulation`: micro-steps per
    optimizer step, the recipe's own by default. `gpu`: the card whose libraries' workspaces count, the recorded one by default.
    """
    timeline = _timeline(tape, accumulation, gpu)
    kept = upper_envelope(timeline.alive)
    return Footprint(Envelope(polynomials(timeline.alive, kept)), tuple(_moment(tape, timeline, i) for i in kept))


@dataclass(frozen=True)
class Share:
    """Bytes of one category in one module at the binding moment."""

    category: str
    module: str
    bytes: int


class Breakdown(Charted, tuple[Share, ...]):
    """Who holds the bytes of the binding moment: a `Share` for each category and module, in the order of categories."""

    __slots__ = ()

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes of each category, the largest first."""
        return self._sums("category")

    @property
    def by_module(self) -> dict[str, int]:
        """Bytes that each module has itself, the largest first; those of "" belong to none."""
        return self._sums("module")

    def _sums(self, field: str) -> dict[str, int]:
        sums: dict[str, int] = {}
        for share in self:
            name = getattr(share, field)
            sums[name] = sums.get(name, 0) + share.bytes
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def breakdown(tape: Tape, batch: int, accumulation: int | None = None, gpu: Gpu | None = None) -> Breakdown:
    """Who holds the bytes of `M(b)`: all that is alive at the binding moment, by category and module. Sums to `M(b)` exactly."""
    batch = int(micro_batches(tape, whole("batch", batch)))
    footprint(tape, accumulation, gpu)(batch)  # refuses more bytes than can be counted
    timeline = _timeline(tape, accumulation, gpu)
    position = int(np.argmax(values(timeline.alive, batch)))
    sizes = values(tape.coefficients(gpu), batch)
    shares: dict[tuple[str, str], int] = {}
    births = 0
    alive: dict[int, int] = {}
    for event in (event for _, block in tape.program(STEPS, micro_steps(tape, accumulation)) for event in block):
        number = event if event >= 0 else ~event
        alive[number] = alive.get(number, 0) + (1 if event >= 0 else -1)
        births += event >= 0
        if births > position:
            break
    for number, count in alive.items():
        if count and sizes[number]:
            key = (tape.categories[number], tape.modules[number])
            shares[key] = shares.get(key, 0) + count * int(sizes[number])
    rows = [Share(category, module, size) for (category, module), size in shares.items()]
    return Breakdown(sorted(rows, key=lambda row: (CATEGORIES.index(row.category), -row.bytes, row.module)))
