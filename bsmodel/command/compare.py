# SPDX-License-Identifier: Apache-2.0
"""`bsmodel compare`: GPUs ranked by what a run costs and how long it takes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from bsmodel.command import arguments, pictures
from bsmodel.command.asked import Asked, foot, of_other_versions, together
from bsmodel.command.documents import CompareDocument, Notes
from bsmodel.command.priced import hours_notes, offer_lines, offer_notes, rented, with_offers
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Part, render, table
from bsmodel.command.watching import until_a_defect, watching
from bsmodel.command.wording import amount, money, split, title, waiting
from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware import Gpu
from bsmodel.parallel import KINDS
from bsmodel.planning import EVENLY
from bsmodel.studies import Recorded, Row, Study, study
from bsmodel.units import format_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel compare`."""
    arguments.add_model(parser, gpus="every GPU of the catalogue")
    arguments.add_recipe(parser, several_devices=True)
    arguments.add_recording(parser)
    arguments.add_run(parser)
    parser.add_argument("--html", metavar="FILE", help="write the ranking as a page with a chart of cost against hours (default: none)")


def run(options: argparse.Namespace) -> Answer:
    """The GPUs that have a plan, cheapest first, and why the others have none; raises `InvalidInputError` where none can be answered for."""
    pictures.require_drawable(options.html)
    ways = _ways(options)
    for way in ways:
        arguments.changes(way)  # refused here where there is no such way
    asked, *_ = map(arguments.asked, ways)  # recordings in a file must be of every way
    gpus, notes = arguments.gpus_asked(options, asked) if options.gpu else _all(options)
    asked, notes = arguments.saved(asked, ways[0], gpus), [*notes, *of_other_versions(asked)]
    found = _studied(options, asked, ways, gpus)
    left_out = _left_out(found)
    answered = [row.recorded for row in found.rows if row.recorded and row.status != "refused"]
    if not answered:
        verdicts = {row.verdict for row in found.rows}  # one for all is about the model, not about cards
        raise InvalidInputError(verdicts.pop() if len(verdicts) == 1 else _together(left_out))
    recorded = together(answered)
    notes = [*notes, *([EVENLY] if any(row.devices > 1 for row in found.plans) else []), *offer_notes(options), *hours_notes(found.plans)]
    if options.html:
        _draw(recorded, found, left_out, options, notes)
    document = CompareDocument(command="compare", notes=tuple(notes), workload=recorded, gpus=found.plans, left_out=left_out)
    return Answer(document, _text(recorded, found, left_out, tuple(notes)), fits=bool(found.plans))


def _draw(recorded: Recorded, found: Study, left_out: Mapping[str, str], options: argparse.Namespace, notes: Sequence[str]) -> None:
    """Write the page."""
    from bsmodel.command.compare_page import page
    from bsmodel.command.page_tables import what_was_asked

    said = [*_priced(found.plans), *foot(recorded, tuple(notes))]
    pictures.write(options.html, page(recorded, found.plans, left_out, what_was_asked(options), said))


def _left_out(found: Study) -> dict[str, str]:
    """Why a card has no plan at all, or none with one way to share for some numbers of devices: each reason once."""
    fitting, several = {row.gpu for row in found.plans}, dict[str, dict[str, list[Row]]]()
    for row in found.rows:
        if not row.fits:
            reason = _reason(row).partition(";")[0] if row.gpu in fitting else _reason(row)
            several.setdefault(row.gpu, {}).setdefault(reason, []).append(row)
    alone = {gpu: next(iter(reasons)) for gpu, reasons in several.items() if gpu not in fitting and len(reasons) == 1}
    others = [(gpu, reason, rows) for gpu, reasons in several.items() if gpu not in alone for reason, rows in reasons.items()]
    return alone | {f"{gpu}{way}": reason for gpu, reason, rows in others for way in _shared(rows)}


def _shared(rows: Sequence[Row]) -> list[str]:
    """How the devices of these rows share the work, as it follows the name of a card: numbers of devices together."""
    counts: dict[str, list[str]] = {}
    for row in rows:
        counts.setdefault(way_of(row), []).append(str(row.devices))
    return [" alone" if way == "-" else f", {way} over {', '.join(several)}" for way, several in counts.items()]


def _studied(options: argparse.Namespace, asked: Asked, ways: Sequence[argparse.Namespace], gpus: Sequence[Gpu]) -> Study:
    """The rows of every way. Of those in which each device holds all one recording tells every number of them."""
    goals = (arguments.goal(options, gpus),)
    plain, shared = [way for way in ways if way.parallel is None], [way for way in ways if way.parallel is not None]
    recipes = [arguments.changes_of(asked, way) for way in (*plain[:1], *shared)]
    counts = [way.devices for way in plain] or [1]  # the others are each for its own number
    with watching() as watch, arguments.hands([asked]) as executor:
        return study([asked], recipes, gpus, counts, goals, executor=executor, caching=options.cache, watch=until_a_defect(watch))


