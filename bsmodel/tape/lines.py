# SPDX-License-Identifier: Apache-2.0
"""Straight lines in the batch, their maximum, and the one law that solves for the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bsmodel.units import whole, wholes

UNBOUNDED = int(np.iinfo(np.int64).max)
Integer = int | np.integer
Integers = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Line:
    """`fixed + per_sample * b`, in bytes."""

    fixed: int
    per_sample: int

    def __call__(self, batch: int) -> int:
        return self.fixed + self.per_sample * batch


@dataclass(frozen=True)
class Envelope:
    """The maximum of lines: `M(b) = max_t (f_t + s_t b)`, convex and, with no slope below zero, non-decreasing in `b`.

    Valid for b >= 1 and values below 2**63.
    """

    lines: tuple[Line, ...]

    @overload
    def __call__(self, batch: Integer) -> int: ...
    @overload
    def __call__(self, batch: Integers) -> NDArray[np.int64]: ...
    def __call__(self, batch: Integer | Integers) -> int | NDArray[np.int64]:
        """`M(b)` for one batch (an int) or several (an int64 array of their shape).

        Raises `InvalidInputError` for what is no whole number of at least 1, or so large that bytes leave 63 bits.
        """
        batches = wholes("batch", batch)
        if batches.size:
            whole("batch", int(batches.max()), most=self._most)
        highest = np.asarray((self._fixed + self._slopes * batches[..., None]).max(axis=-1))
        return int(highest) if np.isscalar(batch) else highest

    def binding(self, batch: int) -> int:
        """Index of the line that is highest at `batch`; of equals, the first. Raises `InvalidInputError` as calling it does."""
        return int(np.argmax(self._fixed + self._slopes * whole("batch", batch, most=self._most)))

    @overload
    def largest(self, capacity: Integer) -> int: ...
    @overload
    def largest(self, capacity: Integers) -> NDArray[np.int64]: ...
    def largest(self, capacity: Integer | Integers) -> int | NDArray[np.int64]:
        """The largest batch with `M(b) <= capacity`: `min_t floor((capacity - f_t) / s_t)`; 0 where not even one sample fits.

        `capacity` in bytes, one (gives an int) or several (gives an int64 array). A line without a slope allows any batch
        (`UNBOUNDED`) or none. Raises `InvalidInputError` for what is no whole number of bytes.
        """
        capacities = wholes("capacity", capacity, least=0, most=UNBOUNDED)
        room = capacities[..., None] - self._fixed
        flat = np.where(room >= 0, UNBOUNDED, 0)
        batch = np.where(self._slopes > 0, room // np.maximum(self._slopes, 1), flat).min(axis=-1)
        batch = np.asarray(np.maximum(batch, 0))
        return int(batch) if np.isscalar(capacity) else batch

    @property
    def _most(self) -> int:
        """The largest batch whose bytes are below 2**63."""
        return min((UNBOUNDED - line.fixed) // max(1, line.per_sample) for line in self.lines)

    @property
    def _fixed(self) -> NDArray[np.int64]:
        return np.array([line.fixed for line in self.lines], np.int64)

    @property
    def _slopes(self) -> NDArray[np.int64]:
        return np.array([line.per_sample for line in self.lines], np.int64)


def upper_envelope(fixed: NDArray[np.int64], per_sample: NDArray[np.int64]) -> list[int]:
    """Indices of the lines that are highest somewhere at b >= 1, by rising slope.

    Monotone-chain upper hull in exact integers: after sorting by slope, a line leaves when its neighbours meet above it.
    """
    order = np.lexsort((np.arange(len(fixed)), -fixed, per_sample))
    slopes = per_sample[order]
    first_of_slope = np.concatenate([[True], slopes[1:] != slopes[:-1]])
    candidates = [int(i) for i in order[first_of_slope]]
    hull: list[int] = []
    for index in candidates:
        f, s = int(fixed[index]), int(per_sample[index])
        while hull and int(fixed[hull[-1]]) + int(per_sample[hull[-1]]) <= f + s:
            hull.pop()  # at b = 1 already no higher, and the new line is steeper
        while len(hull) >= 2 and _hidden(fixed, per_sample, hull[-2], hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _hidden(fixed: NDArray[np.int64], per_sample: NDArray[np.int64], low: int, middle: int, high: int) -> bool:
    """Whether the middle line lies nowhere above both neighbours (slopes rise from low to high)."""
    f1, s1, f2, s2, f3, s3 = (int(v[i]) for i in (low, middle, high) for v in (fixed, per_sample))
    return (f1 - f3) * (s2 - s1) <= (f1 - f2) * (s3 - s1)
