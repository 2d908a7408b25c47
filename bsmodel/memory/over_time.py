# SPDX-License-Identifier: Apache-2.0
"""One training step over time: what is alive after each of its allocations and releases, by category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsmodel.hardware import Gpu
from bsmodel.memory.closed_form import STEPS, Moment, footprint
from bsmodel.tape import CATEGORIES, Tape, micro_batches, micro_steps, values
from bsmodel.units import whole

Array = NDArray[np.int64]


@dataclass(frozen=True)
class StepMemory:
    """What is alive after each allocation and release of an optimizer step, in order, in bytes as requested.

    `bytes` has a row for each of `categories` and a column for each of `moments`; at a release the nearest allocation says where the step is.
    `binding` is the column of the binding moment: its bytes are those of `breakdown`, category by category, and no other column has more.
    `step` is which optimizer step it is: the third, which is as all later ones, or the one that takes more than they do, of which the first one begins with
    the loading of the model. `micro_steps` are those that it has here: two, or three where they differ from the last, stand for more.
    """

    batch: int
    step: int
    micro_steps: int
    categories: tuple[str, ...]
    bytes: Array
    moments: tuple[Moment, ...]
    binding: int

    @property
    def total_bytes(self) -> Array:
        """Of all categories."""
        return np.asarray(self.bytes.sum(axis=0))

    def __repr__(self) -> str:  # its moments would fill pages
        return f"StepMemory(batch {self.batch}, step {self.step}, {len(self.moments)} moments, {int(self.total_bytes[self.binding])} bytes at the binding one)"


def over_a_step(tape: Tape, batch: int, accumulation: int | None = None, gpu: Gpu | None = None) -> StepMemory:
    """The bytes of every moment of the optimizer step that takes the most at micro-batch `batch`, of the three that `footprint` looks at.

    The total after event t is the sum over all events up to t of their bytes at this batch, of releases with a minus. `accumulation` and `gpu` as
    for `breakdown`. Raises `InvalidInputError` for what is no batch, or one at which the step takes another path than recorded.
    """
    size, repeats = int(micro_batches(tape, whole("batch", batch))), micro_steps(tape, accumulation)
    footprint(tape, accumulation, gpu)(size)  # refuses more bytes than can be counted
    first, run = (list(tape.program(steps, repeats)) for steps in (1, STEPS))
    each = (len(run) - len(first)) // (STEPS - 1)  # blocks of a further step
    names = [name for name, _ in run]
    events = np.concatenate([np.asarray(block, np.int64) for _, block in run])
    starts = np.cumsum([0, *(sum(len(block) for _, block in part) for part in (first, *[run[-each:]] * (STEPS - 1)))])
    known = [name for name in CATEGORIES if name in tape.categories]
    alive = _alive(tape, events, values(tape.coefficients(gpu), size), known)
    allocated = np.flatnonzero(events >= 0)
    binding = _binding(tape, events, alive, int(starts[-2]))
    step = int(np.searchsorted(starts, binding, side="right"))
    begin, end = int(starts[step - 1]), int(starts[step])
    held = np.flatnonzero(alive[:, begin:end].any(axis=1))
    inside = np.repeat(np.arange(len(run)), [len(block) for _, block in run])
    nearest = _nearest(allocated, inside)[begin:end].tolist()
    words = {place: _words(tape, int(events[place])) for place in set(nearest)}
    moments = tuple(Moment(names[block], *words[place]) for block, place in zip(inside[begin:end].tolist(), nearest, strict=True))
    return StepMemory(size, step, each - 1, tuple(known[place] for place in held), alive[held, begin:end], moments, binding - begin)


def _alive(tape: Tape, events: Array, sizes: Array, known: list[str]) -> Array:
    """Bytes of each category after each event."""
    numbers, sign = np.where(events >= 0, events, ~events), np.where(events >= 0, 1, -1)
    codes = np.array([known.index(name) for name in tape.categories], np.int64)
    changes = np.zeros((len(known), len(events)), np.int64)
    changes[codes[numbers], np.arange(len(events))] = sign * sizes[numbers]
    return np.cumsum(changes, axis=1)


def _binding(tape: Tape, events: Array, alive: Array, third: int) -> int:
    """The allocation after which the most is alive, as `breakdown` finds it; its like in the third step where all is the same there."""
    allocated = np.flatnonzero(events >= 0)
    first = int(allocated[np.argmax(alive.sum(axis=0)[allocated])])
    same = third + np.flatnonzero((alive[:, third:] == alive[:, first, None]).all(axis=0) & (events[third:] >= 0))
    return next((place for place in same.tolist() if _words(tape, int(events[place])) == _words(tape, int(events[first]))), first)


def _nearest(allocated: Array, inside: Array) -> Array:
    """For each event the allocation that tells where the step is: the last one, or the next where its block, by `inside`, has had none."""
    place = np.searchsorted(allocated, np.arange(len(inside)), side="right")
    last, following = allocated[np.maximum(place - 1, 0)], allocated[np.minimum(place, len(allocated) - 1)]
    return np.where((inside[last] != inside) & (inside[following] == inside), following, last)


def _words(tape: Tape, number: int) -> tuple[str, str, str]:
    return tape.phases[number], tape.modules[number], tape.operators[number]
