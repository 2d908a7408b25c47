# SPDX-License-Identifier: Apache-2.0
"""`bsmodel plan`: the largest batch per GPU, and how to reach a target batch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from bsmodel.command import arguments, emitting, lengths, pictures
from bsmodel.command.asked import foot, of_other_versions, together
from bsmodel.command.bars import memory_bars
from bsmodel.command.documents import Notes, PlanDocument
from bsmodel.command.priced import offer_notes
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, Part, render, table, verdict
from bsmodel.command.watching import until_a_defect, watching
from bsmodel.command.wording import closed_form, missing, no_plan, short, split, time_table, title, uncounted
from bsmodel.configs import FRAMEWORKS
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import Footprint, reserved_of
from bsmodel.recording import kept_as
from bsmodel.studies import Recorded, Row, study
from bsmodel.tape import Tape
from bsmodel.workloads import Source


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
    parser.add_argument("--html", metavar="FILE", help="write the answer as a page with charts (default: none)")
    text = f"write the plan for {', '.join(FRAMEWORKS)}, repeatable; of one GPU (default: none; FILE: as `{FRAMEWORKS['accelerate'].file}`)"
    parser.add_argument("--emit", action="append", default=[], metavar="FRAMEWORK[=FILE]", help=text)


def run(options: argparse.Namespace) -> Answer:
    """A plan for each GPU; raises `InvalidInputError` where one of them cannot be answered for."""
    of_lengths = options.lengths is not None or any(isinstance(getattr(options, name), tuple) for name in lengths.LONG)
    if options.html and options.lengths is not None:
        raise InvalidInputError("--html draws no batches of mixed lengths; leave out --lengths, or give --seq-len N:M for a chart by length")
    pictures.require_drawable(options.html)
    files = emitting.asked(options, of_lengths)
    if of_lengths:
        return lengths.of_a_file(options) if options.lengths is not None else lengths.answer(options)
    found = arguments.asked(options)
    gpus, notes = arguments.gpus_asked(options, found)
    emitting.require_followed(files, options, gpus)
    goals = (arguments.goal(options, gpus, ladder=options.json),)
    found, notes = arguments.saved(found, options, gpus), [*notes, *of_other_versions(found)]
    tapes = arguments.tapes_for(found, options, gpus) if options.html else []
    if options.html and isinstance(found, Source) and kept_as(found, {}, options.cache) is None:
        found = tuple(tapes)  # which nobody keeps: they are not recorded twice
    with watching() as watch, arguments.hands([found]) as executor:
        changes = [arguments.changes_of(found, options)]
        rows = study([found], changes, gpus, [options.devices], goals, executor=executor, caching=options.cache, watch=until_a_defect(watch)).rows
    for row in rows:
        if row.status == "refused":
            raise InvalidInputError(row.verdict)
    recorded, notes = together(row.recorded for row in rows), [*notes, *offer_notes(options)]
    if options.html:
        _draw(recorded, zip(rows, gpus, tapes, strict=True), options, notes)
    notes += emitting.written(files, rows[0], gpus[0]) if files and rows[0].fits else []
    document = PlanDocument(command="plan", notes=tuple(notes), workload=recorded, gpus=rows, uncounted=missing(rows))
    return Answer(document, _text(recorded, rows, tuple(notes)), fits=any(row.fits for row in rows))


def _draw(recorded: Recorded, found: Iterable[tuple[Row, Gpu, Tape]], options: argparse.Namespace, notes: Sequence[str]) -> None:
    """Write the page."""
    from bsmodel.command.page_tables import what_was_asked
    from bsmodel.command.plan_page import Drawn, page

    drawn = [Drawn(*each) for each in found]
    fitting = [each.row for each in drawn if each.row.fits]
    said = [*_schedule(fitting[0], _several_rates(fitting)), *_advice(fitting)] if fitting else []
    said += [uncounted(missing(each.row for each in drawn)), *foot(recorded, tuple(notes))]
    pictures.write(options.html, page(recorded, drawn, what_was_asked(options), said))


def _text(recorded: Recorded, rows: Sequence[Row], notes: Notes) -> str:
    columns, lines = plan_cells(rows)
    parts: list[Part] = [title(recorded), "", table(*columns, rows=lines), ""]
    for row in rows:
        parts += [] if row.fits else [row.verdict, ""]
    fitting = [row for row in rows if row.fits]
    if fitting:
        parts += [*time_table(fitting), "", *_schedule(fitting[0], _several_rates(fitting))]
        parts += [*_advice(fitting), ""]
    forms = _forms(rows)
    parts += [part for form, same in forms for part in closed_form(_label(same), form)]
    parts += [part for form, same in forms for part in memory_bars(form, same)]
    return render(*parts, "", uncounted(missing(rows)), *foot(recorded, notes))


def _advice(rows: Sequence[Row]) -> list[str]:
    """Each advice once, and of which cards it is where it is not of all."""
    of: dict[str, list[str]] = {}
    for row in rows:
        for advice in row.advice:
            of.setdefault(advice, []).append(row.gpu)
    return [f"Note: {advice}." if len(gpus) == len(rows) else f"Note: {', '.join(gpus)}: {advice}." for advice, gpus in of.items()]


def _forms(rows: Sequence[Row]) -> list[tuple[Footprint, list[Row]]]:
    """Each closed form once, with the rows it holds for."""
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row.closed_form), _accumulates(row)), []).append(row)
    return [(same[0].closed_form, same) for same in groups.values() if same[0].closed_form]


def _label(rows: Sequence[Row]) -> str:
    """What a closed form holds for."""
    return ", ".join(row.gpu for row in rows) + ("; gradients are kept between micro-batches" if _accumulates(rows[0]) else "")


def _accumulates(row: Row) -> bool:
    return (row.accumulation or 1) > 1


def plan_cells(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Columns, and a line per GPU: the largest micro-batch, what binds it, its memory, and the split for the target."""
    several = _several_rates(rows)  # one for all is said below
    columns = [
        ("GPU", ""),
        ("largest", "right"),
        ("2^k", "right"),
        ("bound by", ""),
        ("GiB reserved of usable", "right"),
        ("micro x accumulation x devices", ""),
        ("room", ""),
        *([("learning rate", "right")] if several else []),
    ]
    return columns, [_cells(row)[: len(columns)] for row in rows]


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


def _schedule(row: Row, several: bool) -> list[str]:
    parts: list[str] = []
    if row.learning_rate is not None:
        parts.append(f"Learning rate {'' if several else f'{row.learning_rate:.3g} '}by the {row.learning_rate_rule} rule for the effective batch.")
    if row.steps_per_epoch is not None:
        total = f", {row.total_steps:,} in all" if row.total_steps is not None else ""
        parts.append(f"Steps on {row.gpu}: {row.steps_per_epoch:,} per epoch{total}; warm up over the first {row.warmup_steps:,}.")
    return parts
