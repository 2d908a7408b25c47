# SPDX-License-Identifier: Apache-2.0
"""`bsmodel study`: many models, recipes, GPUs and numbers of devices at once, from a file or from repeated flags."""

from __future__ import annotations

import argparse
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bsmodel.command import arguments, pictures
from bsmodel.command.asked import foot, of_other_versions
from bsmodel.command.documents import Notes, StudyDocument
from bsmodel.command.given import leave_out
from bsmodel.command.priced import add_offers, add_price, hours_notes, offer_lines, offer_notes, prices, rented, with_offers
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, render, table, verdict
from bsmodel.command.watching import watching
from bsmodel.command.wording import amount, money, no_plan, split
from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware import Gpu, defaults
from bsmodel.memory import reserved_of
from bsmodel.parallel import KINDS
from bsmodel.studies import Goal, Row, Study, one_of_each, study
from bsmodel.training import Training
from bsmodel.units import MOST_COUNT, format_seconds

_EXAMPLE = "bsmodel study --model resnet50 --model gpt2 --gpu a100-40gb --gpu h100-80gb --devices 1 --devices 8"
Count = Annotated[int, BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value), Field(ge=1, le=MOST_COUNT)]


class StudyFile(BaseModel):
    """A study as a TOML file. Every list is an axis; the study is their product."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    workloads: list[str | dict[str, Any]] = Field(min_length=1)
    """Names, or tables with a `name` and options such as `seq_len`."""
    trainings: list[dict[str, Any]] = [{}]
    """Tables of the fields of `Training` that differ from the workload's own recipe."""
    gpus: list[str] = []
    """Ids or TOML files; the four defaults where there is none."""
    devices: list[Count] = Field(default=[1], min_length=1)
    """Numbers of GPUs."""
    parallel: list[str] = Field(default=["ddp"], min_length=1)
    """How several of them share the work."""
    target_batch: list[Count] = []
    """Samples per optimizer step; the largest micro-batch where there is none."""
    samples: Count | None = None
    """Samples in the training set."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over it."""
    prices: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Your price of an hour, by GPU."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel study`."""
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE.toml", help="the study; or its axes by the flags below, each repeatable")
    parser.add_argument("--model", action="append", metavar="MODEL", help=f"{arguments.MODELS} (needed without a file)")
    parser.add_argument("--seq-len", type=arguments.positive, metavar="N", help="tokens a sample, of every model (default: its own, 2048 at most)")
    parser.add_argument("--image-size", type=arguments.positive, metavar="N", help="pixels a side, of every model (default: its own)")
    for name in ("precision", "optimizer"):
        parser.add_argument(f"--{name}", action="append", metavar="NAME", help="repeatable (default: the workload's own)")
    parser.add_argument("--checkpointing", action="append", choices=("yes", "no"), help="repeatable (default: the workload's own)")
    parser.add_argument("--gpu", action="append", metavar="GPU", help="id or TOML file, repeatable (default: the four defaults)")
    arguments.add_room(parser)
    parser.add_argument("--devices", action="append", type=arguments.positive, metavar="N", help="GPUs, repeatable (default: 1)")
    text = f"how several share the work, repeatable: {', '.join(KINDS)} (default: ddp)"
    parser.add_argument("--parallel", action="append", metavar="KIND", help=text)
    parser.add_argument("--target-batch", action="append", type=arguments.positive, metavar="N", help="repeatable (default: the largest micro-batch)")
    parser.add_argument("--samples", type=arguments.positive, metavar="N", help="samples in the training set (default: unknown)")
    parser.add_argument("--epochs", type=arguments.amount, metavar="N", help="passes over it (default: unknown)")
    add_price(parser)
    add_offers(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows as they come, as JSON lines; an interrupted study goes on from it (default: none)")
    parser.add_argument("--csv", action="store_true", help="print CSV (default: a table)")
    parser.add_argument("--workers", type=arguments.positive, metavar="N", help="processes (default: one a processor where that pays)")
    parser.add_argument("--html", metavar="FILE", help="write the rows as a page with grids and charts (default: none)")
    arguments.add_cache(parser)


def run(options: argparse.Namespace) -> Answer:
    """A row for every cell; 1 where none of them has a plan."""
    if options.json:
        leave_out(options, "--json prints JSON", ("csv",))
    pictures.require_drawable(options.html)
    asked = _from_flags(options) if options.file is None else _from_file(options)
    if max(asked.devices) < 2 and asked.parallel != ["ddp"]:
        raise InvalidInputError(f"parallel {', '.join(asked.parallel)} is for several devices, and one is asked about; give devices, too")
    workloads = [arguments.subject(**({"name": item} if isinstance(item, str) else item)) for item in asked.workloads]
    gpus = arguments.with_room(options, one_of_each([Gpu.named(name) for name in asked.gpus]) or defaults())
    targets: list[int | None] = [*asked.target_batch] or [None]
    of_file = [(name, usd) for name, usd in asked.prices.items() if name not in dict(options.price)]  # before which those given here go
    offered = prices(options, [*of_file, *options.price], gpus)
    goals = [Goal(target, asked.samples, asked.epochs, prices=offered) for target in targets]
    with watching("rows") as watch, arguments.hands(workloads, options.workers) as executor:
        found = study(
            workloads,
            asked.trainings,
            gpus,
            asked.devices,
            goals,
            parallel=asked.parallel,
            executor=executor,
            out=options.out,
            caching=options.cache,
            watch=watch,
        )
    said = [note for subject in workloads for note in of_other_versions(subject)]
    notes = tuple(dict.fromkeys([*arguments.room_asked(options), *said, *offer_notes(options), *hours_notes(found.rows)]))
    if options.html:
        _draw(found, asked, options.html, notes)
    text = found.to_csv() if options.csv else _text(found, notes)
    return Answer(StudyDocument(command="study", notes=notes, rows=found.rows), text, fits=any(row.fits for row in found.rows))


def _from_file(options: argparse.Namespace) -> StudyFile:
    """The study of a file; raises `InvalidInputError` where it cannot be read, or flags ask for another one."""
    flags = ("model", "seq_len", "image_size", "precision", "optimizer", "checkpointing", "gpu", "devices", "parallel", "target_batch", "samples", "epochs")
    for name in flags:
        if getattr(options, name) is not None:
            raise InvalidInputError(f"--{name.replace('_', '-')} and the file {str(options.file)!r} both say what to study; give one of them")
    try:
        values = tomllib.loads(options.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(options.file)!r}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInputError(f"{str(options.file)!r} is not TOML: {error}") from None
    return _validated(values, repr(str(options.file)))


def _validated(values: Mapping[str, Any], where: str) -> StudyFile:
    try:
        found = StudyFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise InvalidInputError(f"{where}: {UnknownNameError('field', field, StudyFile.model_fields)}") from None
        raise InvalidInputError(f"{where}: {field}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    for number, item in enumerate(found.workloads):
        if isinstance(item, dict) and not isinstance(item.get("name"), str):
            raise InvalidInputError(f'{where}: workloads.{number} has no name; expected e.g. {{ name = "gpt2", seq_len = 512 }}')
    for changes in found.trainings:
        Training(**changes)
    return found


def _from_flags(options: argparse.Namespace) -> StudyFile:
    if not options.model:
        raise InvalidInputError(f"nothing to study: give a FILE.toml, or flags, e.g. {_EXAMPLE}")
    shape = {name: value for name in ("seq_len", "image_size") if (value := getattr(options, name)) is not None}
    axes: dict[str, list[Any]] = {name: getattr(options, name) for name in ("precision", "optimizer") if getattr(options, name)}
    if options.checkpointing:
        axes["checkpointing"] = [word == "yes" for word in options.checkpointing]
    values = {
        "workloads": [{"name": name, **shape} for name in options.model],
        "trainings": [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())],
        "gpus": options.gpu or [],
        "devices": options.devices or [1],
        "parallel": options.parallel or ["ddp"],
        "target_batch": options.target_batch or [],
        "samples": options.samples,
        "epochs": options.epochs,
    }
    return _validated(values, "study")


def _draw(found: Study, asked: StudyFile, path: str, notes: Notes) -> None:
    """Write the page."""
    from bsmodel.command.study_page import page

    numbers = (("Target batch", asked.target_batch), ("Samples", [asked.samples]), ("Epochs", [asked.epochs]))
    known = [(name, ", ".join(f"{value:,}".removesuffix(".0") for value in values if value is not None)) for name, values in numbers]
    pictures.write(path, page(found.rows, asked.target_batch, [(name, value) for name, value in known if value], _foot(found, notes)))


def varied(rows: Sequence[Row]) -> list[str]:
    """The fields of the recipe that are not the same in all rows."""
    names = sorted({name for row in rows for name in row.recipe})
    return [name for name in names if len({repr(row.recipe.get(name)) for row in rows}) > 1]


def _foot(found: Study, notes: Notes) -> list[str]:
    reasons = dict.fromkeys(row.verdict for row in found.rows if row.status == "refused")
    return [*offer_lines(found.rows), *(f"Refused: {reason}" for reason in reasons), *foot([row.recorded for row in found.rows if row.recorded], notes)]


def _text(found: Study, notes: Notes) -> str:
    columns, lines = study_cells(found.rows)
    return render(table(*columns, rows=lines, repeated=len(varied(found.rows)) + 2), "", *_foot(found, notes))


def study_cells(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Columns, and a line for each row."""
    several = varied(rows)
    columns = [("workload", ""), *((name.replace("_", " "), "") for name in several), ("GPU", ""), ("largest", "right")]
    columns += [("micro x accumulation x devices", ""), ("room", ""), ("GiB reserved of usable", "right"), ("step", "right"), ("samples per s", "right")]
    columns += [("hours", "right"), ("cost", "right"), *([("rented", "")] if with_offers(rows) else [])]
    return columns, [[*_cells(row, several), rented(row)][: len(columns)] for row in rows]


def word(value: Any) -> str:
    """A value of a recipe, in a word."""
    if isinstance(value, dict):
        return str(value.get("kind", value))
    return "-" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _cells(row: Row, several: list[str]) -> list[Cell]:
    head: list[Cell] = [row.workload, *(word(row.recipe.get(name)) for name in several), row.gpu]
    if row.status == "refused" or row.largest_batch is None or row.usable_bytes is None:
        return [*head, "-", "-", "refused", *["-"] * 5]
    if row.peak is None:
        return [*head, str(row.largest_batch), "-", no_plan(row), *["-"] * 5]
    timing, reserved = row.timing, reserved_of(row.peak, row.usable_bytes)
    times = [format_seconds(timing.step.seconds), f"{timing.samples_per_s:,.1f}", amount(timing.hours)] if timing else ["-"] * 3
    room = verdict(True, row.usable_bytes - row.peak.reserved_upper_bytes, row.usable_bytes)
    return [*head, str(row.largest_batch), split(row), room, reserved, *times, money(row)]
