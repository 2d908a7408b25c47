# SPDX-License-Identifier: Apache-2.0
"""Tables and lines for the window they are read in: as wide as it is, in colour where it has any."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:  # rich is imported by what it renders: help needs none of it
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

PIPE_COLUMNS = 140  # where nobody says how wide the output is read
_GAP = 2
_EIGHTHS = "\u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
_LEAST_BAR, _MOST_BAR = 8, 40  # columns
_LEAST_TEXT = 26  # columns that a longer text is folded to, rather than that the table goes on below
_STYLES = {"out of memory": "bold red", "tight": "yellow", "roomy": "green"}

Cell: TypeAlias = "str | Text"
Part: TypeAlias = "str | RenderableType"


def escaped(text: str) -> str:
    """Text in which nothing steers a terminal: names come from users' files, and may hold line ends and escape sequences."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def in_letters_of(encoding: str | None, text: str) -> str:
    """The text, with letters that the encoding has not as JSON writes them: JSON stays JSON."""
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return "".join(letter if letter.isascii() else json.dumps(letter)[1:-1] for letter in text)
    return text


def styled(text: str, style: str = "") -> Text:
    """Escaped text in a style."""
    from rich.text import Text

    return Text(escaped(text), style=style)


def ellipsis() -> str:
    """What stands for text that is cut, in letters that the output has."""
    return _either("\u2026", "...")


def bar(length: float, columns: int) -> str:
    """A bar of this length, from 0 to 1, of so many columns: to an eighth of one where the output has the letters for it; what is not 0 is seen."""
    blocks = _either(_EIGHTHS, "#")
    steps = math.ceil(min(length, 1) * columns * len(blocks))
    whole, rest = divmod(steps, len(blocks))
    return blocks[-1] * whole + (blocks[rest - 1] if rest else "")


def upright() -> str:
    """What stands for a line across bars."""
    return _either("\u2502", "|")


def _either(letters: str, plain: str) -> str:
    """The letters, or others where the output does not have them."""
    try:
        letters.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return letters


def in_window() -> bool:
    """Whether the output is read in a terminal: only there are bars drawn."""
    return sys.stdout.isatty()


def width() -> int:
    """Columns of the terminal, or of `COLUMNS`; 140 for a pipe."""
    asked = os.environ.get("COLUMNS", "")
    if re.fullmatch("0*[1-9][0-9]{,8}", asked):
        return max(40, int(asked))
    return max(40, os.get_terminal_size(sys.stdout.fileno()).columns) if in_window() else PIPE_COLUMNS


def render(*parts: Part) -> str:
    """Text of tables and lines; plain where the output is no terminal or `NO_COLOR` is set."""
    from rich.console import Console, Group

    text = io.StringIO()
    colours: Literal["auto"] | None = "auto" if in_window() else None
    console = Console(file=text, width=width(), force_terminal=in_window(), color_system=colours, highlight=False)
    console.print(Group(*(styled(part) if isinstance(part, str) else part for part in parts)))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip() + "\n"


def table(*columns: tuple[str, str], rows: Iterable[Sequence[Cell]], repeated: int = 1, bars: Sequence[float] = ()) -> RenderableType:
    """A table, each column a heading and "right" or ""; one too wide for the window continues below, its first columns repeated.

    `bars`: a number for each row, of which a terminal that has room for them shows bars beside the last column.
    """
    from rich.console import Group

    cells = [[styled(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    wide = [max(len(heading), *(row[position].cell_len for row in cells), 0) for position, (heading, _) in enumerate(columns)]
    least = [size if side == "right" else max(len(heading), min(size, _LEAST_TEXT)) for size, (heading, side) in zip(wide, columns, strict=True)]
    parts: list[RenderableType] = []
    for group in (groups := _groups(least, repeated)):
        parts += [""] if parts else []
        headings, lines = [columns[i] for i in group], [[row[i] for i in group] for row in cells]
        room = min(_MOST_BAR, width() - sum(wide[i] + _GAP for i in group))
        if group is groups[-1] and any(bars) and in_window() and room >= _LEAST_BAR:
            headings, lines = [*headings, ("", "")], [[*line, styled(bar(own / max(bars), room), "cyan")] for line, own in zip(lines, bars, strict=True)]
        parts.append(_table(headings, lines))
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
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="")
    for heading, side in columns:
        made.add_column(escaped(heading), justify="right" if side == "right" else "left", overflow="fold", no_wrap=side == "right")
    for row in rows:
        made.add_row(*row)
    return made


def verdict(fits: bool, headroom_bytes: int, usable_bytes: int, before: str = "") -> Text:
    """OUT OF MEMORY, tight (less than a twentieth of the card is left) or roomy, the last two after what stands `before`."""
    word = "out of memory" if not fits else "tight" if headroom_bytes < usable_bytes / 20 else "roomy"
    return styled(f"{before}{word}" if fits else word.upper(), _STYLES[word])
