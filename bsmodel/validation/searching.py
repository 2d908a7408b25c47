# SPDX-License-Identifier: Apache-2.0
"""The largest batch that survives, found with few trials around a prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """The largest batch seen to survive, the smallest above it seen to fail, and how many trials that took."""

    largest: int
    first_failure: int
    trials: int


def largest_survivor(survives: Callable[[int], bool], predicted: int, finest: int = 200) -> Search:
    """Step away from the prediction in doubling steps until the verdict changes, then halve the gap.

    Up to `finest` the answer is exact, above it within `1/finest`. Surviving is taken to be monotonic in the batch.
    """
    trials = 0

    def tried(batch: int) -> bool:
        nonlocal trials
        trials += 1
        return survives(batch)

    start = max(1, predicted)
    low, high = _bracket(tried, start, max(1, start // 50))
    while high - low > max(1, high // finest):
        middle = (low + high) // 2
        low, high = (middle, high) if tried(middle) else (low, middle)
    return Search(low, high, trials)


def _bracket(survives: Callable[[int], bool], start: int, step: int) -> tuple[int, int]:
    """A batch that survives (0 for none) and one above it that does not."""
    if survives(start):
        low = start
        while survives(low + step):
            low, step = low + step, 2 * step
        return low, low + step
    high = start
    while high > 1 and not survives(max(1, high - step)):
        high, step = max(1, high - step), 2 * step
    return (max(1, high - step) if high > 1 else 0), high
