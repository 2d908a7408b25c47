# SPDX-License-Identifier: Apache-2.0
"""Sections as one self-contained HTML page: what users name is text wherever it stands, and nothing is loaded from elsewhere."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.pages import looks
from bsmodel.pages.parts import Choice, Column, Drawing, Section, Table, as_csv

_TALL = 30  # lines, from which on a table is scrolled through
_LONG = 40  # letters, from which on a cell may have several lines
_JOINED = "\u00a0["  # a unit stays with what it is of
_WRONG = ("out of memory", "OUT OF MEMORY", "diverged", "DIFFER")
# What a browser is told to allow: no address is asked for anything.
_SAFE = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_ASK = "Choose a batch, here or in a chart: it is marked, and its numbers stand here."
_CLICK = "Click a cell, or go to one with tabulator and arrows: all that is known of it stands here, and its line is marked in the table."
_WITHOUT = "<noscript><p>The charts of this page need its script, which is not allowed to run here; the tables have their numbers.</p></noscript>"


def require_charts(what: str = "a page") -> None:
    """Raises `InvalidInputError` where what draws is not installed."""
    for name, package in (("altair", "altair"), ("vl_convert", "vl-convert-python")):
        if importlib.util.find_spec(name) is None:
            raise InvalidInputError(f'{what} needs {package}, which is not installed; pip install "bsmodel[page]"')


def document(name: str, top: str, parts: Sequence[Section], batches: int = 0, stills: bool = False) -> str:
    """The whole page: `top` is HTML above the sections, as `head` writes it, and `batches` how many have a colour of their own.

    `stills`: charts are drawn here as well, for readers without a script; that takes half a second, and a tenth for each.
    """
    body = [f"<header><h1>{escape(name)}</h1></header>", "<main>", top, *(_section(part, stills) for part in parts), "</main>"]
    style = _file("page.css").replace("WHITE", looks.variables(batches, dark=False)).replace("BLACK", looks.variables(batches, dark=True))
    start = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    start += f'<meta http-equiv="Content-Security-Policy" content="{_SAFE}">'
    start += f"<title>bsmodel: {escape(name)}</title><style>{style}</style>"
    inside = "\n".join([*body, *_scripts(parts, stills)])
    return f'<!doctype html>\n<html lang="en"><head>{start}</head>\n<body>\n{inside}\n</body></html>\n'


def head(found: tuple[str, Sequence[str]], asked: tuple[str, Sequence[tuple[str, str]]], remarks: Sequence[str]) -> str:
    """The top of a page: what was found, in sentences, beside what was asked, by name; each under its heading."""
    came = f'<section><h2>{escape(found[0])}</h2><div class="found">{_list(found[1])}</div></section>'
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in asked[1])
    noted = f'<div class="why">{_list(remarks)}</div>' if remarks else ""
    return f'<div class="top">{came}<section><h2>{escape(asked[0])}</h2><dl>{told}</dl>{noted}</section></div>'


# -- scripts -------------------------------------------------------------------------------------------------------------------------------


def _scripts(parts: Sequence[Section], stills: bool) -> list[str]:
    """What downloads tables, and what draws charts: none for a page that has none."""
    tables = {part.table.name: as_csv(part.table) for part in parts if part.table is not None}
    found = [_data("tables", tables), _script(_file("tables.js"))] if tables else []
    drawings = {drawing.name: drawing.spec for part in parts for drawing in part.drawings}
    if drawings:
        from bsmodel.pages.drawing import bundle

        found += [] if stills else [_WITHOUT]
        found += [_data("charts", drawings), _script(bundle()), _script(_file("charts.js").replace("CHOSEN", looks.CHOSEN))]
    return found


def _data(name: str, values: dict[str, Any]) -> str:
    text = json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _script(text: str) -> str:
    return f"<script>{text}</script>"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


# -- parts ---------------------------------------------------------------------------------------------------------------------------------


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _section(part: Section, stills: bool) -> str:
    said = f'<p class="why">{escape(" ".join(part.said))}</p>' if part.said else ""
    drawings = "".join(_figure(drawing, stills) for drawing in part.drawings)
    table = "" if part.table is None else _table(part.table)
    beside, below = (table, "") if len(part.drawings) == 1 else ("", table)
    wide = " three" if len(part.drawings) == 3 else ""
    charts = f'{_legend(part.choices)}<div class="charts{wide}">{drawings}{beside}</div>' if drawings else ""
    return f"<section{' data-group' if part.alone else ''}><h2>{escape(part.title)}</h2>{said}{charts}{below}</section>"


def _legend(choices: Sequence[Choice]) -> str:
    """Buttons that show one batch in the charts; without a script they only name its colour."""
    if not choices:
        return ""
    line = f'<p class="said" aria-live="polite">{_ASK}</p>' if any(choice.said for choice in choices) else ""
    inside = f"<span>Batch</span>{''.join(map(_button, choices))}"
    return f'<div class="legend" role="group" aria-label="Show one batch in all charts">{inside}</div>{line}'


def _button(choice: Choice) -> str:
    colour = f'<i style="background:{escape(choice.colour)}"></i>' if choice.colour else ""
    said = f' data-said="{escape(choice.said)}"' if choice.said else ""
    return f'<button type="button" aria-pressed="false" data-batch="{choice.batch}"{said}>{colour}{choice.batch:,}</button>'


def _figure(drawing: Drawing, stills: bool) -> str:
    from bsmodel.pages.drawing import still

    kinds = "".join(f'<span><i style="background:var(--k{place})"></i>{escape(kind)}</span>' for place, kind in drawing.kinds)
    legend = f'<span class="kinds">{kinds}</span>' if kinds else ""
    caption = f"<figcaption><b>{escape(drawing.title)}</b>{escape(drawing.caption)}{legend}</figcaption>"
    standing = f'<div class="still">{still(drawing.spec)}</div>' if stills else ""
    least = f' style="min-width:{drawing.least}px; max-width:{2 * drawing.least}px"' if drawing.least else ""
    live = f'<div class="live"{least}></div>'
    live = f"{_scrolled(drawing.title)}{live}</div>" if least else live
    told = f'<output class="said" data-table="{drawing.table}">{_CLICK}</output>' if drawing.table else ""
    wide = ' class="wide"' if least else ""
    return f'<figure id="{drawing.name}"{wide}>{caption}{standing}{live}{told}</figure>'


def _table(table: Table) -> str:
    top = "".join(f'<th scope="col"{_side(column)}>{escape(column.heading.replace(" [", _JOINED))}</th>' for column in table.columns)
    lines = []
    for place, cells in enumerate(table.lines):
        first, *rest = (_cell(column, cell, at == 0) for at, (column, cell) in enumerate(zip(table.columns, cells, strict=True)))
        batch = f' data-batch="{table.keys[place]}"' if table.keys else ""
        lines.append(f"<tr{batch}>{first}{''.join(rest)}</tr>")
    inside = f"<table><caption>{escape(table.caption)}</caption><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    tall = " tall" if len(lines) > _TALL else ""
    save = f'<button type="button" class="csv" data-table="{table.name}" hidden>Download as CSV</button>'
    return f'<div class="tabled" id="table-{table.name}">{_scrolled(table.caption, tall)}{inside}</div>{save}</div>'


def _scrolled(name: str, tall: str = "") -> str:
    """The start of what can be scrolled through, by keys too."""
    return f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{escape(name)}">'


def _cell(column: Column, cell: str, heads: bool) -> str:
    wrong = not heads and any(word in cell for word in _WRONG)
    kinds = [*(["bad"] if wrong else ["r"] if column.right else []), *(["long"] if len(cell) > _LONG else [])]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<th scope="row"{kind}>{escape(cell)}</th>' if heads else f"<td{kind}>{escape(cell).replace(' (', '<br>(', 1)}</td>"


def _side(column: Column) -> str:
    return ' class="r"' if column.right else ""
