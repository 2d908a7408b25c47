# SPDX-License-Identifier: Apache-2.0
"""The chart of a value, as Vega-Lite, in the colours of a picture."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import Any

import numpy as np

from bsmodel.command import offers_of
from bsmodel.errors import InvalidInputError
from bsmodel.memory import Breakdown, Fit, footprint
from bsmodel.pages import Spec, categories, costs, memory, of_picture, spent, step_seconds
from bsmodel.planning import Plan, peaks_around
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
    return _memory(value, value.batch, value.accumulation)


@chart_of.register
def _(value: Plan) -> Spec:
    return _memory(value.fit, value.split.micro_batch, value.micro_steps)


def _memory(fit: Fit, micro_batch: int, accumulation: int) -> Spec:
    if fit.batch < 1:
        raise InvalidInputError(f"{fit.tape.name} {fit.verdict}")
    peaks = peaks_around(fit.tape, fit.gpu, accumulation, (micro_batch, fit.batch), fit.settings)
    return memory(footprint(fit.tape, accumulation, fit.gpu), peaks, fit.gpu.usable_bytes, micro_batch, of_picture(0))


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
