# SPDX-License-Identifier: Apache-2.0
"""The longest context on one GPU at a batch, by replay as the largest batch is."""

from __future__ import annotations

from bsmodel.hardware import Gpu
from bsmodel.memory.closed_form import footprint
from bsmodel.memory.largest import bit_by_bit
from bsmodel.memory.peak import replays, survives
from bsmodel.memory.settings import Settings
from bsmodel.tape import Lengths, Tape, micro_steps, require_same_kernels


def longest(lengths: Lengths, gpu: Gpu, batch: int = 1, accumulation: int | None = None, settings: Settings | None = None) -> int:
    """Tokens of the longest sample, a multiple of `lengths.step`, at which `batch` samples train on this GPU whatever the libraries choose; 0 where not even
    the shortest does.

    The inverse of the largest batch at a length: the closed form bounds it from above, replays decide below that. At most `lengths.most`, up to which
    the recordings are known to hold. Raises `InvalidInputError` for what is no batch, and for recordings of kernels of another compute capability.
    """
    require_same_kernels(lengths.first, gpu)
    steps = micro_steps(lengths.first, accumulation)

    def at(index: int) -> Tape:
        return lengths.at(lengths.least + (index - 1) * lengths.step)

    def holds(index: int) -> bool:
        tape = at(index)
        return batch <= (tape.same_path_up_to or batch) and footprint(tape, steps, gpu)(batch) <= gpu.sure_bytes

    low, high = 0, (lengths.most - lengths.least) // lengths.step + 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    found = bit_by_bit(lambda index: survives(batch, replays(at(index), gpu, steps, settings or Settings())), low)
    return lengths.least + (found - 1) * lengths.step if found else 0
