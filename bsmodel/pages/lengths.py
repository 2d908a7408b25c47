# SPDX-License-Identifier: Apache-2.0
"""Charts against the length of a sample: the largest batch with lines of equal size, and what a step or a second has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from bsmodel.pages.curves import Curve, sign
from bsmodel.pages.drawing import HOVER, Spec, framed, quick
from bsmodel.pages.looks import Look
from bsmodel.pages.parts import short

_GUIDES = 5  # at most
_SHAPES = ("circle", "square", "cross", "diamond", "triangle-up", "triangle-down")  # in the order of `SIGNS`

Rows = list[dict[str, Any]]


@quick
def largest_by_length(curves: Sequence[Curve], recorded: Sequence[int], sizes: Sequence[int], axis: tuple[str, str, int], look: Look) -> Spec:
    """The largest batch against the length, both logarithmic: a line of the sure ones, and a band up to the likely ones.

    `axis` has the title of the lengths, and what a sample is made of, whose number grows as the length to a power: lines join batches of equally many.
    `sizes` are the lengths that are ticks, `recorded` those that recordings are of.
    """
    title, unit, power = axis
    rows = _rows(curves)
    domain = _around([row[name] for row in rows for name in ("value", "likely")])
    base, shape, x, y = _based(curves, sizes, (title, "largest batch [samples]"), domain, look)
    guides = [*_guides(rows, unit, power, domain)]
    lines = alt.Chart(alt.NamedData(name="guides")).mark_line(color=look.soft, strokeWidth=1, strokeDash=[1, 3], opacity=0.7, clip=True)
    layers: list[Any] = [lines.encode(x=x, y=y, detail="label:N")]
    layers.append(base.mark_area(opacity=0.25, clip=True).encode(y2="likely:Q"))
    layers += [*_drawn(base, shape), *_marked(recorded, x, look)]
    titles = {"value": "surely fit", "likely": "likely fit"}
    layers += _named(x, y, look)
    layers.append(_answering(base, title, {**titles, "size": f"{unit} a step"}))
    named = {"guides": [row for guide in guides for row in guide], "named": [guide[-1] for guide in guides]}
    return framed(layers, look, "Largest batch against the length of a sample, on logarithmic axes", rows, named)


@quick
def by_length(curves: Sequence[Curve], sizes: Sequence[int], titles: tuple[str, str], look: Look) -> Spec:
    """A figure at the largest batch against the length, both logarithmic; `titles` are those of the length and of the figure."""
    rows = _rows(curves)
    base, shape, _, _ = _based(curves, sizes, titles, _around([row["value"] for row in rows]), look)
    layers = [*_drawn(base, shape), _answering(base, titles[0], {"value": titles[1]})]
    return framed(layers, look, f"{titles[1]} against the length of a sample, on logarithmic axes", rows)


# -- parts ---------------------------------------------------------------------------------------------------------------------------------


def _rows(curves: Sequence[Curve]) -> Rows:
    return [
        {"gpu": curve.name, "length": reach.length, "value": short(reach.value), "likely": short(reach.likely), "size": short(reach.size)}
        for curve in curves
        for reach in curve.reached
    ]


def _based(
    curves: Sequence[Curve], sizes: Sequence[int], titles: tuple[str, str], domain: tuple[float, float], look: Look
) -> tuple[Any, alt.Shape, alt.X, alt.Y]:
    """A chart with its axes, a colour and a sign for each curve."""
    low, high = sizes[0], max(sizes[-1], sizes[0] + 1)
    x = alt.X("length:Q", title=titles[0]).scale(type="log", base=2, nice=False, domain=[low, high], padding=12)
    x = x.axis(values=list(sizes), format=",d", labelOverlap="greedy", labelSeparation=8, grid=False)
    y = alt.Y("value:Q", title=titles[1]).scale(type="log", nice=False, domain=list(domain)).axis(format="~s", tickCount=6)
    names, signs = [curve.name for curve in curves], [sign(place) for place in range(len(curves))]
    colour = alt.Color("gpu:N", legend=None).scale(domain=names, range=[look.kinds[colour] for colour, _ in signs])
    shape = alt.Shape("gpu:N", legend=None).scale(domain=names, range=[_SHAPES[shape] for _, shape in signs])
    return alt.Chart().encode(x=x, y=y, color=colour), shape, x, y


def _drawn(base: Any, shape: alt.Shape) -> list[Any]:
    return [base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=60, opacity=1).encode(shape=shape)]


def _answering(base: Any, title: str, titles: Mapping[str, str]) -> Any:
    told = [alt.Tooltip("gpu:N", title="GPU"), alt.Tooltip("length:Q", title=title, format=",d")]
    told += [alt.Tooltip(f"{name}:Q", title=named, format=",.6~r") for name, named in titles.items()]
    return base.mark_point(filled=True, size=320, opacity=0).encode(tooltip=told).properties(name=HOVER)


def _marked(recorded: Sequence[int], x: alt.X, look: Look) -> list[Any]:
    """Short strokes at the foot of the chart, where a recording was made."""
    at = alt.Chart(alt.Data(values=[{"length": length} for length in recorded])).encode(x=x)
    return [at.mark_rule(strokeWidth=2, color=look.ink).encode(y=alt.value("height"), y2=alt.value({"expr": "height - 10"}))]


def _named(x: alt.X, y: alt.Y, look: Look) -> list[Any]:
    """What the guides are, where they end, with the page around the letters."""
    at = alt.Chart(alt.NamedData(name="named")).encode(x=x, y=y, text="label:N")
    text: dict[str, Any] = {"align": "right", "baseline": "bottom", "dx": 8, "dy": -1, "fontSize": 11}
    return [at.mark_text(**text, color=look.page, stroke=look.page, strokeWidth=4), at.mark_text(**text, color=look.soft)]


def _around(values: Sequence[float]) -> tuple[float, float]:
    """A little more than what the values go through."""
    low, high = min(values), max(values)
    return short(low / 1.15), short(high * 1.3)


def _guides(rows: Rows, unit: str, power: int, domain: tuple[float, float]) -> Iterator[Rows]:
    """Lines on which a step has equally many tokens or pixels, a power of two; each from where it enters to where it leaves."""
    first, last = min(row["length"] for row in rows), max(row["length"] for row in rows)
    low, high = (math.log2(end(row["size"] for row in rows)) for end in (min, max))
    step = max(1, math.ceil((high - low) / _GUIDES))
    for exponent in range(math.floor(low / step) * step, math.ceil(high) + 1, step):
        enters = max(first, (2**exponent / domain[1]) ** (1 / power))
        leaves = min(last, (2**exponent / domain[0]) ** (1 / power))
        if enters < leaves:
            label = f"{2**exponent:,} {unit}"
            yield [{"length": short(at), "value": short(2**exponent / at**power), "label": label} for at in (enters, leaves)]