def _ways(options: argparse.Namespace) -> list[argparse.Namespace]:
    """What is asked, once for every number of devices and way to share the work; where each holds all, no way is named.

    Raises `UnknownNameError` for a way that is none, `InvalidInputError` for one where there is nothing to share, or a file for several.
    """
    kinds = (options.parallel or "ddp").split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of parallel", kind, KINDS)
    if options.parallel and max(options.devices) < 2:
        raise InvalidInputError(f"--parallel {options.parallel} is for several devices; give --devices N")
    as_it_comes = all(getattr(options, name) is None for name in ("preset", "sync_each_micro_step", "nodes"))
    several = {(None if count == 1 or (kind == "ddp" and as_it_comes) else kind, count): None for kind in kinds for count in options.devices}
    if options.save and len({kind and (kind, count) for kind, count in several}) > 1:
        raise InvalidInputError("--save keeps the recordings of one way to share; give one of --parallel, and one number of devices")
    every = {field for kind in kinds for field in KINDS[kind].fields}
    alone = arguments.SHARING if max(options.devices) > 1 else ()
    unasked = [dict.fromkeys(alone if count == 1 else every - {*KINDS[kind or "ddp"].fields}) for kind, count in several]
    ways = [{"devices": count, "parallel": kind, **without} for (kind, count), without in zip(several, unasked, strict=True)]
    return sorted((argparse.Namespace(**{**vars(options), **way}) for way in ways), key=lambda way: way.parallel is not None)


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
    columns, lines = compare_cells(rows)
    shown = table(*columns, rows=lines, repeated=3 if any(row.devices > 1 for row in rows) else 2, bars=[_paid(row) for row in rows])
    parts: list[Part] = [title(recorded), "", *([shown, ""] if rows else [])]
    parts += [part for line in _priced(rows) for part in (line, "")]
    return render(*parts, *(f"{name} {reason}" for name, reason in left_out.items()), *([""] if left_out else []), *foot(recorded, notes))


def _paid(row: Row) -> float:
    """What ranks a row: US dollars for the run, or for a million samples; 0 where nobody knows."""
    timing = row.timing
    return 0.0 if timing is None else (timing.usd_per_million if timing.cost_usd is None else timing.cost_usd) or 0.0


def _priced(rows: Sequence[Row]) -> list[str]:
    """A line that says whose prices they are, where there are any, and one for each offer."""
    offered = [row for row in rows if with_offers([row])]
    sources = sorted({row.timing.price.source for row in rows if row.timing and row.timing.price and row not in offered})
    return [*([f"Prices, on demand and per card: {'; '.join(sources)}."] if sources else []), *offer_lines(rows)]


def compare_cells(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Columns, and a line for each plan, in their order."""
    by_time = sorted((row for row in rows if row.timing), key=lambda row: -row.timing.samples_per_s if row.timing else 0.0)
    places = {id(row): str(place) for place, row in enumerate(by_time, 1)}
    ranks = [str(place) if _paid(row) else "-" for place, row in enumerate(rows, 1)]  # those without a price are the last
    shared = any(row.devices > 1 for row in rows)
    right = ("step", "samples per s", "MFU", *(["waiting"] if shared else []), "by time", "hours", "USD per million", "cost")
    columns = [
        ("by cost", "right"),
        ("GPU", ""),
        *([("shared by", "")] if shared else []),
        ("micro x accumulation x devices", ""),
        *((heading, "right") for heading in right),
        *([("rented", "")] if with_offers(rows) else []),
    ]
    return columns, [[rank, *_cells(row, places, shared), str(rented(row))][: len(columns)] for rank, row in zip(ranks, rows, strict=True)]


def _cells(row: Row, places: Mapping[int, str], shared: bool) -> list[str]:
    timing, head = row.timing, [row.gpu, *([way_of(row)] if shared else []), split(row)]
    if timing is None:
        return [*head, f"unknown: {row.untimed}", *["-"] * (7 if shared else 6)]
    times = [
        format_seconds(timing.step.seconds),
        f"{timing.samples_per_s:,.1f}",
        f"{timing.mfu:.0%}",
        *([waiting(timing.step)] if shared else []),
        places[id(row)],
    ]
    return [*head, *times, amount(timing.hours), amount(timing.usd_per_million), money(row)]


def way_of(row: Row) -> str:
    """How the devices of a row share the work."""
    parallel = row.recipe.get("parallel")
    return parallel["kind"] if parallel else "ddp" if row.devices > 1 else "-"
