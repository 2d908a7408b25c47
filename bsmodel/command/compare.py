# SPDX-License-Identifier: Apache-2.0
"""`bsmodel compare`: GPUs ranked by what a run costs and how long it takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from bsmodel.command import arguments
from bsmodel.command.asked import foot, of_other_versions, together
from bsmodel.command.documents import CompareDocument, Notes
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Part, render, table
from bsmodel.command.watching import until_a_defect, watching
from bsmodel.command.wording import amount, money, seconds, split, title
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.studies import Recorded, Row, Study, study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel compare`."""
    arguments.add_model(parser, gpus="every GPU of the catalogue")
    arguments.add_recipe(parser)
    arguments.add_recording(parser)
    arguments.add_run(parser)


def run(options: argparse.Namespace) -> Answer:
    """The GPUs that have a plan, cheapest first, and why the others have none; raises `InvalidInputError` where none can be answered for."""
    asked = arguments.asked(options)
    gpus, notes = arguments.gpus_asked(options, asked) if options.gpu else _all(options)
    goals = (arguments.goal(options, gpus),)
    asked, notes = arguments.saved(asked, options, gpus), [*notes, *of_other_versions(asked)]
    with watching() as watch, arguments.hands([asked]) as executor:
        changes = [arguments.changes_of(asked, options)]
        found = study([asked], changes, gpus, [options.devices], goals, executor=executor, caching=options.cache, watch=until_a_defect(watch))
    left_out = {row.gpu: _reason(row) for row in found.rows if not row.fits}
    answered = [row.recorded for row in found.rows if row.recorded and row.status != "refused"]
    if not answered:
        verdicts = {row.verdict for row in found.rows}  # one for all is about the model, not about cards
        raise InvalidInputError(verdicts.pop() if len(verdicts) == 1 else _together(left_out))
    recorded = together(answered)
    document = CompareDocument(command="compare", notes=tuple(notes), workload=recorded, gpus=found.plans, left_out=left_out)
    return Answer(document, _text(recorded, found, left_out, tuple(notes)), fits=bool(found.plans))


def _all(options: argparse.Namespace) -> tuple[list[Gpu], list[str]]:
    """Every card: those that a recording leaves out are answers too."""
    return arguments.with_room(options, Gpu.all()), arguments.room_asked(options)


def _together(left_out: Mapping[str, str]) -> str:
    return "none of these GPUs can run this: " + "; ".join(f"{name} {reason}" for name, reason in left_out.items())


def _reason(row: Row) -> str:
    """Why a card is left out, to follow its name."""
    return row.verdict.removeprefix(f"does not fit on {row.gpu}: ").removeprefix(f"{row.gpu} ")


def _text(recorded: Recorded, found: Study, left_out: Mapping[str, str], notes: Notes) -> str:
    rows = found.plans
    priced = sorted({row.timing.price.source for row in rows if row.timing and row.timing.price})
    parts: list[Part] = [title(recorded), "", _table(rows), ""]
    parts += [f"Prices, on demand and per card: {'; '.join(priced)}.", ""] if priced else []
    return render(*parts, *(f"{name} {reason}" for name, reason in left_out.items()), *([""] if left_out else []), *foot(recorded, notes))


def _table(rows: Sequence[Row]) -> Part:
    by_time = sorted((row for row in rows if row.timing), key=lambda row: -row.timing.samples_per_s if row.timing else 0.0)
    places = {row.gpu: str(place) for place, row in enumerate(by_time, 1)}
    right = ("step", "samples per s", "MFU", "by time", "hours", "USD per million", "cost")
    columns = (("by cost", "right"), ("GPU", ""), ("micro x accumulation x devices", ""), *((heading, "right") for heading in right))
    return table(*columns, rows=[[str(rank), *_cells(row, places)] for rank, row in enumerate(rows, 1)], repeated=2)


def _cells(row: Row, places: Mapping[str, str]) -> list[str]:
    timing = row.timing
    if timing is None:
        return [row.gpu, split(row), f"unknown: {row.untimed}", *["-"] * 6]
    times = [seconds(timing.step.seconds), f"{timing.samples_per_s:,.1f}", f"{timing.mfu:.0%}", places[row.gpu]]
    return [row.gpu, split(row), *times, amount(timing.hours), amount(timing.usd_per_million), money(row)]
