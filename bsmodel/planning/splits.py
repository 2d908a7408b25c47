# SPDX-License-Identifier: Apache-2.0
"""How an effective batch is split into micro-batches, accumulation steps and devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bsmodel.errors import InvalidInputError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.tape import Tape
from bsmodel.timing import step_time

_ROUNDING = 8  # micro-batches divisible by this are preferred over slightly larger ones


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


def power_of_two_at_most(batch: int) -> int:
    """The largest power of two at or below `batch`; 0 for 0."""
    return 1 << (batch.bit_length() - 1) if batch > 0 else 0


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
    return tuple(sorted(candidates, key=lambda s: (missed(s, target_batch), s.accumulation, s.micro_batch % 2, s.micro_batch % _ROUNDING != 0)))


def missed(split: Split, target_batch: int) -> int:
    return abs(split.effective_batch - target_batch)


def fastest(candidates: Sequence[Split], tape: Tape, gpu: Gpu) -> Split:
    """The split whose optimizer step is predicted to take the least time; among equals the earliest."""
    micro_batches, accumulations = (np.array([getattr(split, name) for split in candidates]) for name in ("micro_batch", "accumulation"))
    return candidates[int(np.argmin(step_time(tape, gpu, micro_batches, accumulations).seconds))]
