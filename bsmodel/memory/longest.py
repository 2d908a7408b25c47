# SPDX-License-Identifier: Apache-2.0
"""The longest context on one GPU at a batch, by replay as the largest batch is."""

from __future__ import annotations

from bsmodel.hardware import Gpu
from bsmodel.memory.closed_form import footprint
from bsmodel.memory.data_parallel import sharing
from bsmodel.memory.largest import bit_by_bit, sturdily
from bsmodel.memory.peak import replays, survives
from bsmodel.memory.settings import Settings
from bsmodel.tape import Lengths, micro_steps, require_same_kernels
from bsmodel.units import whole


def longest(lengths: Lengths, gpu: Gpu, batch: int = 1, accumulation: int | None = None, settings: Settings | None = None) -> int:
    """The longest of the known lengths at which `batch` samples train on this GPU whatever the libraries choose; 0 where not even the shortest does.

    The inverse of the largest batch at a length: the closed form bounds it from above, replays decide below that. At most `lengths.most`, up to which
    the recordings are known to hold. Raises `InvalidInputError` for what is no batch, and for recordings of kernels of another compute capability.
    """
    batch, settings = whole("batch", batch), settings or Settings()
    require_same_kernels(lengths.first, gpu)
    gpu = sharing(lengths.first, gpu)
    steps, known = micro_steps(lengths.first, accumulation), lengths.known

    def holds(index: int) -> bool:
        tape = lengths.at(known[index - 1])
        return batch <= (tape.same_path_up_to or batch) and footprint(tape, steps, gpu)(batch) <= gpu.sure_bytes

    def trains(index: int) -> bool:
        tape = lengths.at(known[index - 1])
        replay = replays(tape, gpu, steps, settings)
        return sturdily(lambda candidate: survives(candidate, replay), tape)(batch)

    low, high = 0, len(known)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    found = bit_by_bit(trains, low)
    return known[found - 1] if found else 0
