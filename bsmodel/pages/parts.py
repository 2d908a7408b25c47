# SPDX-License-Identifier: Apache-2.0
"""What a page is made of, as plain values: tables, drawings, and sections that hold them; nothing here knows how they are written."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

UNKNOWN = "–"
ITSELF = "(the step itself)"  # what belongs to no module
_FORMULAE = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets compute where a cell begins so


def number(value: float | None) -> str:
    """Four digits; a dash where nothing is known."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> float:
    """Six digits: no chart shows more."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Column:
    """A heading and a cell for each line; `right` for numbers."""

    heading: str
    cells: tuple[str, ...]
    right: bool = True


@dataclass(frozen=True)
class Table:
    """Columns under a caption; `name` is that of its file, `keys` are the batches of its lines, where they are of batches."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    keys: tuple[int, ...] = ()

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """The cells, line by line."""
        return tuple(zip(*(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True)
class Drawing:
    """A chart: `kinds` are its colours that are not those of batches, by number and name.

    Below `least` pixels it is scrolled through. `table` is the name of the one whose lines its cells are of: a click shows that `row`.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    kinds: tuple[tuple[int, str], ...] = ()
    least: int = 0
    table: str = ""


@dataclass(frozen=True)
class Choice:
    """A batch that can be looked at: `said` is its line of numbers, `colour` the name of its colour in the charts."""

    batch: int
    said: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Section:
    """Charts under a heading; `said` is what is to be said of all of them, and why one is not there.

    `choices` are the batches that one may look at: in the charts of this section, or, where `alone` is not set, in those of the whole page.
    """

    title: str
    said: tuple[str, ...]
    drawings: tuple[Drawing, ...] = ()
    table: Table | None = None
    choices: tuple[Choice, ...] = ()
    alone: bool = False


def as_csv(table: Table) -> str:
    """The table as it is read, with commas between; a text that a spreadsheet would compute begins with an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(_harmless(column.heading) for column in table.columns)
    for cells in table.lines:
        writer.writerow(cell if column.right else _harmless(cell) for column, cell in zip(table.columns, cells, strict=True))
    return stream.getvalue()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULAE) and len(cell) > 1 else cell
