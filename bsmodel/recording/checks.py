# SPDX-License-Identifier: Apache-2.0
"""Whether a recording says what every later step, larger batch and other value would say; what does not is refused or remarked."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from bsmodel.errors import InvalidInputError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import loop, placement
from bsmodel.recording.alignment import NOTHING, Period, Size
from bsmodel.recording.allocation import Allocation
from bsmodel.recording.frames import first_line
from bsmodel.recording.run import Run, micro_step
from bsmodel.tape import BLOCKS, Envelope, Polynomial, Tape, polynomials, upper_envelope
from bsmodel.units import format_bytes

_MOST_VALUES = 1 << 21  # integers in a batch, or in a mask made of them, whose values are kept: some 10 ms of the host for each operator
_MOST_HOST_BYTES = 1 << 30  # of a batch on the host
LARGEST = 1 << 20  # samples


def sizes_of(batch: Any) -> list[Any]:
    """Shapes of the tensors in a batch, and what else is in it, in order."""
    return [tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves(batch)]


def require_sized(workload: Any) -> None:
    """Raises `InvalidInputError` for a batch function that ignores its size: every batch would then seem to fit."""
    two, three = (sizes_of(workload.batch(size)) for size in (2, 3))
    if repr(two) == repr(three):
        shapes = ", ".join(str(size) for size in two[:3]) or "nothing"
        raise InvalidInputError(f"batch(2) and batch(3) of {workload.name} give the same sizes ({shapes}); expected as many samples as are asked for")


def require_even(workload: Any) -> None:
    """Raises `InvalidInputError` where samples of the batch differ in size, for what the step takes has no closed form then."""
    batches = (3, 4, 5, 6, 7)
    totals = [sum(leaf.numel() for leaf in tree_leaves(workload.batch(size)) if isinstance(leaf, torch.Tensor)) for size in batches]
    if any(np.diff(totals, 3)):
        numbers = ", ".join(f"{total:,}" for total in totals)
        raise InvalidInputError(
            f"batches of {batches[0]} to {batches[-1]} of {workload.name} hold {numbers} elements, which is no polynomial in their number: samples differ in "
            "size, or are padded together; give all of them the mean size in batch, and the largest in worst_batch"
        )


def require_steady(period: Period, sizes: Mapping[int, Size], recorded: Sequence[Allocation], name: str) -> None:
    """Raises `UntraceableError` where the second step keeps what the first did not, as every further one would: lists, caches that grow."""

    def size(number: int) -> Polynomial:
        return sizes[number].bytes if number in sizes else Polynomial(recorded[number].size_bytes, 0)

    grown = [number for number in period.left if recorded[number].category != "workspace" and size(number) != NOTHING]
    grown += [number for number, twin in period.twins.items() if size(number) != size(twin) and recorded[number].category != "batch"]
    if grown:
        first = recorded[grown[0]]
        more = f" and {len(grown) - 1} more" if len(grown) > 1 else ""
        raise UntraceableError(
            f"{name} keeps more after every step: {format_bytes(first.size_bytes)} from {first.operator} in module {first.module or 'model'}{more}, "
            "made in a later step and not as in the first; let go of it, or detach and replace it, before the next step"
        )


def same_memory(tape: Tape, other: Tape) -> bool:
    """Whether two recordings allocate and release the same in the same order."""
    sizes = all(np.array_equal(getattr(tape, name), getattr(other, name)) for name in ("fixed_bytes", "per_sample_bytes", "per_pair_bytes"))
    return sizes and all(getattr(tape, name) == getattr(other, name) for name in ("blocks", "operators", "terms", "workspaces", "streams"))


def roomiest(gpu: Gpu) -> int:
    """Bytes of the largest card that runs the same kernels: one recording serves them all."""
    return max(card.memory_bytes for card in (gpu, *Gpu.all()) if card.kernel_family == gpu.kernel_family)


def same_peak(tape: Tape, run: Run, batch: int) -> bool:
    """Whether a tape's largest number of bytes at a batch is that of a run at this batch, within a hundredth; with all workspaces that are planned."""
    blocks = [event for name in BLOCKS for event in tape.blocks[name]]
    planned = zip(tape.fixed_bytes.tolist(), tape.per_sample_bytes.tolist(), tape.per_pair_bytes.tolist(), strict=True)
    told, found = (
        _peak(blocks, [Polynomial(*each)(batch) for each in planned]),
        _peak(run.recorder.events, [allocation.size_bytes for allocation in run.recorder.allocations]),
    )
    return abs(told - found) <= found / 100


