# SPDX-License-Identifier: Apache-2.0
"""Batches of samples of real lengths, each padded to its longest: the largest ones, and how much of them is text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import fit
from bsmodel.studies.by_length import heads_of
from bsmodel.studies.rows import Recorded
from bsmodel.tape import STEP, Lengths
from bsmodel.timing import step_time


@dataclass(frozen=True, kw_only=True)
class PaddedRow:
    """One GPU: the largest batch that is safe with the longest samples in it, and the likely one, whose longest is as long as it is on average.

    `padded_len` is how long that is in whole steps of 128 tokens, `useful` the share of tokens in the likely batch, padded so, that are no padding, and
    `useful_tokens_per_s` those a second.
    """

    gpu: str
    largest_batch: int
    likely_batch: int
    padded_len: int
    useful: float | None
    useful_tokens_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Rows by GPU for samples of these lengths: how many (null where only their mean and the longest are known), their mean and the longest."""

    recorded: tuple[Recorded, ...]
    rows: tuple[PaddedRow, ...]
    samples: int | None
    mean_len: float
    longest: int
    notes: tuple[str, ...]


def padded(found: Sequence[Lengths], gpus: Sequence[Gpu], lengths: Sequence[int], notes: Sequence[str] = ()) -> Padded:
    """What batches of samples of these lengths take, drawn at random and padded to the longest of each batch, in whole steps of 128 tokens.

    `found`: the recordings for each GPU. Raises `InvalidInputError` where they end before the longest sample.
    """
    ordered = np.sort(np.asarray(lengths, np.int64))
    _require_known(found, int(ordered[-1]), notes)
    rows = tuple(_row(each, gpu, ordered) for each, gpu in zip(found, gpus, strict=True))
    mean = float(ordered.mean())
    return Padded(recorded=heads_of(found), rows=rows, samples=len(ordered), mean_len=mean, longest=int(ordered[-1]), notes=tuple(notes))


def padded_to_most(found: Sequence[Lengths], gpus: Sequence[Gpu], mean_len: float, longest: int, notes: Sequence[str] = ()) -> Padded:
    """What batches of samples take of which only the mean and the longest are known: each padded to the longest, as `padded` does it."""
    _require_known(found, longest, notes)
    rows = []
    for lengths, gpu in zip(found, gpus, strict=True):
        fitted = fit(lengths.at(whole_steps(longest)), gpu)
        rows.append(_of_batch(lengths, gpu, (fitted.batch, fitted.likely_batch), float(longest), mean_len))
    return Padded(recorded=heads_of(found), rows=tuple(rows), samples=None, mean_len=mean_len, longest=longest, notes=tuple(notes))


def _require_known(found: Sequence[Lengths], longest: int, notes: Sequence[str]) -> None:
    if min(each.most for each in found) < whole_steps(longest):
        raise InvalidInputError(f"the longest sample has {longest:,} tokens; {'; '.join([*notes, *(each.ends for each in found[:1])])}")


def longest_of(ordered: NDArray[np.int64], batch: int) -> float:
    """How long the longest of `batch` samples is on average, drawn with replacement from n ordered lengths: `sum_i l_i ((i / n)^b - ((i - 1) / n)^b)`."""
    below = (np.arange(len(ordered) + 1) / len(ordered)) ** batch
    return float(np.diff(below) @ ordered)


def whole_steps(length: float) -> int:
    """The next length that the recordings tell."""
    return max(1, -int(-length // STEP)) * STEP


def _row(lengths: Lengths, gpu: Gpu, ordered: NDArray[np.int64]) -> PaddedRow:
    safe = fit(lengths.at(whole_steps(float(ordered[-1]))), gpu).batch
    likely = max(safe, _likely(lengths, gpu, ordered))
    return _of_batch(lengths, gpu, (safe, likely), longest_of(ordered, likely) if likely else float(ordered[-1]), float(ordered.mean()))


def _of_batch(lengths: Lengths, gpu: Gpu, batches: tuple[int, int], longest: float, mean_len: float) -> PaddedRow:
    """The row of a safe and a likely batch whose longest sample has so many tokens, and whose samples so many on average."""
    safe, likely = batches
    padded_len = whole_steps(longest)
    if not likely:
        return PaddedRow(gpu=gpu.id, largest_batch=0, likely_batch=0, padded_len=padded_len, useful=None, useful_tokens_per_s=None)
    speed = mean_len * likely / step_time(lengths.at(padded_len), gpu, likely).seconds
    return PaddedRow(gpu=gpu.id, largest_batch=safe, likely_batch=likely, padded_len=padded_len, useful=mean_len / padded_len, useful_tokens_per_s=speed)


def _likely(lengths: Lengths, gpu: Gpu, ordered: NDArray[np.int64]) -> int:
    """The largest batch that likely trains, padded as such batches are on average: the larger it is, the longer."""

    def room(batch: int) -> int:
        return fit(lengths.at(whole_steps(longest_of(ordered, batch))), gpu).likely_batch

    low, high = 0, room(1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if room(middle) >= middle else (low, middle - 1)
    return low
