# SPDX-License-Identifier: Apache-2.0
"""A grid of numbers, each written in its cell, the deeper its colour the larger; cells without a number say why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from bsmodel.pages.drawing import HOVER, Spec, framed, quick
from bsmodel.pages.looks import Look
from bsmodel.pages.tiles import LETTER, MOST_NAME, PALEST, Tile, depths

_LINE, _MOST_HEADING = 25, 160  # [px]: of a line's height, and of a heading's length
_SLANT = 35  # [degrees], of headings
_STATES = ("known", "wrong", "unknown")
# A line is named by its number and what it is called, so that two of one name stay two.
_CALLED = "slice(datum.value, indexof(datum.value, '|') + 1)"


@quick
def grid(lines: Sequence[tuple[str, str]], columns: Sequence[str], tiles: Sequence[Tile], colour: str, description: str, look: Look) -> Spec:
    """`lines` are what each is part of and its own name; where what they are part of changes, it stands above them, and colours begin anew."""
    names, heads = _names(lines)
    deep = _depths(lines, tiles)
    rows = [_row(tile, names[tile.line], deep[place]) for place, tile in enumerate(tiles)]
    top = alt.Axis(orient="top", labelAngle=-_SLANT, labelAlign="left", domain=False, ticks=False, labelLimit=_MOST_HEADING, labelOverlap=False)
    left = alt.Axis(labelExpr=_CALLED, domain=False, ticks=False, labelLimit=MOST_NAME, labelOverlap=False, labelPadding=8)
    x = alt.X("column:N", title=None).scale(domain=list(columns), paddingInner=0.04, paddingOuter=0).axis(top)
    order = [name for head, name in zip(heads, names) for name in ([head] if head else []) + [name]]
    y = alt.Y("line:N", title=None).scale(domain=order, paddingInner=0.08, paddingOuter=0).axis(left)
    base = alt.Chart().encode(x=x, y=y)
    fill = alt.Color("state:N", legend=None).scale(domain=_STATES, range=[colour, look.bad, look.soft])
    ink = alt.Color("state:N", legend=None).scale(domain=_STATES, range=[look.ink, look.bad, look.soft])
    layers: list[Any] = [base.mark_rect().encode(fill=fill, fillOpacity=alt.Opacity("depth:Q", legend=None).scale(None))]
    layers.append(base.mark_text(fontSize=12, baseline="middle").encode(text="text:N", color=ink))
    layers += [_outlined(rows, x, y, look)] if any(row["best"] for row in rows) else []
    layers += [_headed(lines, heads, y, look)] if any(heads) else []
    told = [alt.Tooltip(f"t{place}:N", title=title) for place, (title, _) in enumerate(tiles[0].told)] if tiles else []
    said = alt.ExprRef(f"datum.column + ', ' + {_CALLED.replace('value', 'line')} + ': ' + datum.text")
    layers.append(base.mark_rect(fillOpacity=0, cursor="pointer", aria=True, description=said).encode(tooltip=told).properties(name=HOVER))
    apart = {"resolve": {"scale": {"color": "independent"}}, "padding": {"left": 4, "top": 4, "bottom": 4, "right": _beyond(columns)}}
    return {**framed(layers, look, description, rows), "height": _LINE * len(order), **apart}


def _beyond(columns: Sequence[str]) -> int:
    """How far the heading of the last column reaches beyond it, in pixels."""
    return 4 + round(min(_MOST_HEADING, LETTER * len(columns[-1])) * math.cos(math.radians(_SLANT)))


def _names(lines: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """What lines are called on the axis, and what the heading above each is, or nothing."""
    before = ["", *(part for part, _ in lines)]
    names = [f"{place}|{name}" for place, (_, name) in enumerate(lines)]
    return names, [f"above {place}|" if part and part != above else "" for place, ((part, _), above) in enumerate(zip(lines, before))]


def _depths(lines: Sequence[tuple[str, str]], tiles: Sequence[Tile]) -> dict[int, float | None]:
    """How deep the colour of each tile is, by its place, among those of what it is part of."""
    parts: dict[str, list[int]] = {}
    for place, tile in enumerate(tiles):
        parts.setdefault(lines[tile.line][0], []).append(place)
    found = ((places, depths([tiles[place].value for place in places])) for places in parts.values())
    return {place: depth for places, several in found for place, depth in zip(places, several, strict=True)}


def _row(tile: Tile, line: str, depth: float | None) -> dict[str, Any]:
    state = _STATES[1] if tile.wrong else _STATES[2] if depth is None else _STATES[0]
    told = {f"t{place}": text for place, (_, text) in enumerate(tile.told)}
    found = {"line": line, "column": tile.column, "text": tile.text, "state": state, "depth": round(PALEST if depth is None else depth, 3)}
    return found | {"best": tile.best, "row": tile.row} | told


def _outlined(rows: Sequence[dict[str, Any]], x: alt.X, y: alt.Y, look: Look) -> Any:
    best = [{"line": row["line"], "column": row["column"]} for row in rows if row["best"]]
    return alt.Chart(alt.Data(values=best)).mark_rect(filled=False, stroke=look.ink, strokeWidth=2).encode(x=x, y=y)


def _headed(lines: Sequence[tuple[str, str]], heads: Sequence[str], y: alt.Y, look: Look) -> Any:
    named = [{"line": head, "text": part} for (part, _), head in zip(lines, heads) if head]
    written = alt.Chart(alt.Data(values=named)).mark_text(align="left", baseline="middle", fontWeight=600, fontSize=12, color=look.ink)
    return written.encode(x=alt.value(2), y=y, text="text:N")
