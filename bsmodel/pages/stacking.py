# SPDX-License-Identifier: Apache-2.0
"""A training step as it passes: what is alive at each moment as a stack of categories, with its phases and the moment that binds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from bsmodel.memory import Moment, StepMemory
from bsmodel.pages.drawing import HOVER, Rows, Spec, framed, quick
from bsmodel.pages.looks import Look, of_category
from bsmodel.pages.parts import ITSELF, short
from bsmodel.units import GiB

_STRIPES = 256  # of the width; the first moment, the last, the lowest and the highest of each are drawn
_ABOVE = 1.2  # of the highest, up to which there is room for words
_LEAST, _LETTER = 0.01, 0.024  # of the width: of a phase that is marked, and of a letter of its name where a page is narrow
_OPTIMIZERS = ("first_step", "open_step", "step", "end")  # blocks

Array = NDArray[np.float64]


@quick
def passing(found: StepMemory, seconds: Array | None, look: Look) -> Spec:
    """The GiB of each category over a step, by its seconds, or where these are not known by its allocations and releases.

    `seconds` are those of every moment, of the end of the micro-steps, and of the step's.
    """
    places = _counted(found) if seconds is None else seconds
    title = "allocations and releases of the step" if seconds is None else "time in the step [s]"
    x = alt.X("x:Q", title=title).scale(domain=[0, short(places[-1])], nice=False).axis(format="~s" if seconds is None else "~g", tickCount=6)
    kept = np.append(thinned(places, found), len(found.moments) - 1)
    tops = np.cumsum(found.bytes[:, kept], axis=0) / GiB
    at = np.append(places[kept[:-1]], places[-1])
    rows = [{"x": short(at[i]), **{f"t{place}": short(top) for place, top in enumerate(tops[:, i])}} for i in range(len(kept))]
    layers = [*_stack(found, x, look), *_phases(found, places, x, look), *_binding(found, places, x, look)]
    told = [alt.Tooltip(f"{name}:N") for name in ("module", "operator", "phase")] + [alt.Tooltip("total:Q", title="total [GiB]", format=".4f")]
    told += [alt.Tooltip(f"c{place}:Q", title=f"{name} [GiB]", format=".4f") for place, name in reversed([*enumerate(found.categories)])]
    seen = alt.Chart(alt.NamedData(name="seen")).mark_rect(opacity=0).encode(x=x, x2=alt.X2("until:Q"), tooltip=told).properties(name=HOVER)
    return framed([*layers, seen], look, "Bytes over a training step, stacked by category", rows, {"seen": _seen(found, places)})


def thinned(places: Array, found: StepMemory) -> NDArray[np.int64]:
    """The moments that are drawn, in order: of each stripe of the width the first, the last, the lowest and the highest, and the binding one.

    After Jugel et al. 2014, "M4: a visualization-oriented time series data aggregation": no extreme that is wider than a stripe is lost, nor any peak.
    """
    chosen = {0, len(found.moments) - 1, found.binding}
    for begin, end in _stripes(places):
        total = found.total_bytes[begin:end]
        chosen |= {begin, end - 1, begin + int(total.argmin()), begin + int(total.argmax())}
    return np.array(sorted(chosen), np.int64)


def _stripes(places: Array) -> Iterator[tuple[int, int]]:
    """From which moment to which each stripe goes that has any."""
    stripe = np.minimum(places[:-2] / places[-1] * _STRIPES, _STRIPES - 1).astype(np.int64)
    begins = [0, *(np.flatnonzero(np.diff(stripe)) + 1).tolist(), len(stripe)]
    yield from itertools.pairwise(begins)


def _stack(found: StepMemory, x: alt.X, look: Look) -> Iterator[Any]:
    """An area for each category on top of those before it, and a legend."""
    colours = {name: of_category(name, look) for name in found.categories}
    scale = alt.Scale(domain=[0, short(_ABOVE * found.total_bytes.max() / GiB)], nice=False)
    for place, name in enumerate(found.categories):
        edge = alt.OverlayMarkDef(strokeWidth=0.75, color=colours[name])  # that what is there for no time is seen
        y = alt.Y(f"t{place}:Q", title="requested [GiB]").scale(scale).axis(format="~g")
        area = alt.Chart().mark_area(interpolate="step-after", line=edge, opacity=1, color=colours[name]).encode(x=x, y=y)
        yield area.encode(y2=alt.Y2(f"t{place - 1}:Q") if place else alt.Y2Datum(0))
    legend = alt.Legend(title=None, orient="bottom", columns=2, labelColor=look.ink, symbolType="square", symbolOpacity=1, symbolSize=100)
    colour = alt.Color("category:N", legend=legend).scale(domain=[*colours], range=[*colours.values()])
    yield alt.Chart(alt.Data(values=[{"category": name} for name in colours])).mark_square(opacity=0).encode(color=colour)


def _phases(found: StepMemory, places: Array, x: alt.X, look: Look) -> Iterator[Any]:
    """A line where a phase begins, and the names that have room, those of the widest before others."""
    runs = [(begin, end, name) for begin, end, name in _runs(found.moments, places) if end - begin >= _LEAST]
    lines = [{"x": short(begin * places[-1])} for begin, _, _ in runs[1:]]
    yield alt.Chart(alt.Data(values=lines)).mark_rule(color=look.ink, opacity=0.5).encode(x=x)
    taken: list[tuple[float, float]] = []
    for begin, end, name in sorted(runs, key=lambda run: run[0] - run[1]):
        wide, first, last = _LETTER * len(name), begin == runs[0][0], end == runs[-1][1]
        left = begin if first else end - wide if last else (begin + end - wide) / 2
        if (first or last or end - begin >= wide) and all(left >= other[1] or left + wide <= other[0] for other in taken):
            taken.append((left, left + wide))
            where = begin if first else end if last else (begin + end) / 2
            base = alt.Chart(alt.Data(values=[{"x": short(where * places[-1]), "label": name}])).encode(x=x, y=alt.YValue(0), text=alt.Text("label:N"))
            yield base.mark_text(align="left" if first else "right" if last else "center", baseline="bottom", dy=-3, color=look.soft)


def _runs(moments: Sequence[Moment], places: Array) -> Iterator[tuple[float, float, str]]:
    """From where to where each phase goes, as shares of the width."""
    *starts, micro_steps, _ = (places / places[-1]).tolist()
    changes = [place for place, moment in enumerate(moments) if place == 0 or _phase(moment) != _phase(moments[place - 1])]
    begins = [(0.0 if place == 0 else starts[place], _phase(moments[place])) for place in changes]
    kept = [(begin, name) for begin, name in begins if name != "optimizer"] + [(micro_steps, "optimizer"), (1.0, "")]
    for (begin, name), (end, _) in itertools.pairwise(kept):
        yield begin, end, name


def _phase(moment: Moment) -> str:
    if moment.block == "init":
        return "loading"
    return "optimizer" if moment.block in _OPTIMIZERS else "backward" if moment.phase == "backward" else "forward"


def _counted(found: StepMemory) -> Array:
    """Places of moments, and of the ends, by their number."""
    within = next((place for place, moment in enumerate(found.moments) if _phase(moment) == "optimizer"), len(found.moments))
    return np.array([*range(len(found.moments)), within, len(found.moments)], np.float64)


def _binding(found: StepMemory, places: Array, x: alt.X, look: Look) -> Iterator[Any]:
    """A line at the moment that binds, with its bytes."""
    where, total = float(places[found.binding]), short(found.total_bytes[found.binding] / GiB)
    right = where > places[-1] / 2
    at = alt.Chart(alt.Data(values=[{"x": short(where), "total": total, "label": f"binding moment\n{total:.4g} GiB"}])).encode(x=x)
    yield at.mark_rule(strokeDash=[6, 4], color=look.ink)
    yield at.mark_point(filled=True, color=look.ink, size=36, opacity=1).encode(y=alt.Y("total:Q"))
    named = at.mark_text(align="right" if right else "left", dx=-5 if right else 5, baseline="top", dy=3, lineBreak="\n", fontWeight=600, color=look.ink)
    yield named.encode(y=alt.YValue(0), text=alt.Text("label:N"))


def _seen(found: StepMemory, places: Array) -> Rows:
    """What is told of each stripe: its highest moment."""
    rows: Rows = []
    for begin, end in _stripes(places):
        place = begin + int(found.total_bytes[begin:end].argmax())
        until = places[end] if end < len(found.moments) else places[-1]
        moment, held = found.moments[place], {f"c{number}": short(size / GiB) for number, size in enumerate(found.bytes[:, place].tolist())}
        words = {"module": moment.module or ITSELF, "operator": moment.operator, "phase": _phase(moment)}
        rows.append({"x": short(places[begin]), "until": short(until), **words, "total": short(found.total_bytes[place] / GiB), **held})
    return rows
