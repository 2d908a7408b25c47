# SPDX-License-Identifier: Apache-2.0
"""The tables that a value shows, with the cells that the command prints of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from bsmodel.command import (
    category_cells,
    gpu_cells,
    module_cells,
    offers_of,
    peak_cells,
    plan_cells,
    study_cells,
    time_cells,
    uncounted,
    written,
)
from bsmodel.hardware import Gpu
from bsmodel.memory import Breakdown, Fit, Footprint, Peak
from bsmodel.pages import Table, frontier, number
from bsmodel.planning import NoiseScale, Plan
from bsmodel.shown import Shown
from bsmodel.studies import Row, Study, of_fit
from bsmodel.timing import StepTime, Timeline
from bsmodel.trials import RateRange, Trial, of_batches
from bsmodel.units import format_bytes, format_seconds

_MOST = 40  # lines of a table
_SPLIT = "micro x accumulation x devices"


@functools.singledispatch
def tables_of(value: Shown) -> tuple[Table, ...]:
    """What is shown of a value, as tables."""
    raise TypeError(f"no table shows a {type(value).__name__}")


# -- memory --------------------------------------------------------------------------------------------------------------------------------


@tables_of.register
def _(value: Footprint) -> tuple[Table, ...]:
    forms = zip(value.envelope.polynomials, value.moments, strict=True)
    lines = [[*map(format_bytes, (form.fixed, form.per_sample, form.per_pair)), str(moment)] for form, moment in forms]
    columns = (("fixed", "right"), ("a sample", "right"), ("a pair of samples", "right"), ("moment", ""))
    return (written("closed-form", f"Bytes requested at micro-batch b: {value}", columns, lines),)


@tables_of.register
def _(value: Peak) -> tuple[Table, ...]:
    columns = [("micro-batch", "right"), *((name, "right") for name in ("requested", "allocated", "reserved", "with context")), ("peak in", "")]
    fits = "It fits" if value.fits else "It likely fits" if value.likely_fits else "OUT OF MEMORY"
    return (written("peak", f"{fits}.", columns, [[f"{value.batch:,}", *peak_cells(value), value.moment]]),)


@tables_of.register
def _(value: Fit) -> tuple[Table, ...]:
    columns, ((*cells,),) = plan_cells([Row(value.tape.name, {}, value.gpu.id, 1, None, "plan", value.verdict, peak=value.peak, **of_fit(value))])
    kept = [place for place, (heading, _) in enumerate(columns) if heading != _SPLIT]  # which is of a plan
    caption = f"{value.tape.name} {value.verdict}. {uncounted(value.tape.uncounted)}."
    return (written("fit", caption, [columns[place] for place in kept], [[cells[place] for place in kept]]),)


@tables_of.register
def _(value: Breakdown) -> tuple[Table, ...]:
    categories, modules = value.by_category, value.by_module
    caption = "What each module holds itself, without its parts."
    return written("categories", "Bytes at the binding moment.", *category_cells(categories)), written("modules", caption, *module_cells(modules))


# -- plans ---------------------------------------------------------------------------------------------------------------------------------


@tables_of.register
def _(value: Plan) -> tuple[Table, ...]:
    row = Row.of(value)
    told = [f"Learning rate by the {value.learning_rate_rule} rule: {value.learning_rate:.3g}."] if value.learning_rate is not None else []
    told += [f"Steps: {value.total_steps:,}."] if value.total_steps is not None else []
    told += [*(f"Note: {advice}." for advice in value.advice), f"{uncounted(value.fit.tape.uncounted)}."]
    caption = " ".join([f"{value.fit.tape.name} {value.fit.verdict}.", *told])
    return written("plan", caption, *plan_cells([row])), written("times", "Time and money.", *time_cells([row]))


@tables_of.register
def _(value: Row) -> tuple[Table, ...]:
    return _rows([value], f"{value.verdict}.")


@tables_of.register
def _(value: Study) -> tuple[Table, ...]:
    more = f"The first {_MOST} of {len(value.rows):,} rows." if len(value.rows) > _MOST else f"{len(value.rows):,} rows."
    offers, of = offers_of(value.plans)
    if not offers:
        return _rows(value.rows, more)
    lines = [[str(place), each.name, each.way, number(each.hours), number(each.usd)] for place, each in enumerate(frontier(offers), 1)]
    columns = (("", "right"), ("GPUs", ""), ("shared by", ""), ("hours", "right"), ("USD", "right"))
    return *_rows(value.rows, more), written("frontier", f"What none is both faster and cheaper than, {of}, as numbered in the chart.", columns, lines)


def _rows(rows: Sequence[Row], caption: str) -> tuple[Table, ...]:
    columns, lines = study_cells(rows)
    return (written("rows", caption, columns, lines[:_MOST]),)


@tables_of.register
def _(value: NoiseScale) -> tuple[Table, ...]:
    columns = [(name, "right") for name in ("noise scale [samples]", "least", "most", "steps")]
    caption = "The interval is at 95 %."
    return (written("noise", caption, columns, [[*map(number, (value.samples, value.low, value.high)), f"{value.steps:,}"]]),)


# -- time ----------------------------------------------------------------------------------------------------------------------------------


@tables_of.register(StepTime)
def _(value: StepTime[int, float]) -> tuple[Table, ...]:
    """One line for each batch, of arrays the first ones."""
    names = ("batch", "accumulation", "seconds", "low_seconds", "high_seconds", "samples_per_s", "mfu", "device_seconds", "host_seconds", "exposed_seconds")
    fields = [np.ravel(getattr(value, name)).tolist() for name in names]
    lines = [_step(*each) for each in list(zip(*fields, strict=True))[:_MOST]]
    headings = ("micro-batch", "accumulation", "step", "least", "most", "samples per s", "MFU", "of the device", "of the host", "waiting")
    more = f" The first {_MOST} of {len(fields[0]):,} batches." if len(fields[0]) > _MOST else ""
    return (written("times", f"An optimizer step.{more}", [(name, "right") for name in headings], lines),)


def _step(
    batch: int, accumulation: int, step: float, low: float, high: float, speed: float, mfu: float, device: float, host: float, exposed: float
) -> list[str]:
    return [
        f"{batch:,}",
        f"{accumulation:,}",
        *map(format_seconds, (step, low, high)),
        f"{speed:,.1f}",
        f"{mfu:.0%}",
        *map(format_seconds, (device, host, exposed)),
    ]


@tables_of.register
def _(value: Timeline) -> tuple[Table, ...]:
    tracks = {track: [event.seconds for event in value.events if event.track == track] for track in value.tracks}
    lines = [[name, f"{len(busy):,}", format_seconds(sum(busy)), f"{sum(busy) / value.seconds:.0%}"] for name, busy in tracks.items()]
    columns = (("track", ""), ("events", "right"), ("busy", "right"), ("of the step", "right"))
    caption = f"{value.name} on {value.gpu}: a step of {value.batch:,} x {value.accumulation:,} samples, {format_seconds(value.seconds)}."
    return (written("tracks", caption, columns, lines),)


# -- what is measured ----------------------------------------------------------------------------------------------------------------------


@tables_of.register
def _(value: Trial) -> tuple[Table, ...]:
    return (of_batches(value),)


@tables_of.register
def _(value: RateRange) -> tuple[Table, ...]:
    said = [tuple(suggestion.partition(": ")[::2]) for suggestion in value.suggestions]
    caption = f"{len(value.rates):,} steps of {value.batch:,} samples, learning rates {value.rates[0]:.2g} to {value.rates[-1]:.2g}."
    return (written("rates", caption, (("rate at", ""), ("", "")), said),)


@tables_of.register
def _(value: Gpu) -> tuple[Table, ...]:
    columns = (("figures", ""), ("source", ""), ("kind", ""), ("checked", ""))
    lines = [[", ".join(source.figures), source.source, source.kind, str(source.checked)] for source in value.sources]
    return written("gpu", "", *gpu_cells([value])), written("sources", "Where its figures come from.", columns, lines)
