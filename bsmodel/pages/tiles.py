# SPDX-License-Identifier: Apache-2.0
"""The cells of a grid, as plain values: what is written in each, and how deep its colour is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PALEST, DEEPEST = 0.08, 0.62  # opacities: the text on each can be read, on white and on black
LETTER, MOST_NAME, _TILE = 6.6, 420, 58  # [px]: of a name's letter, of a name, and of a cell that a number can be read in
_THOUSANDS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


@dataclass(frozen=True)
class Tile:
    """A cell: the number of its line, its column, and its value, above 0; where it has none, `text` says why, and `wrong` that memory is what lacks.

    `best` is outlined; `told` is what a pointer is told, by title, and `row` the line of the table that a click shows.
    """

    line: int
    column: str
    text: str
    value: float | None
    told: tuple[tuple[str, str], ...]
    row: int
    wrong: bool = False
    best: bool = False


def brief(value: float) -> str:
    """Three digits: 0.0123, 12.3, 123, 12.3k, 1.23M."""
    for letter, size in _THOUSANDS:
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)}{letter}"
    return _three(value)


def _three(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def depths(values: Sequence[float | None]) -> list[float | None]:
    """The opacity of each value, evenly from the smallest to the largest of their logarithms; None where there is none."""
    known = [math.log(value) for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    spread = high - low
    return [None if value is None else PALEST + (DEEPEST - PALEST) * ((math.log(value) - low) / spread if spread > 0 else 0.5) for value in values]


def least_width(names: Sequence[str], columns: Sequence[str]) -> int:
    """Pixels below which the numbers of such a grid can not be read."""
    return round(min(LETTER * max(map(len, names), default=0), MOST_NAME) + _TILE * (len(columns) + 2))
