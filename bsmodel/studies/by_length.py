# SPDX-License-Identifier: Apache-2.0
"""One workload at many lengths, of a few recordings: the largest batch and throughput by length, and the longest context."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import InvalidInputError, TooLongError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.memory import fit, longest
from bsmodel.studies import executors
from bsmodel.studies.recordings import tapes
from bsmodel.studies.rows import Recorded
from bsmodel.studies.study import Watch, in_silence
from bsmodel.tape import Lengths, Tape
from bsmodel.timing import step_time
from bsmodel.workloads import Source

STEP = 128  # tokens, which all lengths are multiples of: kernels of attention round up to as many
_RECORDED = {1024: (256, 384, 512), 512: (128, 256, 384)}  # by the shortest last length: shorter samples may take other kernels


@dataclass(frozen=True, kw_only=True)
class LengthRow:
    """The largest batch of samples of one length on one GPU, safe and likely, and the tokens a second at the safe one (null where none fits)."""

    gpu: str
    seq_len: int
    largest_batch: int
    likely_batch: int
    reserved_bytes: int | None
    tokens_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class ByLength:
    """Rows by length and GPU, and for each GPU the longest sample that trains alone, where `limit` is as far as recordings hold."""

    recorded: tuple[Recorded, ...]
    rows: tuple[LengthRow, ...]
    longest: dict[str, int]
    limit: int
    notes: tuple[str, ...]


def by_length(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    low: int,
    high: int,
    caching: bool | None = None,
    watch: Watch = in_silence,
    executor: Executor | None = None,
) -> ByLength:
    """From `low` tokens to `high` in doublings, on each GPU.

    Raises `InvalidInputError` for lengths that are no multiples of what the recordings are apart, and what recording raises. Where the model has positions
    for less, or the step does something else from some length on, rows end there and a note says so.
    """
    checked, notes = recorded_lengths(source, changes, gpus, low, high, caching, watch, executor)
    limit = checked[0].most
    rows = [_row(lengths, gpu, length) for length in _doublings(low, limit) for lengths, gpu in zip(checked, gpus, strict=True)]
    found = {gpu.id: longest(lengths, gpu) for lengths, gpu in zip(checked, gpus, strict=True)}
    return ByLength(recorded=heads_of(checked), rows=tuple(rows), longest=found, limit=limit, notes=notes)


def heads_of(checked: Sequence[Lengths]) -> tuple[Recorded, ...]:
    """What was recorded, for each family of kernels."""
    return tuple({lengths.tapes[0].gpu.kernel_family: Recorded.of(lengths.tapes[0]) for lengths in checked}.values())


def recorded_lengths(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    low: int,
    high: int,
    caching: bool | None,
    watch: Watch,
    executor: Executor | None,
) -> tuple[list[Lengths], tuple[str, ...]]:
    """For each GPU the recordings that tell every length up to `high`, or as far as they do, and notes of why no farther; raises as `by_length`."""
    notes: list[str] = []
    try:
        Source.of(source.name, **{**dict(source.options), "seq_len": high}).workload()
    except TooLongError as error:
        notes.append(f"the model has {error.most:,} positions: no longer samples than these")
        high = error.most // STEP * STEP
    base = _base(low, high)
    wanted = [length for length in _doublings(low, high) if length > base[-1]]
    hands = executor or executors.pool([source.library] if source.library else [])

    def recorded(length: int) -> list[Tape]:
        return tapes(Source.of(source.name, **{**dict(source.options), "seq_len": length}), changes, gpus, caching, watch, hands)

    try:
        checked, reason = _checked(base, wanted, recorded)
    finally:
        if executor is None:
            hands.shutdown(wait=False, cancel_futures=True)
    if reason:
        notes.append(f"samples longer than {checked[0].most:,} tokens are not answered for: {reason}")
    return checked, tuple(notes)


def _base(low: int, high: int) -> tuple[int, ...]:
    """The lengths of which recordings give the polynomials. Raises `InvalidInputError` for a range that has no such table."""
    if low > high:
        raise InvalidInputError(f"seq-len goes from {low} to {high}; expected the shorter first")
    for what, length, steps in (("begins", low, -(-low // STEP)), ("ends", high, max(1, high // STEP))):
        if length % STEP:
            raise InvalidInputError(f"seq-len {what} at {length}; expected a multiple of {STEP}, such as {steps * STEP}")
    found = next((lengths for least, lengths in _RECORDED.items() if high >= least), None)
    if found is None:
        raise InvalidInputError(f"seq-len ends at {high}; expected at least {min(_RECORDED)}, or one length at a time")
    return found


def _doublings(low: int, high: int) -> list[int]:
    lengths = [low]
    while 2 * lengths[-1] <= high:
        lengths.append(2 * lengths[-1])
    return lengths if lengths[-1] == high or low > high else [*lengths, high]


def _checked(base: Sequence[int], wanted: list[int], recorded: Callable[[int], list[Tape]]) -> tuple[list[Lengths], str]:
    """Polynomials for each GPU, checked at the longest of the lengths at which they hold, and why at no longer one."""
    first, reason = [recorded(length) for length in base], ""
    for length in reversed(wanted):
        try:
            return [Lengths.through(several, [*base, length]) for several in zip(*first, recorded(length), strict=True)], reason
        except UntraceableError as error:
            reason = reason or str(error)
    return [Lengths.through(several, base) for several in zip(*first, strict=True)], reason


def _row(lengths: Lengths, gpu: Gpu, length: int) -> LengthRow:
    tape = lengths.at(length)
    found = fit(tape, gpu)
    peak = found.peak.reserved_bytes if found.peak is not None else None
    speed = step_time(tape, gpu, found.batch).tokens_per_s if found.batch else None
    return LengthRow(gpu=gpu.id, seq_len=length, largest_batch=found.batch, likely_batch=found.likely_batch, reserved_bytes=peak, tokens_per_s=speed)
