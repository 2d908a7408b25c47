# SPDX-License-Identifier: Apache-2.0
"""`bsmodel plan`: the largest batch per GPU, and how to reach a target batch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bsmodel.command import arguments, lengths
from bsmodel.command.asked import foot, of_other_versions, together
from bsmodel.command.documents import Notes, PlanDocument
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, Part, render, table, verdict
from bsmodel.command.watching import until_a_defect, watching
from bsmodel.command.wording import closed_form, missing, no_plan, reserved_of, short, split, time_table, title, uncounted
from bsmodel.errors import InvalidInputError
from bsmodel.memory import Footprint
from bsmodel.studies import Recorded, Row, study


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel plan`."""
    arguments.add_model(parser, several_lengths=True)
    arguments.add_recipe(parser)
    arguments.add_recording(parser)
    arguments.add_run(parser)
    text = "a file with the tokens of each sample, one number a line: batches padded to their longest; or MEAN:LONGEST (default: all samples are alike)"
    parser.add_argument("--lengths", metavar="FILE", help=text)
    parser.add_argument("--base-lr", type=arguments.amount, metavar="LR", help="a learning rate that works (default: the published one of a named model)")
    parser.add_argument("--base-batch", type=arguments.positive, metavar="N", help="the effective batch it works at (default: with --base-lr, 256)")


def run(options: argparse.Namespace) -> Answer:
    """A plan for each GPU; raises `InvalidInputError` where one of them cannot be answered for."""
    if options.lengths is not None:
        return lengths.of_a_file(options)
    if any(isinstance(getattr(options, name), tuple) for name in lengths.LONG):
        return lengths.answer(options)
    found = arguments.asked(options)
    gpus, notes = arguments.gpus_asked(options, found)
    goals = (arguments.goal(options, gpus, ladder=options.json),)
    found, notes = arguments.saved(found, options, gpus), [*notes, *of_other_versions(found)]
    with watching() as watch, arguments.hands([found]) as executor:
        changes = [arguments.changes_of(found, options)]
        rows = study([found], changes, gpus, [options.devices], goals, executor=executor, caching=options.cache, watch=until_a_defect(watch)).rows
    for row in rows:
        if row.status == "refused":
            raise InvalidInputError(row.verdict)
    recorded = together(row.recorded for row in rows)
    document = PlanDocument(command="plan", notes=tuple(notes), workload=recorded, gpus=rows, uncounted=missing(rows))
    return Answer(document, _text(recorded, rows, tuple(notes)), fits=any(row.fits for row in rows))


def _text(recorded: Recorded, rows: Sequence[Row], notes: Notes) -> str:
    parts: list[Part] = [title(recorded), "", _table(rows), ""]
    for row in rows:
        parts += [] if row.fits else [row.verdict, ""]
    fitting = [row for row in rows if row.fits]
    if fitting:
        parts += [*time_table(fitting), "", *_schedule(fitting[0], _several_rates(fitting))]
        parts += [*(f"Note: {advice}." for advice in fitting[0].advice), ""]
    parts += [part for label, form in _forms(rows) for part in closed_form(label, form)]
    return render(*parts, "", uncounted(missing(rows)), *foot(recorded, notes))


def _forms(rows: Sequence[Row]) -> list[tuple[str, Footprint]]:
    """Each closed form once, with the GPUs it holds for."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.closed_form), []).append(row)
    return [(", ".join(row.gpu for row in same), same[0].closed_form) for same in groups.values() if same[0].closed_form]


def _table(rows: Sequence[Row]) -> Part:
    """One line per GPU: the largest micro-batch, what binds it, its memory, and the split for the target."""
    several = _several_rates(rows)  # one for all is said below
    columns = (
        ("GPU", ""),
        ("largest", "right"),
        ("2^k", "right"),
        ("bound by", ""),
        ("GiB reserved of usable", "right"),
        ("micro x accumulation x devices", ""),
        ("room", ""),
        *((("learning rate", "right"),) if several else ()),
    )
    return table(*columns, rows=[_cells(row)[: len(columns)] for row in rows])


def _several_rates(rows: Sequence[Row]) -> bool:
    return len({row.learning_rate for row in rows if row.fits}) > 1


def _cells(row: Row) -> list[Cell]:
    largest, usable, binding = row.largest_batch or 0, row.usable_bytes or 0, short(row.binding or "")
    if row.peak is None or row.largest_peak is None:
        return [row.gpu, str(largest), "-", binding, "-", "-", no_plan(row), "-"]
    return [
        row.gpu,
        str(largest) if row.likely_batch == largest else f"{largest} (likely {row.likely_batch})",
        str(row.power_of_two),
        binding,
        reserved_of(row.largest_peak, usable),
        split(row),
        verdict(True, usable - row.peak.reserved_upper_bytes, usable),
        f"{row.learning_rate:.3g}" if row.learning_rate is not None else "-",
    ]


def _schedule(row: Row, several: bool) -> list[Part]:
    parts: list[Part] = []
    if row.learning_rate is not None:
        parts.append(f"Learning rate {'' if several else f'{row.learning_rate:.3g} '}by the {row.learning_rate_rule} rule for the effective batch.")
    if row.steps_per_epoch is not None:
        total = f", {row.total_steps:,} in all" if row.total_steps is not None else ""
        parts.append(f"Steps on {row.gpu}: {row.steps_per_epoch:,} per epoch{total}; warm up over the first {row.warmup_steps:,}.")
    return parts
