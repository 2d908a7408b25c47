# SPDX-License-Identifier: Apache-2.0
"""How an effective batch is split into micro-batches, accumulation steps and devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.memory import LARGEST
from bsmodel.tape import Tape
from bsmodel.timing import step_time
from bsmodel.units import whole

_ROUNDING = 8  # micro-batches divisible by this are preferred over slightly larger ones
DEAREST = 1.05  # of the time of the nearest split: what hitting the target exactly may cost


@dataclass(frozen=True)
class Split:
    """`micro_batch x accumulation x devices` samples per optimizer step, or fewer, where `tensor` devices share each micro-batch."""

    micro_batch: int
    accumulation: int
    devices: int
    tensor: int = 1

    @property
    def replicas(self) -> int:
        """How many micro-batches the devices take at once."""
        return self.devices // self.tensor

    @property
    def effective_batch(self) -> int:
        """Samples per optimizer step."""
        return self.micro_batch * self.accumulation * self.replicas


def power_of_two_at_most(batch: int) -> int:
    """The largest power of two at or below `batch`; 0 for 0."""
    return 1 << (batch.bit_length() - 1) if batch > 0 else 0


def splits(target_batch: int, largest: int, largest_accumulating: int, devices: int = 1, tensor: int = 1) -> tuple[Split, ...]:
    """The splits to choose from: nearest to the target first, then fewest micro-steps, then even micro-batches.

    Without accumulation the micro-batch may be `largest`; with it, gradients stay alive and it may be `largest_accumulating`.
    Micro-batches down to half of that are tried, so none takes more than twice the fewest steps; behind them stand all smaller ones that hit the
    target exactly. The first hits it exactly whenever one of the larger ones divides the target over the devices, of which `tensor` share a micro-batch.
    Raises `InvalidInputError` for what is no number of at least 1, a target below the devices, or where no batch fits, `UnreachableTargetError` where one fits
    without accumulation only.
    """
    target, devices = whole("target batch", target_batch), whole("devices", devices)
    replicas = devices // tensor
    largest, most = (whole(name, value, least=0, most=LARGEST) for name, value in (("largest", largest), ("largest accumulating", largest_accumulating)))
    if target < replicas:
        each = f"{devices} devices" if tensor == 1 else f"{replicas} groups of {tensor} devices"
        raise InvalidInputError(f"target batch {target} is less than one sample for each of {each}; expected at least {replicas}")
    if largest < 1:
        raise InvalidInputError("no batch fits, so there is nothing to split")
    per_device = max(1, round(target / replicas))
    if per_device > largest and most < 1:
        raise UnreachableTargetError(f"the target needs accumulation, and its gradients leave no room for a sample; at most {largest * replicas} without")
    unsplit = [Split(per_device, 1, devices, tensor)] if per_device <= largest else []
    most = min(most, per_device // 2) if unsplit else most
    accumulated = [Split(micro, max(1, round(per_device / micro)), devices, tensor) for micro in range(max(1, most // 2), most + 1)]
    candidates = unsplit + [split for split in accumulated if split.accumulation > 1 or not unsplit]
    candidates.sort(key=lambda s: (missed(s, target), s.accumulation, s.micro_batch % 2, s.micro_batch % _ROUNDING != 0))
    smaller = _smaller_divisors(per_device, most // 2, target == per_device * replicas)
    return (*candidates, *(Split(micro, per_device // micro, devices, tensor) for micro in smaller))


def _smaller_divisors(per_device: int, below: int, exact: bool) -> list[int]:
    """Micro-batches smaller than `below` that divide the samples of a device, the largest first, where those are the target exactly."""
    smaller = np.arange(below - 1, 0, -1) if exact else np.empty(0, np.int64)
    return [int(micro) for micro in smaller[per_device % smaller == 0]]


def eligible(candidates: Sequence[Split], target_batch: int, tape: Tape, gpu: Gpu | None) -> list[Split]:
    """As near to the target as the first, or those that hit it exactly where the fastest of them takes at most a twentieth longer per sample.

    `gpu` is None where no time can be predicted.
    """
    nearest, exact = ([split for split in candidates if missed(split, target_batch) == by] for by in (missed(candidates[0], target_batch), 0))
    if gpu is None or not exact or _least_seconds(exact, tape, gpu) > DEAREST * _least_seconds(nearest, tape, gpu):
        return nearest
    return exact


def _least_seconds(candidates: Sequence[Split], tape: Tape, gpu: Gpu) -> float:
    """Of the fastest split, per sample."""
    return float(np.min(_seconds(candidates, tape, gpu) / np.array([split.effective_batch for split in candidates])))


def missed(split: Split, target_batch: int) -> int:
    return abs(split.effective_batch - target_batch)


def fastest(candidates: Sequence[Split], tape: Tape, gpu: Gpu) -> Split:
    """The split whose optimizer step is predicted to take the least time; among equals the earliest."""
    return candidates[int(np.argmin(_seconds(candidates, tape, gpu)))]


def _seconds(candidates: Sequence[Split], tape: Tape, gpu: Gpu) -> NDArray[np.float64]:
    micro_batches, accumulations = (np.array([getattr(split, name) for split in candidates]) for name in ("micro_batch", "accumulation"))
    return step_time(tape, gpu, micro_batches, accumulations).seconds
