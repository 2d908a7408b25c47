# SPDX-License-Identifier: Apache-2.0
"""Memory against the batch as bars of letters, for whoever reads in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsmodel.command.terminal import Cell, Part, bar, in_window, styled, table, upright, width
from bsmodel.memory import LARGEST, Footprint
from bsmodel.studies import Row
from bsmodel.units import GiB, format_bytes

if TYPE_CHECKING:
    from rich.text import Text

_MOST_ROWS = 8  # powers of two, the largest ones
_LEAST, _MOST = 16, 80  # columns of a bar
_BESIDE = 30  # columns that batch and bytes take
_ABOVE = 1.1  # of the largest card, up to which bars go


def memory_bars(form: Footprint, rows: Sequence[Row]) -> list[Part]:
    """Bytes requested at powers of two up to the first above what runs on any of these cards, with a line for what each has; none in a pipe."""
    usable = {row.gpu: row.usable_bytes for row in rows if row.usable_bytes}
    columns = min(_MOST, width() - _BESIDE)
    if not in_window() or not usable or columns < _LEAST:
        return []
    end = _ABOVE * max(usable.values())
    places = sorted({int(size / end * columns) for size in usable.values()})
    lines: list[list[Cell]] = [[f"{batch:,}", format_bytes(form(batch)), _crossed(_within(form(batch) / end, columns), places)] for batch in _powers(rows)]
    cards = ", ".join(f"{gpu} {size / GiB:.2f}" for gpu, size in sorted(usable.items(), key=lambda item: item[1]))
    named = styled(f"{upright()} GiB usable: {cards}; what is reserved comes on top of the bars", "yellow")
    return ["", table(("b", "right"), ("requested", "right"), ("", ""), rows=lines), named]


def _powers(rows: Sequence[Row]) -> list[int]:
    """Powers of two up to the largest batch of all cards, and the next where memory is what limits that."""
    largest = max(row.likely_batch or 0 for row in rows)
    bounded = any(row.bounded is not False for row in rows if (row.likely_batch or 0) == largest)
    most = min(LARGEST, 1 << largest.bit_length() if bounded else largest)
    return [1 << power for power in range(most.bit_length())][-_MOST_ROWS:]


def _within(length: float, columns: int) -> str:
    """A bar that says where it goes on beyond its columns."""
    return bar(length, columns) if length <= 1 else f"{bar(1, columns - 1)}>"


def _crossed(drawn: str, places: Sequence[int]) -> Text:
    """A bar with lines across it."""
    from rich.text import Text

    letters = [*drawn.ljust(places[-1] + 1)]
    found = Text()
    for place, letter in enumerate(letters):
        found.append(upright() if place in places else letter, style="yellow" if place in places else "cyan")
    return found
