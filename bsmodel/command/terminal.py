# SPDX-License-Identifier: Apache-2.0
"""Tables and lines for the window they are read in: as wide as it is, in colour where it has any."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 140  # where nobody says how wide the output is read
_GAP = 2
_LEAST_TEXT = 26  # columns that a longer text is folded to, rather than that the table goes on below
_STYLES = {"out of memory": "bold red", "tight": "yellow", "roomy": "green"}

Cell = str | Text


def width() -> int:
    """Columns of the terminal, or of `COLUMNS`; 140 for a pipe."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return max(40, int(asked))
    return max(40, os.get_terminal_size(sys.stdout.fileno()).columns) if sys.stdout.isatty() else PIPE_COLUMNS


def render(*parts: RenderableType) -> str:
    """Text of tables and lines; plain where the output is no terminal or `NO_COLOR` is set."""
    in_window = sys.stdout.isatty()
    console = Console(width=width(), force_terminal=in_window, color_system="auto" if in_window else None, highlight=False)
    with console.capture() as capture:
        console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def table(*columns: tuple[str, str], rows: Iterable[Sequence[Cell]], repeated: int = 1) -> RenderableType:
    """A table, each column a heading and "right" or ""; one too wide for the window continues below, its first columns repeated."""
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    wide = [max(len(heading), *(cell.cell_len for cell in column), 0) for (heading, _), column in zip(columns, zip(*cells, strict=True), strict=True)]
    wide = wide or [len(heading) for heading, _ in columns]
    least = [size if side == "right" else max(len(heading), min(size, _LEAST_TEXT)) for size, (heading, side) in zip(wide, columns, strict=True)]
    parts: list[RenderableType] = []
    for group in _groups(least, repeated):
        parts += [Text("")] if parts else []
        parts.append(_table([columns[i] for i in group], [[row[i] for i in group] for row in cells]))
    return Group(*parts)


def _groups(wide: Sequence[int], repeated: int) -> list[list[int]]:
    """Numbers of the columns that stand side by side, in order; each group begins with the first ones."""
    first = list(range(repeated))
    whole = width() - sum(wide[number] + _GAP for number in first)
    groups, room = [[*first]], whole
    for number in range(repeated, len(wide)):
        if room < wide[number] and len(groups[-1]) > repeated:
            groups.append([*first])
            room = whole
        groups[-1].append(number)
        room -= wide[number] + _GAP
    return groups


def _table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Text]]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="")
    for heading, side in columns:
        made.add_column(heading, justify="right" if side == "right" else "left", overflow="fold", no_wrap=side == "right")
    for row in rows:
        made.add_row(*row)
    return made


def verdict(fits: bool, headroom_bytes: int, usable_bytes: int) -> Text:
    """OUT OF MEMORY, tight (less than a twentieth of the card is left) or roomy."""
    word = "out of memory" if not fits else "tight" if headroom_bytes < usable_bytes / 20 else "roomy"
    return Text(word.upper() if not fits else word, style=_STYLES[word])
