# SPDX-License-Identifier: Apache-2.0
"""The charts of a trial as Vega-Lite, by altair: colours are those of a look, which a page keeps in CSS and a picture in the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from bsmodel.pages import CHOSEN, HOVER, Look, Spec, framed, number, told
from bsmodel.trials import drawn
from bsmodel.trials.drawn import Rows
from bsmodel.trials.results import Recommendation, Trial

_SHAPES = {"reached": "circle", "finished": "square", "stopped": "diamond", "diverged": "triangle-up", "out of memory": "triangle-down"}

_FIT = 8  # times beyond the batches that were tried up to which a critical batch is drawn
_HIGHLIGHT = f"{CHOSEN} == 0 || datum.batch == {CHOSEN}"


# -- loss ----------------------------------------------------------------------------------------------------------------------------------


def loss(trial: Trial, against: str, look: Look) -> Spec:
    """Loss against `samples` or `seconds`: a line for each batch, a band over its seeds, and a point where each seed ended."""
    begins = (drawn.apart(drawn.losses(trial), against) or (0, 0))[0]
    rows, validated, ended = (
        [row for row in rows if row[against] >= begins] for rows in (drawn.losses(trial), drawn.validation_losses(trial), drawn.ends(trial))
    )
    target = [] if trial.target_loss is None else [trial.target_loss]
    low, high = _extent([row[name] for row in (*rows, *validated) for name in ("low", "high")] + target)
    scale = alt.Scale(type="log", nice=False) if low > 0 and high / low > 20 else alt.Scale(zero=False, padding=12)
    x = _course(rows, against)
    y, colour = alt.Y("loss:Q", title="loss").scale(scale), _of_batch(trial, look)
    numbers = told("batch", "step", "samples", "seconds", "loss", low="least of the seeds", high="most of the seeds")
    base = alt.Chart().encode(x=x, color=colour)
    layers: list[Any] = [
        base.mark_area(aria=False).encode(y=alt.Y("low:Q", title="loss").scale(scale), y2="high:Q", opacity=_faded(0.2, 0.03)),
        base.mark_line(strokeWidth=2).encode(y=y, opacity=_faded()),
    ]
    if validated:
        dashed = alt.Chart(alt.Data(values=validated)).encode(x=x, y=y, color=colour, opacity=_faded(), tooltip=numbers)
        layers.append(dashed.mark_line(strokeDash=[5, 3], strokeWidth=1.5, point=alt.OverlayMarkDef(size=24, filled=True)))
    if trial.target_loss is not None:
        layers += _target(trial.target_loss, look, scale)
    layers.append(base.mark_circle(size=70, opacity=0).encode(y=y, tooltip=numbers).properties(name=HOVER))
    shape = alt.Shape("status:N", legend=None).scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
    points = alt.Chart(alt.Data(values=ended)).mark_point(filled=True, size=60, stroke=look.page, strokeWidth=1)
    numbers = told("batch", "seed", "status", "step", "samples", "seconds", "loss")
    layers.append(points.encode(x=x, y=y, color=colour, shape=shape, opacity=_faded(), tooltip=numbers))
    return framed(layers, look, f"Smoothed loss of each batch against {against} of training", rows)


def _course(rows: Rows, against: str) -> alt.X:
    title, form = {"samples": ("samples seen", "~s"), "seconds": ("seconds of training [s]", "~g")}[against]
    far = drawn.apart(rows, against)
    scale = alt.Scale(zero=True, nice=False) if far is None else alt.Scale(type="log", nice=False, domain=[far[0], far[1] * 1.05])
    return alt.X(f"{against}:Q", title=title).scale(scale).axis(labelExpr=f"format(datum.value, '{form}')", labelOverlap="greedy", labelSeparation=6)


def _target(target: float, look: Look, scale: Any) -> list[alt.Chart]:
    at = alt.Chart(alt.Data(values=[{"loss": target, "label": f"target {number(target)}"}])).encode(y=alt.Y("loss:Q").scale(scale))
    named = at.mark_text(align="left", baseline="bottom", dy=-3, color=look.ink).encode(x=alt.value(4), text="label:N")
    return [at.mark_rule(strokeDash=[6, 4], color=look.ink), named]


# -- to the target -------------------------------------------------------------------------------------------------------------------------


def to_target(trial: Trial, of: str, look: Look) -> Spec:
    """Optimizer `steps` or `samples` to the target against the batch, both logarithmic: a point for each seed, the law and its critical batch."""
    x, y = _batches(trial, critical(trial)), alt.Y(f"{of}:Q", title=f"{'optimizer steps' if of == 'steps' else of} to the target")
    y = y.scale(type="log", nice=False, padding=12).axis(format="~s")
    runs = alt.Chart(alt.Data(values=drawn.to_target(trial))).mark_point(filled=True, size=70, stroke=look.page, strokeWidth=1)
    points = runs.encode(x=x, y=y, color=_of_batch(trial, look), opacity=_faded(), tooltip=told("batch", "seed", "steps", "samples", "seconds"))
    layers: list[Any] = []
    if trial.law is not None:
        line = alt.Chart(alt.Data(values=drawn.law(trial))).mark_line(color=look.soft, strokeWidth=2)
        layers.append(line.encode(x=x, y=y, tooltip=told("batch", "steps", "samples")))
    if (near := critical(trial)) is not None:
        at = alt.Chart(alt.Data(values=[{"batch": near, "label": f"critical batch {number(near)}"}])).encode(x=x)
        layers.append(at.mark_rule(strokeDash=[6, 4], color=look.ink))
        layers.append(at.mark_text(baseline="bottom", dy=-3, color=look.ink, align=_side(trial, near)).encode(y=alt.value(0), text="label:N"))
    return framed([*layers, points], look, f"{of.capitalize()} to the target loss against the batch, on logarithmic axes")


def critical(trial: Trial) -> float | None:
    """The critical batch where it is near those that were tried."""
    batches = [rung.batch for rung in trial.by_rung]
    found = None if trial.law is None else trial.law.critical_batch
    return found if found is not None and min(batches) / _FIT <= found <= max(batches) * _FIT else None


def _side(trial: Trial, batch: float) -> Any:
    batches = [rung.batch for rung in trial.by_rung]
    middle = (min(batches) * max(batches)) ** 0.5
    return "center" if middle / 2 < batch < middle * 2 else "left" if batch < middle else "right"


def costs(trial: Trial, found: Sequence[Recommendation], of: str, look: Look) -> Spec:
    """`seconds` or `usd` to the target against the batch, a line for each way of telling them, its recommended batch in a ring."""
    rows = drawn.costs(found, of)
    unit = ("seconds" if of == "seconds" else "US dollars") + (" to the target" if trial.law is not None else " for each of the fewest steps")
    x, y = (
        _batches(trial),
        alt.Y("cost:Q", title=f"{unit} [{'s' if of == 'seconds' else '$'}]").scale(type="log", nice=False, padding=12).axis(format="~g", tickCount=6),
    )
    series = list(dict.fromkeys(map(drawn.way, found)))
    colour = alt.Color("by:N", legend=None).scale(domain=series, range=[look.kinds[place % len(look.kinds)] for place in range(len(series))])
    numbers = told("batch", "by", "steps", cost=unit)
    base, chosen = (alt.Chart(alt.Data(values=kept)).encode(x=x, y=y, color=colour, tooltip=numbers) for kept in (rows, [row for row in rows if row["chosen"]]))
    layers: list[Any] = [base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=45)]
    if any(row["chosen"] for row in rows):
        layers.append(chosen.mark_point(size=260, strokeWidth=2.5))
    if of == "seconds" and (measured := drawn.measured_seconds(trial)) and trial.law is not None:
        seen = alt.Chart(alt.Data(values=measured)).encode(x=x, tooltip=told("batch", cost="measured seconds", low="least", high="most"))
        layers.append(seen.mark_rule(color=look.ink).encode(y=alt.Y("low:Q"), y2="high:Q"))
        layers.append(seen.mark_point(shape="diamond", size=50, color=look.ink, fill=look.page, opacity=1).encode(y=y))
    return framed(layers, look, f"{unit[0].upper()}{unit[1:]} against the batch, on logarithmic axes; the recommended batch is marked")


# -- predicted and measured ----------------------------------------------------------------------------------------------------------------


def predicted(trial: Trial, rows: Rows, title: str, look: Look) -> Spec:
    """What was predicted as rings and what was measured as dots, for each batch."""
    what = list(dict.fromkeys(str(row["what"]) for row in rows))
    colour = alt.Color("what:N", legend=None).scale(domain=what, range=list(look.kinds[: len(what)]))
    low, high = _extent([row[name] for row in rows for name in ("predicted", "measured")])
    scale = alt.Scale(type="log", nice=True) if high / low > 20 else alt.Scale(zero=False, padding=14)
    numbers = [*told("batch", "what", "predicted", "measured"), alt.Tooltip("error:Q", format="+.2%")]
    base = alt.Chart(alt.Data(values=rows)).encode(x=_batches(trial), color=colour, tooltip=numbers)
    measured = base.encode(y=alt.Y("measured:Q", title=title).scale(scale).axis(format="~g"))
    ring = base.mark_point(size=190, strokeWidth=2).encode(y=alt.Y("predicted:Q", title=title).scale(scale))
    layers = [measured.mark_line(strokeWidth=1, opacity=0.5), measured.mark_point(filled=True, size=55), ring]
    return framed(layers, look, f"{title}, predicted and measured, of each batch")


# -- noise scale ---------------------------------------------------------------------------------------------------------------------------


def noise(trial: Trial, look: Look) -> Spec:
    """The noise scale that each batch showed, with its interval; the critical batch by steps to the target where it is known."""
    rows, scale = drawn.noise(trial), alt.Scale(type="log", nice=False, padding=8)
    base = alt.Chart(alt.Data(values=rows)).encode(x=_batches(trial), color=_of_batch(trial, look), opacity=_faded(), tooltip=[*told("batch"), _interval()])
    layers: list[Any] = [base.mark_rule(strokeWidth=3).encode(y=_noise("low", scale), y2="high:Q")]
    layers += _dots(base, look, rows, [row for row in rows if row["endless"]], scale)
    if (near := critical(trial)) is not None:
        layers.append(alt.Chart(alt.Data(values=[{"samples": near}])).mark_rule(strokeDash=[6, 4], color=look.ink).encode(y=_noise("samples", scale)))
    return framed(layers, look, "Gradient noise scale of each batch with its interval, on logarithmic axes")


def noise_over(trial: Trial, look: Look) -> Spec:
    """The noise scale of each quarter of the runs, a line for each batch."""
    rows, scale = drawn.noise_over(trial), alt.Scale(type="log", nice=False, padding=8)
    share = alt.X("share:Q", title="share of the steps of a run").scale(domain=[0, 1]).axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
    numbers = [*told("batch"), alt.Tooltip("share:Q", format=".1%"), _interval()]
    base = alt.Chart(alt.Data(values=rows)).encode(x=share, color=_of_batch(trial, look), opacity=_faded(), tooltip=numbers)
    line = base.mark_line(strokeWidth=2).encode(y=_noise("samples", scale))
    layers = [line, *_dots(base, look, rows, [row for row in rows if row["samples"] is None], scale)]
    return framed(layers, look, "Gradient noise scale over the steps of a run")


def _dots(base: alt.Chart, look: Look, rows: Rows, endless: Rows, scale: Any) -> list[Any]:
    """Points of noise scales that are known, and triangles at the top of those without an upper bound."""
    known, layers = [row for row in rows if row["samples"] is not None], []
    if known:
        dots = base.properties(data=alt.Data(values=known)).mark_point(filled=True, size=70, stroke=look.page, strokeWidth=1)
        layers.append(dots.encode(y=_noise("samples", scale)))
    if endless:
        tops = base.properties(data=alt.Data(values=endless)).mark_point(shape="triangle-up", filled=True, size=80)
        layers.append(tops.encode(y=_noise("high", scale)))
    return layers


def _noise(name: str, scale: Any) -> alt.Y:
    return alt.Y(f"{name}:Q", title="noise scale [samples]").scale(scale).axis(format="~s")


def _interval() -> alt.Tooltip:
    return alt.Tooltip("told:N", title="noise scale, 95%")


# -- what all of them share ----------------------------------------------------------------------------------------------------------------


def _batches(trial: Trial, beside: float | None = None) -> alt.X:
    tried = [rung.batch for rung in trial.by_rung]
    low, high = _extent([*tried, beside or tried[0]])
    return (
        alt.X("batch:Q", title="batch [samples an optimizer step]")
        .scale(type="log", base=2, nice=False, domain=[low / 1.25, high * 1.25])
        .axis(values=tried, format=",d", labelOverlap="greedy", labelSeparation=6)
    )


def _of_batch(trial: Trial, look: Look) -> alt.Color:
    tried = [rung.batch for rung in trial.by_rung]
    legend = alt.Legend(title="batch", symbolType="circle", symbolOpacity=1) if look.legend else None
    return alt.Color("batch:O", legend=legend).scale(domain=tried, range=list(look.batches))


def _faded(full: float = 1.0, faded: float = 0.12) -> Any:
    return alt.condition(_HIGHLIGHT, alt.value(full), alt.value(faded))


def _extent(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
