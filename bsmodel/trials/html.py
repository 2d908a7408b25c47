# SPDX-License-Identifier: Apache-2.0
"""A trial, and a learning rate range test, as one page and as a picture: charts that stand still without a script and answer with it, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bsmodel.errors import InvalidInputError
from bsmodel.pages import Choice, Drawing, Section, document, head, of_page, of_picture, require_charts
from bsmodel.training import Training
from bsmodel.trials import tables
from bsmodel.trials.rates import RateRange
from bsmodel.trials.results import Recommendation, Trial

if TYPE_CHECKING:
    from bsmodel.pages import Spec


def page(trial: Trial, costs: Sequence[Recommendation] = ()) -> str:
    """The trial as one HTML page; `costs` are recommendations for other cards, beside that for the one it ran on.

    Raises `InvalidInputError` where altair or vl-convert is not installed.
    """
    require_charts()
    from bsmodel.trials.sections import sections

    own, batches = trial.recommended, [rung.batch for rung in trial.by_rung]
    recommended = (*((own,) if own is not None else ()), *costs)
    first, *others = sections(trial, recommended, of_page(len(batches)))
    choices = tuple(Choice(batch, colour=f"var(--b{place})") for place, batch in enumerate(batches))
    every = [Section("Every batch", (), table=tables.of_batches(trial))] if batches else []
    top = head(("What came of it", tables.findings(trial, recommended)), ("What was tried", tables.facts(trial)), trial.remarks)
    name = f"Trial of {trial.question.get('workload', 'a workload')}"
    return document(name, top, [*every, replace(first, choices=choices), *others], len(batches), stills=True)


def picture(trial: Trial) -> str:
    """The loss of each batch against samples seen as SVG, for a README; raises `InvalidInputError` as `loss_curves` does."""
    spec = loss_curves(trial)
    from bsmodel.pages import still

    return still(spec)


def loss_curves(trial: Trial) -> Spec:
    """The loss of each batch against samples seen as Vega-Lite, in the colours of a picture.

    Raises `InvalidInputError` where altair or vl-convert is not installed, or there is no loss to draw.
    """
    require_charts()
    from bsmodel.trials import charts, drawn

    if not drawn.losses(trial):
        raise InvalidInputError("there is nothing to draw: no run of the trial has made a step whose loss is a number")
    return charts.loss(trial, "samples", of_picture(len(trial.by_rung)))


def rates_page(name: str, training: Training, found: RateRange) -> str:
    """A learning rate range test of the workload of this name by this recipe as one HTML page.

    Raises `InvalidInputError` where altair or vl-convert is not installed.
    """
    require_charts()
    from bsmodel.trials import rates_chart

    caption = "The rate rises from step to step. The thick line is the average, by which the rates are read; what is far above its fall is not drawn."
    kinds = tuple(enumerate(rates_chart.KINDS))
    drawing = Drawing("rates", "Loss against the learning rate", caption, rates_chart.rising(found, of_page(0)), kinds)
    top = head(("What came of it", found.sentences), ("What was tried", tables.facts_of_rates(name, training, found)), found.remarks)
    return document(f"Learning rates of {name}", top, [Section("Every step", (), (drawing,), tables.of_rates(found))], stills=True)


def rates_picture(found: RateRange) -> str:
    """The chart of a learning rate range test as SVG; raises `InvalidInputError` where altair or vl-convert is not installed."""
    spec = rate_losses(found)
    from bsmodel.pages import still

    return still(spec)


def rate_losses(found: RateRange) -> Spec:
    """Loss against the learning rate as Vega-Lite, in the colours of a picture; raises `InvalidInputError` where altair or vl-convert is not installed."""
    require_charts()
    from bsmodel.trials import rates_chart

    return rates_chart.rising(found, of_picture(0))