def _peak(events: Sequence[int], sizes: Sequence[int]) -> int:
    return max(itertools.accumulate(sizes[event] if event >= 0 else -sizes[~event] for event in events), default=0)


def envelope(tape: Tape) -> Envelope:
    """The most bytes that are requested at any time, by the batch."""
    events = np.array([event for name in BLOCKS for event in tape.blocks[name]], np.int64)
    numbers, sign = np.where(events >= 0, events, ~events), np.where(events >= 0, 1, -1)
    alive = np.cumsum(sign * tape.coefficients()[:, numbers], axis=1)
    return Envelope(polynomials(alive, upper_envelope(alive)))


def about_the_largest(tape: Tape, memory_bytes: int) -> int:
    """The batch at which the bytes requested fill this memory."""
    return envelope(tape).largest(memory_bytes)


def same_path(run: Run, tape: Tape, sizes: Mapping[int, Size], gpu: Gpu) -> tuple[int | None, str]:
    """The batch up to which micro-steps allocate as recorded (None: as far as it matters), and a remark where that could not be tried.

    Tried once, near the largest batch of the roomiest card of the family; only where it differs, further recordings find where that begins.
    """
    known = max(tape.recorded_batches)
    batch = min(about_the_largest(tape, roomiest(gpu)), LARGEST, _most_samples(run))
    run.loop.workload = replace(run.loop.workload, batch=placement.without_data(run.loop.workload.batch))
    run.recorder.values.confirm(_MOST_VALUES)
    agrees = Agreement(run, sizes)
    while batch > known:
        try:
            return (None if agrees(batch) else _last(agrees, known, batch)), ""
        except UntraceableError:  # masks of so many samples are too large for their values to be kept
            batch //= 2
        except Exception as error:  # a data set that ends, or a limit of the user's own
            return None, f"no recording could be made at batch {batch}, to confirm the formula there: {first_line(error)}"
    return None, ""


def _last(agrees: Callable[[int], bool], low: int, high: int) -> int:
    """The last batch that agrees, between one that does and one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        agreed = False
        with contextlib.suppress(Exception):
            agreed = agrees(middle)
        low, high = (middle, high) if agreed else (low, middle)
    return low


def _most_samples(run: Run) -> int:
    """Samples whose integers keep their values, and that the host has room for."""
    leaves = [leaf for leaf in tree_leaves(run.loop.workload.batch(2)) if isinstance(leaf, torch.Tensor)]
    values = sum(leaf.numel() for leaf in leaves if not leaf.is_floating_point())
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return min(2 * _MOST_VALUES // max(1, values), 2 * _MOST_HOST_BYTES // max(1, size))


@dataclass(frozen=True)
class Agreement:
    """Whether a micro-step at a batch allocates what the sizes say, as the steady one of the recording did."""

    run: Run
    sizes: Mapping[int, Size]

    def __call__(self, batch: int) -> bool:
        """Tried twice: a step that prefetches trains on the batch that the one before was given."""
        return self._agrees(batch) or (self.run.loop.workload.step is not None and self._agrees(batch))

    def _agrees(self, batch: int) -> bool:
        steady = [(self.sizes[number], then) for number, then in self.run.allocated("micro") if number in self.sizes]
        loop.zero_gradients(self.run.loop)
        with self.run.block("check"):
            micro_step(self.run, batch)
        found = [now for _, now in self.run.allocated("check")]
        return [_facts(now) for now in found] == [(then.operator, then.module, *_at(size, batch)) for size, then in steady]


def _facts(allocation: Allocation) -> tuple[Any, ...]:
    return allocation.operator, allocation.module, allocation.size_bytes, allocation.parameters


def _at(size: Size, batch: int) -> tuple[int, tuple[int, ...]]:
    return size.bytes(batch), tuple(parameter(batch) for parameter in size.parameters)
