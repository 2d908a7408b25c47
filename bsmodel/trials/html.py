# SPDX-License-Identifier: Apache-2.0
"""A trial as one self-contained HTML page: charts that stand still without a script and answer with it, tables; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bsmodel.errors import InvalidInputError
from bsmodel.pages import Choice, Section, document, head, of_page, of_picture, require_charts
from bsmodel.trials import tables
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
