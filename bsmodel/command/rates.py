# SPDX-License-Identifier: Apache-2.0
"""`bsmodel trial --lr-range`: a run whose learning rate rises, and the two rates that are read from it."""

from __future__ import annotations

import argparse
from typing import Any

from bsmodel.command import pictures
from bsmodel.command.documents import RatesDocument
from bsmodel.command.report import Answer
from bsmodel.command.terminal import render, table
from bsmodel.errors import InvalidInputError
from bsmodel.training import Training
from bsmodel.trials import RateRange, lr_range, processes, speaks
from bsmodel.workloads import Workload

_SHOWN = 12  # rows of the curve


def answer(workload: Workload, recipe: Training, data: Any, options: argparse.Namespace) -> Answer:
    """The curve and both suggestions, at one batch; raises `InvalidInputError` where several are asked, and what `lr_range` raises."""
    low_batch, high_batch = options.effective_batches or options.batches or (0, 0)
    if low_batch != high_batch or not low_batch:
        raise InvalidInputError("--lr-range is at one batch; give it as --batches N or --effective-batches N")
    batch = low_batch * (1 if options.effective_batches else processes())  # --batches are those of each device
    low, high = options.lr_range
    steps = {} if options.steps is None else {"steps": options.steps}
    found = lr_range(workload, recipe, data=data, batch=batch, micro_batch=options.micro_batch, low=low, high=high, **steps)
    document = RatesDocument(
        command="trial",
        notes=found.remarks,
        curve=found,
        steepest=found.steepest,
        diverged_at=found.diverged_at,
        tenth_of_divergence=found.tenth_of_divergence,
    )
    if not speaks():
        return Answer(document, "", plain=True)
    _draw(workload.name, recipe, found, options)
    return Answer(document, _text(workload.name, recipe, found))


def _draw(name: str, recipe: Training, found: RateRange, options: argparse.Namespace) -> None:
    from bsmodel.trials import rates_page, rates_picture

    if options.html:
        pictures.write(options.html, rates_page(name, recipe, found))
    if options.picture:
        pictures.write(options.picture, rates_picture(found), pictures.PICTURE)


def _text(name: str, recipe: Training, found: RateRange) -> str:
    count = len(found.rates)
    places = sorted({round(place * (count - 1) / (_SHOWN - 1)) for place in range(_SHOWN)})
    columns = (("learning rate", "right"), ("loss", "right"), ("smoothed", "right"))
    rows = [[f"{found.rates[at]:.3g}", f"{found.losses[at]:.4g}", f"{found.smoothed[at]:.4g}"] for at in places]
    head = f"{name}: {recipe.precision}, {recipe.optimizer_name}; {found.batch:,} samples a step, {count} steps"
    return render(head, "", table(*columns, rows=rows), "", *found.sentences, *(f"Note: {remark.removesuffix('.')}." for remark in found.remarks))
