# SPDX-License-Identifier: Apache-2.0
"""`bsmodel advise`: what to change so that a model trains on a card, from mild to drastic, each tried."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bsmodel.command import arguments
from bsmodel.command.asked import foot, together
from bsmodel.command.documents import Advised, AdviseDocument
from bsmodel.command.priced import hours_notes, offer_lines, offer_notes, rented, with_offers
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Part, render, table
from bsmodel.command.watching import watching
from bsmodel.command.wording import amount, money, split, title
from bsmodel.errors import InvalidInputError
from bsmodel.studies import Advice, advise, written
from bsmodel.workloads import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel advise`."""
    arguments.add_model(parser, models=arguments.WORKLOADS)
    arguments.add_recipe(parser)
    arguments.add_cache(parser)
    arguments.add_run(parser)


def run(options: argparse.Namespace) -> Answer:
    """Recipes for each GPU; raises `InvalidInputError` for a saved recording, which has one recipe."""
    found = arguments.asked(options)
    if not isinstance(found, Source):
        raise InvalidInputError(f"{options.model} holds recordings of one recipe; name the model to be advised about others")
    gpus, notes = arguments.gpus_asked(options, found)
    goal = arguments.goal(options, gpus)
    with watching("recipes") as watch, arguments.hands([found]) as executor:
        made = advise(found, arguments.changes_of(found, options), gpus, goal, options.devices, options.cache, watch, executor)
    rows = tuple(
        Advised(recipe=written(each.change) or "as asked", change=each.change, mildest=each is _mildest(made, each.row.gpu), row=each.row) for each in made
    )
    recorded = together(each.row.recorded for each in made)
    notes = [*notes, *offer_notes(options), *hours_notes([each.row for each in made])]
    document = AdviseDocument(command="advise", notes=tuple(notes), workload=recorded, recipes=rows)
    parts: list[Part] = [title(together([made[0].row.recorded])), ""]
    for gpu in gpus:
        of_gpu = [each for each in made if each.row.gpu == gpu.id]
        parts += [_said(made, gpu.id), _table(of_gpu), "", *(part for line in offer_lines([each.row for each in of_gpu]) for part in (line, ""))]
    return Answer(document, render(*parts, *foot(recorded, notes)), fits=any(each.row.fits for each in made))


def _mildest(made: Sequence[Advice], gpu: str) -> Advice | None:
    return next((each for each in made if each.row.gpu == gpu and each.row.fits), None)


def _said(made: Sequence[Advice], gpu: str) -> str:
    found = _mildest(made, gpu)
    if found is None:
        return f"{gpu}: no recipe fits{'; give --devices N for several cards, among which the model is divided' if made[0].row.devices == 1 else ''}."
    return f"{gpu}: trains as asked." if not found.change else f"{gpu}: add {written(found.change)}."


def _table(rows: Sequence[Advice]) -> Part:
    right = ("largest", "samples per s", "hours", "cost")
    columns = [("recipe", ""), ("micro x accumulation x devices", ""), *((heading, "right") for heading in right)]
    columns += [("rented", "")] if with_offers([each.row for each in rows]) else []
    return table(*columns, rows=[[*_cells(each), rented(each.row)][: len(columns)] for each in rows])


def _cells(each: Advice) -> list[str]:
    row, recipe = each.row, written(each.change) or "as asked"
    if not row.fits:
        return [recipe, "refused" if row.status == "refused" else "does not fit", str(row.largest_batch or 0), "-", "-", "-"]
    timing = row.timing
    times = ["-"] * 3 if timing is None else [f"{timing.samples_per_s:,.1f}", amount(timing.hours), money(row)]
    return [recipe, split(row), str(row.largest_batch), *times]
