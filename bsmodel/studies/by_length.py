# SPDX-License-Identifier: Apache-2.0
"""One workload at many lengths, of a few recordings: the largest batch and throughput by length, and the longest context."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import fit, longest
from bsmodel.studies import executors
from bsmodel.studies.rows import Recorded
from bsmodel.tape import STEP, Lengths
from bsmodel.timing import step_time


@dataclass(frozen=True, kw_only=True)
class LengthRow:
    """The largest batch of samples of one length on one GPU, safe and likely, and samples and tokens a second at the safe one (null where none fits).

    A sample has so many tokens, or an image so many pixels a side; the other is null, as tokens a second are of images.
    """

    gpu: str
    seq_len: int | None
    image_size: int | None
    largest_batch: int
    likely_batch: int
    reserved_bytes: int | None
    samples_per_s: float | None
    tokens_per_s: float | None

    @property
    def length(self) -> int:
        """Tokens of a sample, or pixels a side."""
        return self.image_size or self.seq_len or 0


@dataclass(frozen=True, kw_only=True)
class ByLength:
    """Rows by length and GPU, and for each GPU the longest sample that trains alone; `limits` are how far its recordings hold, `limit` the least of these.

    What is long is the `option`: "seq_len", in tokens, or "image_size", in pixels a side.
    """

    option: str

    recorded: tuple[Recorded, ...]
    rows: tuple[LengthRow, ...]
    longest: dict[str, int]
    limits: dict[str, int]
    limit: int
    notes: tuple[str, ...]


def require_range(option: str, low: int, high: int, step: int = STEP) -> None:
    """Raises `InvalidInputError` for a range that goes backwards, or one of tokens that are no multiples of 128."""
    name = option.replace("_", "-")
    if low > high:
        raise InvalidInputError(f"{name} goes from {low} to {high}; expected the shorter first")
    up, down = -(-low // STEP) * STEP, max(1, high // STEP) * STEP
    for what, length, nearest in (("begins at", low, up), ("ends at", high, down), ("goes in steps of", step, -(-step // STEP) * STEP)):
        if option == "seq_len" and length % STEP:
            raise InvalidInputError(f"{name} {what} {length}; expected a multiple of {STEP}, such as {nearest}")


def by_length(found: Sequence[Lengths], gpus: Sequence[Gpu], wanted: Sequence[int], notes: Sequence[str] = (), executor: Executor | None = None) -> ByLength:
    """A row for each of these lengths on each GPU, of its recordings, and the longest sample on each; where recordings end, rows end, and a note says why."""
    limit = min(each.most for each in found)
    ends = [f"samples longer than {limit:,} tokens are not answered for: {each.ends}" for each in found if each.most == limit and each.ends]
    answered, hands = [length for length in wanted if length <= limit], executor or executors.Here()
    parts = [answered[first :: executors.processors()] for first in range(min(len(answered), executors.processors()))]
    cards = list(zip(found, gpus, strict=True))
    alone = [hands.submit(longest, each, gpu) for each, gpu in cards]
    begun = [hands.submit(_rows, each, gpu, part) for each, gpu in cards for part in parts]
    rows = {row for future in begun for row in future.result()}
    order = {gpu.id: number for number, gpu in enumerate(gpus)}
    ordered = tuple(sorted(rows, key=lambda row: (row.length, order[row.gpu])))
    longest_of = {gpu.id: future.result() for gpu, future in zip(gpus, alone, strict=True)}
    limits, said = {gpu.id: each.most for each, gpu in cards}, (*notes, *ends[:1])
    return ByLength(option=found[0].option, recorded=heads_of(found), rows=ordered, longest=longest_of, limits=limits, limit=limit, notes=said)


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
    tape, of_images = lengths.at(length), lengths.option == "image_size"
    found = fit(tape, gpu)
    time = step_time(tape, gpu, found.batch) if found.batch else None
    return LengthRow(
        gpu=gpu.id,
        seq_len=None if of_images else length,
        image_size=length if of_images else None,
        largest_batch=found.batch,
        likely_batch=found.likely_batch,
        reserved_bytes=found.peak.reserved_bytes if found.peak else None,
        samples_per_s=time.samples_per_s if time else None,
        tokens_per_s=time.tokens_per_s if time and not of_images else None,
    )
