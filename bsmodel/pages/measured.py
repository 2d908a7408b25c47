# SPDX-License-Identifier: Apache-2.0
"""Charts of predictions held against measurements: one against the other, the share of cases within an error, and the errors case by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from bsmodel.pages.comparisons import Comparison
from bsmodel.pages.drawing import HOVER, Rows, Spec, framed, quick
from bsmodel.pages.looks import Look
from bsmodel.pages.parts import UNKNOWN, number, short

BAND = 0.1  # to either side of what was measured
_ROOM = 1.15  # beyond the least and the most, of a logarithmic axis
_STEP, _BAR, _NUMBER = 34, 9, 66  # [px] of a case: its name with its bar below, the bar, and the number to the right
_SMALL = 0.001  # an error, from which on the axis is logarithmic
_SIZES = (0, *(digit * 10.0**power for power in range(-3, 2) for digit in (1, 2, 5)))  # ticks of that axis
_SHARES = (0, 0.25, 0.5, 0.75, 0.95, 1)
_LIES = {"": "no interval was predicted", "inside": "inside the interval", "above": "above the interval", "below": "below the interval"}
_OUTSIDE = f"datum.lies === '{_LIES['above']}' || datum.lies === '{_LIES['below']}'"


@quick
def predicted_against_measured(found: Sequence[Comparison], unit: tuple[float, str], figures: Sequence[str], look: Look) -> Spec:
    """Predictions over measurements on logarithmic axes, with their intervals, the diagonal and a band around it; red where the measurement is outside.

    `unit`: what one of the axes is, in the unit of the comparisons, and its name. `figures` have the colours of kinds, in their order.
    """
    size, name = unit
    rows = [{**_row(each, size), **{end: short(at / size) for end, at in zip(("low", "high"), _ends(each), strict=True)}} for each in found]
    sizes = [row[value] for row in rows for value in ("predicted", "measured", "low", "high") if row[value] > 0]
    low, high = min(sizes) / _ROOM, max(sizes) * _ROOM
    scale = alt.Scale(type="log", domain=[short(low), short(high)], nice=False)
    x = alt.X("measured:Q", title=f"measured [{name}]").scale(scale).axis(format="~g", tickCount=5)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title=f"predicted [{name}]").scale(scale).axis(format="~g", tickCount=5)

    line = alt.Chart(alt.NamedData(name="diagonal")).encode(x=x)
    base, colour = alt.Chart().encode(x=x), _colour(figures, look)
    layers: list[Any] = [line.mark_area(color=look.soft, opacity=0.15, clip=True).encode(y=y("less"), y2="more:Q")]
    layers.append(line.mark_line(color=look.soft, strokeWidth=1.5).encode(y=y("measured")))
    layers.append(base.mark_rule(strokeWidth=1.5, opacity=0.6, clip=True).encode(y=y("low"), y2="high:Q", color=colour))
    layers.append(base.mark_point(filled=True, size=36, opacity=0.7).encode(y=y("predicted"), color=colour))
    layers.append(base.transform_filter(_OUTSIDE).mark_point(size=110, strokeWidth=1.5, color=look.bad).encode(y=y("predicted")))
    layers.append(base.mark_point(filled=True, size=160, opacity=0).encode(y=y("predicted"), tooltip=_told(name)).properties(name=HOVER))
    diagonal = [{"measured": short(at), "less": short(at * (1 - BAND)), "more": short(at * (1 + BAND))} for at in (low, high)]
    return framed(layers, look, f"Predicted over measured, in {name} on logarithmic axes; on the line both are the same", rows, {"diagonal": diagonal})


@quick
def relative_errors(found: Sequence[Comparison], unit: tuple[float, str], figures: Sequence[str], look: Look) -> Spec:
    """A bar for each, in the order given, of predicted over measured less one, with the interval; red where the measurement is outside.

    `unit` and `figures` are as in `predicted_against_measured`.
    """
    rows = []
    for place, each in enumerate(found):
        low, high = (short(end / each.measured - 1) for end in _ends(each))
        rows.append({"place": place, **_row(each, unit[0]), "from": low, "to": high})
    y = alt.Y("place:O", axis=None)
    reach = [0.0, *(row[name] for row in rows for name in ("error", "from", "to")), *((-0.001, 0.001) if not any(each.error for each in found) else ())]
    scale = alt.Scale(domain=[short(min(reach)), short(max(reach))], rangeMax=alt.ExprRef(f"width - {_NUMBER}"))

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title="predicted too little ← error → too much", stack=None).scale(scale).axis(format=".3~%", tickCount=5, grid=False)

    base = alt.Chart().encode(y=y)
    colour = alt.condition(_OUTSIDE, alt.value(look.bad), _colour(figures, look))
    named = base.mark_text(align="left", dy=-_BAR, color=look.ink, limit=alt.ExprRef(f"width - {_NUMBER}"))
    numbered = base.mark_text(align="right", dy=-_BAR, color=look.ink, fontWeight=600).encode(x=alt.value("width"))
    layers: list[Any] = [
        base.mark_bar(size=_BAR, yOffset=_BAR / 2).encode(x=x("error"), color=colour),
        base.mark_rule(strokeWidth=1.5, yOffset=_BAR / 2, color=look.ink).encode(x=x("from"), x2="to:Q"),
        base.mark_tick(orient="vertical", size=2 * _BAR, thickness=1.5, yOffset=_BAR / 2, color=look.soft).encode(x=alt.XDatum(0)),
        named.encode(x=alt.value(0), text="case:N"),
        numbered.encode(text=alt.Text("error:Q", format="+.2%")),
        base.mark_rect(opacity=0).encode(x=alt.value(0), x2=alt.value("width"), tooltip=_told(unit[1])).properties(name=HOVER),
    ]
    return {**framed(layers, look, "Errors of the predictions, case by case", rows), "height": _STEP * len(rows)}


@quick
def error_shares(found: Sequence[Comparison], figures: Sequence[str], look: Look) -> Spec:
    """For each figure the share of its cases whose error is at most so large, either way; the axis is linear only near zero."""
    rows: Rows = []
    for figure in dict.fromkeys(each.figure for each in found):
        sizes = sorted(abs(each.error) for each in found if each.figure == figure)
        rows += [{"figure": figure, "size": 0, "share": 0}]
        rows += [{"figure": figure, "size": short(size), "share": short(place / len(sizes))} for place, size in enumerate(sizes, 1)]
    most = max(10 * _SMALL, *(row["size"] for row in rows))
    x = alt.X("size:Q", title="error at most").scale(type="symlog", constant=_SMALL, domain=[0, most], nice=False)
    x = x.axis(format=".3~%", values=[size for size in _SIZES if size <= most], labelOverlap="greedy", labelSeparation=6)
    y = alt.Y("share:Q", title="share of the cases").scale(domain=[0, 1]).axis(format="%", values=list(_SHARES))
    told = [alt.Tooltip("figure:N"), alt.Tooltip("size:Q", title="error at most", format=".2%"), alt.Tooltip("share:Q", title="of the cases", format=".1%")]
    base = alt.Chart().encode(x=x, y=y)
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(color=_colour(figures, look))
    hovered = base.mark_point(filled=True, size=160, opacity=0).encode(tooltip=told).properties(name=HOVER)
    return framed([line, hovered], look, "The share of the cases whose error is at most so large", rows)


def _row(each: Comparison, size: float) -> dict[str, Any]:
    """A comparison in the unit of the chart, with its interval as text."""
    sizes = {"predicted": short(each.predicted / size), "measured": short(each.measured / size), "error": short(each.error)}
    return {"case": each.case, "figure": each.figure, **sizes, "interval": _interval(each, size), "lies": _LIES[each.lies]}


def _ends(each: Comparison) -> tuple[float, float]:
    """The interval; an end that is not said is where the prediction is."""
    low, high = (each.predicted if end is None else end for end in (each.low, each.high))
    return low, high


def _interval(each: Comparison, size: float) -> str:
    if each.low is not None and each.high is not None:
        return f"{number(each.low / size)} to {number(each.high / size)}"
    if each.high is not None:
        return f"at most {number(each.high / size)}"
    return UNKNOWN if each.low is None else f"at least {number(each.low / size)}"


def _colour(figures: Sequence[str], look: Look) -> alt.Color:
    return alt.Color("figure:N", legend=None).scale(domain=list(figures), range=[look.kinds[place % len(look.kinds)] for place in range(len(figures))])


def _told(unit: str) -> list[alt.Tooltip]:
    sizes = [alt.Tooltip(f"{name}:Q", title=f"{name} [{unit}]", format=",.4~r") for name in ("predicted", "measured")]
    ends = alt.Tooltip("interval:N", title=f"interval [{unit}]")
    return [alt.Tooltip("case:N"), alt.Tooltip("figure:N"), *sizes, ends, alt.Tooltip("lies:N", title="measured"), alt.Tooltip("error:Q", format="+.2%")]
