# SPDX-License-Identifier: Apache-2.0
"""The memory of a predicted optimizer step over its seconds, in the form that `torch.profiler.profile.export_memory_timeline` writes.

Source: torch/profiler/_memory_profiler.py, read at 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsmodel.hardware import Gpu
from bsmodel.tape import Integer, Tape, values
from bsmodel.timing.timeline import Step, require_drawable, step_of

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

PREEXISTING, CREATE, DESTROY = 1, 2, 4  # of torch's actions; 3 is a tensor that is written into
TORCH_CATEGORIES = ("PARAMETER", "OPTIMIZER_STATE", "INPUT", "TEMPORARY", "ACTIVATION", "GRADIENT", "AUTOGRAD_DETAIL", None)  # by torch's index
IN_TORCH = {
    "parameter": "PARAMETER",
    "packed weight": "PARAMETER",
    "adapter": "PARAMETER",
    "gathered parameter": "PARAMETER",
    "buffer": "INPUT",  # which forward reads, and no gradient is of
    "batch": "INPUT",
    "optimizer state": "OPTIMIZER_STATE",
    "gradient": "GRADIENT",
    "gradient bucket": "GRADIENT",
    "saved": "ACTIVATION",
    "temporary": "TEMPORARY",  # of backward: AUTOGRAD_DETAIL
    "workspace": "TEMPORARY",
}


@dataclass(frozen=True)
class MemoryTimeline:
    """What is allocated and given back in one optimizer step of `accumulation` micro-steps of `batch` samples, likely as long as `step_time` says.

    Arrays have an element for each: first what is there before the step, then what happens, in order. `actions` are PREEXISTING (1), CREATE (2) or DESTROY (4);
    `bytes`, as requested, are negative for what is given back; `categories` are positions in `TORCH_CATEGORIES`.
    """

    name: str
    gpu: str
    batch: int
    accumulation: int
    seconds: float
    at_seconds: Array
    actions: Whole
    bytes: Whole
    categories: Whole

    def __repr__(self) -> str:  # its arrays would fill pages
        return f"MemoryTimeline({self.name!r}, {self.gpu}, batch {self.batch} x {self.accumulation}, {self.seconds:.4g} s, {len(self.bytes)} events)"

    @property
    def peak_bytes(self) -> int:
        """The most that is there at once."""
        return int(np.cumsum(self.bytes)[self._before - 1 :].max(initial=0))

    def sizes(self) -> list[Any]:
        """What torch writes as `.json`: microseconds, and for each the bytes by category after a zero.

        One entry is before the step, one after each event and one at the end: several have one time, where torch would keep the last of them alone.
        """
        changes = np.zeros((len(self.bytes), len(TORCH_CATEGORIES) + 1), np.int64)
        changes[np.arange(len(self.bytes)), self.categories + 1] = self.bytes
        alive = np.cumsum(np.vstack([np.zeros_like(changes[:1]), changes]), axis=0)[self._before :]
        times = np.concatenate([[0.0], self.at_seconds[self._before :], [self.seconds]])
        return [(times * 1e6).astype(np.int64).tolist(), [*alive.tolist(), alive[-1].tolist()]]

    def raw(self) -> list[Any]:
        """What torch writes as `.raw.json.gz`: (nanoseconds, action, bytes, category) of each event; -1 for what is there before."""
        times = np.where(self.actions == PREEXISTING, -1, (self.at_seconds * 1e9).astype(np.int64))
        return [list(each) for each in zip(*(column.tolist() for column in (times, self.actions, self.bytes, self.categories)), strict=True)]

    @property
    def _before(self) -> int:
        return int((self.actions == PREEXISTING).sum())


def memory_timeline(tape: Tape, gpu: Gpu, batch: Integer, accumulation: Integer | None = None) -> MemoryTimeline:
    """When what is allocated and given back in an optimizer step, as all but the first are, at micro-batch `batch` with `accumulation` micro-steps.

    Each happens when the kernels that come before it are done on the compute stream: the allocator itself is the host's, which runs ahead. Bytes are those
    of `breakdown`, whose total is `peak_bytes` wherever the binding moment is in such a step.
    Raises `InvalidInputError` as `step_time` does, and for a step of more than a million events.
    """
    step = step_of(tape, gpu, batch, accumulation)
    require_drawable(step.accumulation, sum(len(tape.blocks[name]) for name in tape.optimizer_step(step.accumulation)))
    sizes, alive = values(tape.coefficients(gpu), step.batch), np.zeros(len(tape.categories), np.int64)
    for _, block in tape.program(2, step.accumulation):
        numbers, signs = _changes(block)
        np.add.at(alive, numbers, signs)
    before = np.repeat(np.arange(len(alive)), alive)
    numbers, signs = _changes([event for name in tape.optimizer_step(step.accumulation) for event in tape.blocks[name]])
    numbers, signs = np.concatenate([before, numbers]), np.concatenate([np.ones_like(before), signs])
    *times, _, end = _seconds(step)
    at_seconds = np.concatenate([np.zeros(len(before)), times])
    actions = np.where(signs > 0, CREATE, DESTROY)
    actions[: len(before)] = PREEXISTING
    kept = sizes[numbers] > 0  # nobody allocates nothing
    found = at_seconds[kept], actions[kept], (signs * sizes[numbers])[kept], _categories(tape)[numbers][kept]
    return MemoryTimeline(tape.name, gpu.id, step.batch, step.accumulation, end, *found)


def event_seconds(tape: Tape, gpu: Gpu, batch: Integer, accumulation: Integer | None = None) -> Array:
    """The seconds of an optimizer step, as all but the first are, at which its allocations and releases happen, and after them those at which its
    micro-steps and it itself are over. `memory_timeline` says when that is; raises `InvalidInputError` as `step_time` does.
    """
    return _seconds(step_of(tape, gpu, batch, accumulation))


def _seconds(step: Step) -> Array:
    """When the kernels before each event are done; when all micro-steps are, and the step."""
    found, ends = list[Array](), [0.0]
    for name, (done, over) in zip(step.tape.optimizer_step(step.accumulation), step.done(), strict=True):
        found.append(ends[-1] + done[np.minimum(np.array(step.tape.reached[name], np.int64), len(done) - 1)])
        ends.append(ends[-1] + over)
    return np.array([*np.concatenate(found), *ends[-2:]])


def _changes(events: Any) -> tuple[Whole, Whole]:
    """Numbers of allocations, and 1 or -1."""
    found = np.asarray(events, np.int64)
    return np.where(found >= 0, found, ~found), np.where(found >= 0, 1, -1)


def _categories(tape: Tape) -> Whole:
    """The category of each allocation, by torch's index."""
    pairs = zip(tape.categories, tape.phases, strict=True)
    names = ["AUTOGRAD_DETAIL" if pair == ("temporary", "backward") else IN_TORCH[pair[0]] for pair in pairs]
    return np.array([TORCH_CATEGORIES.index(name) for name in names], np.int64)
