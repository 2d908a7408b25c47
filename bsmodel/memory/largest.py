# SPDX-License-Identifier: Apache-2.0
"""The largest micro-batch that trains on one GPU, and what bounds it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, InstanceOf, PlainSerializer

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory.closed_form import footprint
from bsmodel.memory.data_parallel import sharing
from bsmodel.memory.peak import BOUNDLESS, Peak, peak_at, replays, survives
from bsmodel.memory.settings import Settings
from bsmodel.shown import Charted
from bsmodel.tape import Tape, another_path, micro_steps, require_same_kernels
from bsmodel.units import format_bytes

LARGEST = 1 << 20  # samples in a micro-batch that anybody asks for
FEW_DIGITS = 5  # of smaller batches that must survive, too: steps of 3 to 6 %
DIGITS = 7  # binary ones, of the batches that are tried first: steps of 0.8 to 1.6 %


def _id(gpu: Gpu) -> str:
    return gpu.id


@dataclass(frozen=True)
class Fit(Charted):
    """The largest micro-batch on one GPU, and why it is no larger: `batch` is safe, `likely_batch` what probably runs too.

    `bounded`: whether memory is what limits it; else it is the last that the recording holds for, or of so many that none is larger.
    In JSON the GPU is its id, and the tape is left out.
    """

    tape: Annotated[InstanceOf[Tape], Field(exclude=True)]
    gpu: Annotated[Gpu, PlainSerializer(_id)]
    accumulation: int
    settings: Settings
    batch: int
    likely_batch: int
    binding: str
    headroom_bytes: int
    verdict: str
    peak: Peak | None
    bounded: bool = True


def fit(tape: Tape, gpu: Gpu, accumulation: int | None = None, settings: Settings | None = None) -> Fit:
    """The largest micro-batch that trains on this GPU without end: its replay comes to rest, release-and-retry included.

    The closed form bounds it from above, `b <= largest(capacity)`; replays decide below that. `batch` survives whatever
    cuDNN chooses, `likely_batch` with what it probably does, the workspaces that do not fit left out. `batch` is 0 where nothing fits, and
    the verdict then says how much is missing. No batch is considered above 2^20, nor one at which the step takes another path than recorded.
    Raises `InvalidInputError` where one sample needs what no card will ever have.
    """
    require_same_kernels(tape, gpu)
    gpu = sharing(tape, gpu)
    settings = settings or Settings()
    accumulation = micro_steps(tape, accumulation)
    form = footprint(tape, accumulation, gpu)
    if form(1) > BOUNDLESS // 2:
        raise InvalidInputError(f"{tape.name} needs {format_bytes(form(1))} for one sample; expected at most half an exbibyte")
    allowed_bytes = min(gpu.sure_bytes, settings.allowed_bytes(gpu.memory_bytes))
    most = min(LARGEST, tape.same_path_up_to or LARGEST)
    bound = min(form.largest(gpu.usable_bytes), most)
    replay = replays(tape, gpu, accumulation, settings)
    sure = bound if tape.worst is None else min(bound, footprint(tape.worst, accumulation, gpu).largest(allowed_bytes))
    batch = bit_by_bit(sturdily(functools.cache(lambda candidate: survives(candidate, replay)), tape), sure)
    likely = max(batch, bit_by_bit(lambda candidate: replay(candidate, "lenient", True) is not None, bound))
    peak = peak_at(form, max(batch, 1), gpu, replay)
    if batch == 0:
        missing = peak.reserved_upper_bytes - allowed_bytes
        verdict = (
            f"does not fit on {gpu.id}: one sample needs {format_bytes(peak.reserved_upper_bytes)} of {format_bytes(allowed_bytes)}, "
            f"{format_bytes(missing)} too much, at the {peak.moment}"
        )
        return Fit(tape, gpu, accumulation, settings, 0, likely, peak.moment, -missing, verdict, None)
    headroom = allowed_bytes - peak.reserved_upper_bytes
    binding, verdict = _why(tape, batch, most, str(form.binding(batch)))
    return Fit(tape, gpu, accumulation, settings, batch, likely, binding, headroom, verdict, peak, batch < most)


def sturdily(survives: Callable[[int], bool], tape: Tape) -> Callable[[int], bool]:
    """Whether a batch survives and, where blocks of several streams cannot stand in for one another, some that are up to an eighth smaller do, too.

    There what is cached fits a larger batch better now and then, and who then takes a smaller one for safety's sake would run out of memory.
    """
    if not tape.streams:
        return survives
    return lambda batch: survives(batch) and all(map(survives, _below(batch)))


def _below(batch: int) -> list[int]:
    """Two numbers of few binary digits that come before a batch, or it and the one before."""
    shift = max(0, batch.bit_length() - FEW_DIGITS)
    return [smaller for steps in range(2) if (smaller := ((batch >> shift) - steps) << shift) > 0]


def _why(tape: Tape, batch: int, most: int, moment: str) -> tuple[str, str]:
    """What bounds a batch that trains, and the verdict."""
    if batch < most:
        return moment, f"fits up to {batch}, bound by {moment}"
    if most == LARGEST:
        return "not by memory", f"fits at more than {LARGEST:,} samples: memory does not limit it"
    return another_path(tape), f"fits up to {batch}: {another_path(tape)}, which was not recorded"


def bit_by_bit(survives: Callable[[int], bool], bound: int) -> int:
    """A number up to `bound` that survives while the next does not: the largest of few binary digits that does, then bit by bit up to the next.

    What is tried does not depend on the card: where all that survives on a smaller one does so here, the batch is no smaller.
    """
    batch, shift = _rounded(bound)
    while batch and not survives(batch):
        batch, shift = _rounded(batch - 1)
    for bit in reversed(range(shift)):
        candidate = batch | 1 << bit
        if candidate <= bound and survives(candidate):
            batch = candidate
    return batch


def _rounded(batch: int) -> tuple[int, int]:
    """The largest number of `DIGITS` binary digits up to `batch`, and how many zeros follow them."""
    shift = max(0, batch.bit_length() - DIGITS)
    return batch >> shift << shift, shift
