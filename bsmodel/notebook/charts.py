# SPDX-License-Identifier: Apache-2.0
"""The chart of a value, as Vega-Lite, in the colours of a picture."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import fields, replace
from typing import Any

import numpy as np

from bsmodel.command import offers_of
from bsmodel.errors import InvalidInputError
from bsmodel.memory import LARGEST, Breakdown, Fit, footprint, predict
from bsmodel.pages import Spec, categories, costs, memory, of_picture, spent, step_seconds
from bsmodel.planning import Plan, ladder
from bsmodel.shown import Charted
from bsmodel.studies import Study
from bsmodel.timing import StepTime
from bsmodel.trials import RateRange, Trial, loss_curves, rate_losses

_MOST_POINTED = 14  # batches that answer to a pointer


@functools.singledispatch
def chart_of(value: Charted) -> Spec:
    """What is drawn of a value; raises `InvalidInputError` where there is nothing to draw."""
    raise TypeError(f"no chart shows a {type(value).__name__}")


@chart_of.register
def _(value: Fit) -> Spec:
    return _memory(value, value.batch)


@chart_of.register
def _(value: Plan) -> Spec:
    fit = value.fit
    return _memory(replace(fit, accumulation=max(fit.accumulation, value.split.accumulation)), value.split.micro_batch)


def _memory(fit: Fit, micro_batch: int) -> Spec:
    """The peaks of the ladder of batches, of the one that is marked, and of the power of two that is too large, if the recording holds for it."""
    if fit.batch < 1:
        raise InvalidInputError(f"{fit.tape.name} {fit.verdict}")
    peaks = {rung.batch: rung.peak for rung in ladder(fit)}
    for batch in {micro_batch, 1 << fit.batch.bit_length()} - peaks.keys():
        if batch <= LARGEST:
            with contextlib.suppress(InvalidInputError):
                peaks[batch] = predict(fit.tape, fit.gpu, batch, fit.accumulation, fit.settings)
    form = footprint(fit.tape, fit.accumulation, fit.gpu)
    return memory(form, [peaks[batch] for batch in sorted(peaks)], fit.gpu.usable_bytes, micro_batch, of_picture(0))


@chart_of.register
def _(value: Breakdown) -> Spec:
    return categories({"": value.by_category}, of_picture(0))


@chart_of.register(StepTime)
def _(value: StepTime[Any, Any]) -> Spec:
    """Of one batch what keeps the step busy, of several their seconds."""
    if np.ndim(value.seconds) == 0:
        return spent(value, of_picture(0))
    batches, places = np.unique(value.batch, return_index=True)
    if len(batches) < np.size(value.batch):
        raise InvalidInputError("the same batch is there several times, with other micro-steps; give step_time each batch once to draw seconds against it")
    asked = batches[:: -(-len(batches) // _MOST_POINTED)].tolist()
    return step_seconds(_at(value, places), asked, of_picture(0))


def _at(times: StepTime[Any, Any], places: Any) -> StepTime[Any, Any]:
    """The times of some of the batches, in this order."""
    found = {field.name: getattr(times, field.name) for field in fields(times)}
    arrays = {name: np.ravel(values)[places] for name, values in found.items() if isinstance(values, np.ndarray)}
    return replace(times, **arrays, phases={phase: np.ravel(values)[places] for phase, values in times.phases.items()})


@chart_of.register
def _(value: Study) -> Spec:
    offers, of = offers_of(value.plans)
    if not offers:
        raise InvalidInputError("no row has both a time and a price")
    return costs(offers, of, of_picture(0))


@chart_of.register
def _(value: Trial) -> Spec:
    return loss_curves(value)


@chart_of.register
def _(value: RateRange) -> Spec:
    return rate_losses(value)
