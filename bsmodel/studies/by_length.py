# SPDX-License-Identifier: Apache-2.0
"""One workload at many lengths, of a few recordings: the largest batch and throughput by length, and the longest context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import InvalidInputError, TooLongError
from bsmodel.hardware import Gpu
from bsmodel.memory import fit, longest
from bsmodel.studies import executors
from bsmodel.studies.recordings import lengths
from bsmodel.studies.rows import Recorded
from bsmodel.studies.study import Watch, in_silence
from bsmodel.tape import STEP, Lengths
from bsmodel.timing import step_time
from bsmodel.workloads import Source

_SHORTEST = 256  # recordings begin here, or at the shortest that is asked about


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


def recorded_lengths(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    low: int,
    high: int,
    caching: bool | None = None,
    watch: Watch = in_silence,
    executor: Executor | None = None,
) -> tuple[list[Lengths], tuple[str, ...]]:
    """For each GPU the recordings that tell every length from `low` tokens to `high`, or to the last that the model has positions for, which a note says.

    Raises `InvalidInputError` for lengths that are no multiples of 128, and what recording raises.
    """
    require_range(low, high)
    try:
        return lengths(source, changes, gpus, (min(low, _SHORTEST), high), caching, watch, executor), ()
    except TooLongError as error:
        most = error.most // STEP * STEP
        if most < low:
            raise
        note = f"the model has {error.most:,} positions: no longer samples than these"
        return lengths(source, changes, gpus, (min(low, _SHORTEST), most), caching, watch, executor), (note,)


def require_range(low: int, high: int, step: int = STEP) -> None:
    """Raises `InvalidInputError` for lengths that go backwards, or are no multiples of 128."""
    if low > high:
        raise InvalidInputError(f"seq-len goes from {low} to {high}; expected the shorter first")
    up, down = -(-low // STEP) * STEP, max(1, high // STEP) * STEP
    for what, length, nearest in (("begins at", low, up), ("ends at", high, down), ("goes in steps of", step, -(-step // STEP) * STEP)):
        if length % STEP:
            raise InvalidInputError(f"seq-len {what} {length}; expected a multiple of {STEP}, such as {nearest}")


def by_length(found: Sequence[Lengths], gpus: Sequence[Gpu], wanted: Sequence[int], notes: Sequence[str] = (), executor: Executor | None = None) -> ByLength:
    """A row for each of these lengths on each GPU, of its recordings, and the longest sample on each; where recordings end, rows end, and a note says why."""
    limit = min(each.most for each in found)
    ends = [f"samples longer than {limit:,} tokens are not answered for: {each.ends}" for each in found if each.most == limit and each.ends]
    answered, hands = [length for length in wanted if length <= limit], executor or executors.Here()
    parts = [answered[first :: executors.processors()] for first in range(min(len(answered), executors.processors()))]
    cards = list(zip(found, gpus, strict=True))
    alone = [hands.submit(longest, each, gpu) for each, gpu in cards]
    begun = [hands.submit(_rows, each, gpu, part) for each, gpu in cards for part in parts]
    rows = {(row.seq_len, row.gpu): row for future in begun for row in future.result()}
    ordered = tuple(rows[length, gpu.id] for length in answered for gpu in gpus)
    longest_of = {gpu.id: future.result() for gpu, future in zip(gpus, alone, strict=True)}
    return ByLength(recorded=heads_of(found), rows=ordered, longest=longest_of, limit=limit, notes=(*notes, *ends[:1]))


def heads_of(found: Sequence[Lengths]) -> tuple[Recorded, ...]:
    """What was recorded, for each family of kernels."""
    return tuple({each.first.gpu.kernel_family: Recorded.of(each.first) for each in found}.values())


def doublings(low: int, high: int) -> list[int]:
    """From one length to another, each twice the one before, and the last."""
    found = [low]
    while 2 * found[-1] < high:
        found.append(2 * found[-1])
    return [*found, high] if high > low else found


def _rows(lengths: Lengths, gpu: Gpu, wanted: Sequence[int]) -> list[LengthRow]:
    return [_row(lengths, gpu, length) for length in wanted]


def _row(lengths: Lengths, gpu: Gpu, length: int) -> LengthRow:
    tape = lengths.at(length)
    found = fit(tape, gpu)
    peak = found.peak.reserved_bytes if found.peak is not None else None
    speed = step_time(tape, gpu, found.batch).tokens_per_s if found.batch else None
    return LengthRow(gpu=gpu.id, seq_len=length, largest_batch=found.batch, likely_batch=found.likely_batch, reserved_bytes=peak, tokens_per_s=speed)
