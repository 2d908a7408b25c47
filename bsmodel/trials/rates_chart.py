# SPDX-License-Identifier: Apache-2.0
"""The chart of a learning rate range test as Vega-Lite, by altair."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from bsmodel.pages import HOVER, Look, Spec, framed, named, short, told
from bsmodel.trials.drawn import Rows
from bsmodel.trials.rates import RateRange

KINDS = ("smoothed loss", "loss of each step")  # what the colours 0 and 1 of the chart are
_LINE = 16  # [px], of a label
_ROOM = 0.06  # of the height, above and below


def rising(found: RateRange, look: Look) -> Spec:
    """The loss of each step against its learning rate, on a logarithmic axis, and its average; a line at each rate that is read from it."""
    rows, scale = _rows(found), _scale(found)
    x = alt.X("rate:Q", title="learning rate").scale(type="log", nice=False).axis(format="~g", labelOverlap="greedy", labelSeparation=6)
    base = alt.Chart().encode(x=x)
    layers: list[Any] = [
        base.mark_line(strokeWidth=1, color=look.kinds[1], clip=True).encode(y=alt.Y("loss:Q", title="loss").scale(scale)),
        base.mark_line(strokeWidth=3, color=look.kinds[0], clip=True).encode(y=alt.Y("smoothed:Q", title="loss").scale(scale)),
        *(layer for place, (rate, label) in enumerate(_read(found)) for layer in _marked(rate, f"{label} {rate:.2g}", place, x, look)),
        *named(KINDS, look),
        base.mark_rule(strokeWidth=8, opacity=0).encode(tooltip=told("step", "loss", rate="learning rate", smoothed="smoothed loss")).properties(name=HOVER),
    ]
    return framed(layers, look, "Loss against a learning rate that rises from step to step, on a logarithmic axis", rows)


def _rows(found: RateRange) -> Rows:
    """A row for each step; a loss that is no number is a gap."""
    steps = zip(found.rates, found.losses, found.smoothed, strict=True)
    return [{"step": place, "rate": short(rate), "loss": _known(loss), "smoothed": _known(mean)} for place, (rate, loss, mean) in enumerate(steps, start=1)]


def _known(loss: float) -> float | None:
    return short(loss) if math.isfinite(loss) else None


def _scale(found: RateRange) -> alt.Scale:
    """The fall of the smoothed loss has at least half of the height: where it diverges it leaves the chart."""
    known = [loss for loss in found.smoothed if math.isfinite(loss)]
    least, begun = min(known), max(known[: known.index(min(known)) + 1])
    most = min(max(known), 2 * begun - least) if begun > least else max(known)
    least = min(least, *(loss for loss in found.losses if math.isfinite(loss)))
    room = _ROOM * (most - least) or 1.0
    return alt.Scale(domain=[short(least - room), short(most + room)], nice=False)


def _read(found: RateRange) -> list[tuple[float, str]]:
    """The rates that are read from the curve, and what they are called."""
    read = ((found.steepest, "steepest fall"), (found.tenth_of_divergence, "a tenth of divergence"), (found.diverged_at, "diverged"))
    return [(rate, label) for rate, label in read if rate is not None]


def _marked(rate: float, label: str, place: int, x: alt.X, look: Look) -> list[Any]:
    at = alt.Chart(alt.Data(values=[{"rate": short(rate), "label": label}])).encode(x=x)
    text = at.mark_text(align="right", baseline="top", dx=-4, dy=_LINE * place, color=look.ink).encode(y=alt.value(2), text="label:N")
    return [at.mark_rule(strokeDash=[6, 4], color=look.soft), text]
