# SPDX-License-Identifier: Apache-2.0
"""Polynomials in the batch, of samples and of pairs of samples, their maximum, and the one law that solves for the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bsmodel.units import format_bytes, whole, wholes

UNBOUNDED = int(np.iinfo(np.int64).max)
Integer = int | np.integer
Integers = Sequence[int] | NDArray[np.integer]
Coefficients = NDArray[np.int64]  # of shape (3, n): fixed, per sample and per pair


def pairs(batch: Any) -> Any:
    """Pairs of samples in a batch, `b (b - 1) / 2`, with nothing on the way that is larger; whole numbers or an array of them."""
    return batch // 2 * (batch - 1 | 1)


@dataclass(frozen=True)
class Polynomial:
    """`fixed + per_sample * b + per_pair * b (b - 1) / 2`, in bytes: what there is anyway, for every sample, and for every pair of samples.

    So written, coefficients are whole exactly where all values are (Newton's forward differences): half a square matrix, or `b^2 = b + 2 b (b - 1) / 2`.
    """

    fixed: int
    per_sample: int
    per_pair: int = 0

    def __call__(self, batch: int) -> int:
        return self.fixed + self.per_sample * batch + self.per_pair * int(pairs(batch))

    @property
    def is_size(self) -> bool:
        """Whether it is nowhere below zero and never falls, for b >= 1: one sample more adds `per_sample + per_pair * b`."""
        return self.per_pair >= 0 and self.per_sample + self.per_pair >= 0 and self(1) >= 0

    def __str__(self) -> str:
        squared = f" + {format_bytes(self.per_pair)} b(b-1)/2" if self.per_pair else ""
        return f"{format_bytes(self.fixed)} + {format_bytes(self.per_sample)} b{squared}"


NOTHING = Polynomial(0, 0)


def interpolated(values: Any, batches: Sequence[int]) -> tuple[Any, Any, Any]:
    """Fixed, per sample and per pair of the polynomial through the first three values, numbers or arrays of them, at as many batches."""
    (x, y, z), (at_x, at_y, at_z) = batches[:3], values[:3]
    per_pair = 2 * ((at_z - at_y) * (y - x) - (at_y - at_x) * (z - y)) / ((z - y) * (y - x) * (z - x))
    per_sample = (at_y - at_x - per_pair * (pairs(y) - pairs(x))) / (y - x)
    return at_x - per_sample * x - per_pair * pairs(x), per_sample, per_pair


def values(coefficients: Coefficients, batch: Any) -> NDArray[np.int64]:
    """All polynomials at one or several batches: an array of shape (batches..., n)."""
    fixed, per_sample, per_pair = coefficients
    batches = np.asarray(batch, np.int64)[..., None]
    lines = fixed + per_sample * batches
    return np.asarray(lines + per_pair * pairs(batches) if per_pair.any() else lines)


def polynomials(coefficients: Coefficients, chosen: Iterable[int]) -> tuple[Polynomial, ...]:
    """Some of the polynomials, one by one."""
    return tuple(Polynomial(*map(int, coefficients[:, index])) for index in chosen)


@dataclass(frozen=True)
class Envelope:
    """The maximum of polynomials: `M(b) = max_t (f_t + s_t b + p_t b (b - 1) / 2)`, convex and non-decreasing where each `is_size`.

    Valid for b >= 1 and values below 2**63.
    """

    polynomials: tuple[Polynomial, ...]

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
        highest = np.asarray(values(self._coefficients, batches).max(axis=-1))
        return int(highest) if np.isscalar(batch) else highest

    def binding(self, batch: int) -> int:
        """Index of the polynomial that is highest at `batch`; of equals, the first. Raises `InvalidInputError` as calling it does."""
        return int(np.argmax(values(self._coefficients, whole("batch", batch, most=self._most))))

    @overload
    def largest(self, capacity: Integer) -> int: ...
    @overload
    def largest(self, capacity: Integers) -> NDArray[np.int64]: ...
    def largest(self, capacity: Integer | Integers) -> int | NDArray[np.int64]:
        """The largest batch with `M(b) <= capacity`, 0 where not even one sample fits: the least over t, with r_t = capacity - f_t, of
        `floor(r_t / s_t)` where p_t = 0, and of `floor((p_t - 2 s_t + sqrt((p_t - 2 s_t)^2 + 8 p_t r_t)) / (2 p_t))` elsewhere.

        `capacity` in bytes, one (gives an int) or several (gives an int64 array). What does not grow allows any batch
        (`UNBOUNDED`) or none. Whole numbers all the way. Raises `InvalidInputError` for what is no whole number of bytes.
        """
        capacities = wholes("capacity", capacity, least=0, most=UNBOUNDED)
        batch = np.asarray(np.min([_largest(polynomial, capacities) for polynomial in self.polynomials], axis=0))
        return int(batch) if np.isscalar(capacity) else batch

    @property
    def _most(self) -> int:
        """The largest batch whose bytes are below 2**63."""
        return self.largest(UNBOUNDED)

    @property
    def _coefficients(self) -> Coefficients:
        return np.array([(each.fixed, each.per_sample, each.per_pair) for each in self.polynomials], np.int64).T


def _largest(polynomial: Polynomial, capacities: NDArray[np.int64]) -> NDArray[np.int64]:
    if polynomial.per_pair:
        within = [_within(polynomial, capacity) for capacity in capacities.ravel().tolist()]
        return np.array([max(0, last) if first <= last else 0 for first, last in within], np.int64).reshape(capacities.shape)
    if polynomial.per_sample <= 0:
        return np.where(capacities >= polynomial.fixed, UNBOUNDED, 0)
    whole_samples, rest = divmod(polynomial.fixed, polynomial.per_sample)
    return np.maximum((capacities - rest) // polynomial.per_sample - whole_samples, 0)


def _within(polynomial: Polynomial, ceiling: int) -> tuple[int, int]:
    """The first and last whole number up to which a polynomial with `per_pair` above zero is at most `ceiling`: none where the last is lower.

    `floor((x + sqrt(d)) / n) = floor((x + floor(sqrt(d))) / n)` for whole x, d and n, so nothing is rounded.
    """
    shift, width = 2 * polynomial.per_sample - polynomial.per_pair, 2 * polynomial.per_pair
    square = shift**2 + 4 * width * (ceiling - polynomial.fixed)
    if square < 0:
        return 1, 0
    return -((shift + isqrt(square)) // width), (isqrt(square) - shift) // width


def upper_envelope(coefficients: Coefficients) -> list[int]:
    """Indices of the polynomials that are highest somewhere at b >= 1, in the order in which they first are.

    Those with the same bytes per pair differ by lines, and only the upper hull of these can be highest; among what is left of several such
    classes, the way leads from b = 1 to each next whole batch at which another overtakes the highest.
    """
    fixed, per_sample, per_pair = coefficients
    hulls = [_hull(fixed, per_sample, np.flatnonzero(per_pair == size)) for size in np.unique(per_pair)]
    if len(hulls) == 1:
        return hulls[0]
    kept = [index for hull in hulls for index in hull]
    return _overtaking(dict(zip(kept, polynomials(coefficients, kept), strict=True)))


def _hull(fixed: NDArray[np.int64], per_sample: NDArray[np.int64], among: NDArray[np.intp]) -> list[int]:
    """Indices of the lines that are highest somewhere at b >= 1, by rising slope.

    Monotone-chain upper hull in exact integers: after sorting by slope, a line leaves when its neighbours meet above it.
    """
    order = among[np.lexsort((among, -fixed[among], per_sample[among]))]
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


def _overtaking(candidates: Mapping[int, Polynomial]) -> list[int]:
    """Keys of the polynomials that are highest at some whole batch, in the order in which they first are; of equals, what grows fastest."""
    found: dict[int, None] = {}
    batch: int | None = 1
    while batch is not None:
        here = [(each(batch), each(batch + 1), each.per_pair) for each in candidates.values()]
        highest = max(zip(candidates, here, strict=True), key=lambda item: item[1])[0]
        found[highest] = None
        ahead = (_overtakes(each, candidates[highest], batch) for each in candidates.values())
        batch = min((other for other in ahead if other is not None), default=None)
    return list(found)


def _overtakes(other: Polynomial, highest: Polynomial, batch: int) -> int | None:
    """The first batch after this one at which the other is higher, which it is not here; None where it never is."""
    lead = Polynomial(other.fixed - highest.fixed, other.per_sample - highest.per_sample, other.per_pair - highest.per_pair)
    if lead.per_pair > 0:
        return _within(lead, 0)[1] + 1
    if lead.per_pair < 0:  # higher between two batches, and nowhere else
        first, last = _within(Polynomial(-lead.fixed, -lead.per_sample, -lead.per_pair), -1)
        return first if batch < first <= last else None
    return -((lead.fixed - 1) // lead.per_sample) if lead.per_sample > 0 else None
