# SPDX-License-Identifier: Apache-2.0
"""`bsmodel trial`: short real runs of several batches, and the batch that is worth having."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from bsmodel.command import arguments, pictures
from bsmodel.command.documents import TrialDocument
from bsmodel.command.given import all_but, leave_out
from bsmodel.command.priced import OFFERS, add_offers, add_price, offer_notes, prices
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, Part, render, table
from bsmodel.command.training import training
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, fit
from bsmodel.pages import number
from bsmodel.planning import why_untimed
from bsmodel.prices import price_line
from bsmodel.studies import Goal, tapes
from bsmodel.training import Training
from bsmodel.trials import TRACKERS, Recommendation, Spread, Trial, TrialRow, interval, spread
from bsmodel.units import format_bytes
from bsmodel.workloads import Source, Workload

HERE = "auto"
_UNKNOWN = "-"


def span(text: str) -> tuple[int, int]:
    """`LOW:HIGH`, or one number for both."""
    low, _, high = text.partition(":")
    return arguments.positive(low), arguments.positive(high or low)


def rates(text: str) -> tuple[float, float]:
    """`LOW:HIGH`, learning rates."""
    low, _, high = text.partition(":")
    return arguments.amount(low), arguments.amount(high)


def share(text: str) -> float:
    """A number from 0 up to 1."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; expected a number from 0 up to 1")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel trial`."""
    parser.add_argument("model", nargs="?", help=f"{arguments.WORKLOADS} (default: with --report, that of the trial)")
    text = "auto, or cards for which a batch is recommended by prediction, repeatable (default: auto, the device it runs on)"
    parser.add_argument("--gpu", action="append", metavar="GPU", help=text)
    arguments.add_room(parser)
    arguments.add_shape(parser)
    arguments.add_training(parser)
    parser.add_argument("--devices", type=arguments.positive, default=1, metavar="N", help="GPUs of each card that --gpu names (default: 1)")
    text = "a text file, a folder of a Hugging Face dataset, module:attr or path.py:attr (default: the workload's own, else its example batches)"
    parser.add_argument("--data", metavar="DATA", help=text)
    parser.add_argument("--split", type=share, default=0.0, metavar="SHARE", help="so much of the data is for validation (default: none)")
    text = "micro-batches to try, in powers of two (default: the largest that is predicted to fit, and four halvings)"
    parser.add_argument("--batches", type=span, metavar="LOW:HIGH", help=text)
    parser.add_argument("--effective-batches", type=span, metavar="LOW:HIGH", help="samples of an optimizer step, accumulated (default: --batches)")
    text = "at most so many samples at once, so that steps have several micro-batches and the noise scale is known (default: as many as fit)"
    parser.add_argument("--micro-batch", type=arguments.positive, metavar="N", help=text)
    parser.add_argument("--steps", type=arguments.positive, metavar="N", help="optimizer steps of each run (default: 200)")
    parser.add_argument("--samples", type=arguments.positive, metavar="N", help="samples of each run (default: those of --steps)")
    parser.add_argument("--seeds", type=arguments.positive, default=1, metavar="N", help="runs of each batch (default: 1)")
    parser.add_argument("--base-lr", type=arguments.amount, metavar="LR", help="a learning rate that works (default: the workload's own)")
    parser.add_argument("--base-batch", type=arguments.positive, metavar="N", help="the batch it works at (default: with --base-lr, 256)")
    text = "look for a learning rate first: one run at one batch whose rate rises from one to the other, 100 steps or --steps (default: no)"
    parser.add_argument("--lr-range", type=rates, metavar="LOW:HIGH", help=text)
    parser.add_argument("--warmup", type=arguments.natural, metavar="N", help="steps in which the rate rises (default: five epochs, at most a tenth of a run)")
    parser.add_argument("--target-loss", type=float, metavar="LOSS", help="a run is over once its loss is there (default: after its steps)")
    parser.add_argument("--evaluate-every", type=arguments.positive, metavar="N", help="steps between two validations (default: 10)")
    parser.add_argument("--patience", type=arguments.positive, metavar="N", help="validations without a lower loss that end a run (default: none do)")
    parser.add_argument("--track", action="append", default=[], metavar="NAME", help=f"{', '.join(TRACKERS)}, repeatable (default: jsonl, always written)")
    parser.add_argument("--offline", action="store_true", help="trackers send nothing (default: as they are set up)")
    parser.add_argument("--out", metavar="DIR", help="the trial's folder; one that was interrupted goes on (default: a temporary one)")
    parser.add_argument("--report", metavar="DIR", help="say what a trial's folder holds, and run nothing (default: run)")
    parser.add_argument("--picture", metavar="FILE", help="write its main chart as SVG (default: none)")
    parser.add_argument("--html", metavar="FILE", help="write the trial as a page with charts (default: none)")
    add_price(parser)
    add_offers(parser)
    arguments.add_cache(parser)


def run(options: argparse.Namespace) -> Answer:
    """The trial, run or read, and what it says of each card; raises `InvalidInputError` for what cannot be run so."""
    if (options.model is None) == (options.report is None):
        raise InvalidInputError("give a model to try, or --report DIR for a trial that was run" if options.model is None else _BOTH)
    gpus = arguments.with_room(options, [Gpu.named(name) for name in options.gpu or () if name != HERE])
    _require_effect(options, bool(gpus))
    goal = Goal(prices=prices(options, options.price, gpus) if gpus else ())
    pictures.require_drawable(options.html)
    pictures.require_drawable(options.picture, pictures.PICTURE)
    fits = _fits(options, gpus)
    if options.model is None:
        found = Trial.load(options.report)
    else:
        asked = _asked(arguments.named(options), options)
        if options.lr_range is not None:
            from bsmodel.command.rates import answer

            return answer(asked.workload, asked.recipe, asked.data, options)
        found = _run(asked, options)
        if not _speaks():  # of several processes one answers, draws and writes
            return Answer(_document(found, {}, ()), "", plain=True)
    return _answer(found, fits, options, goal)


def _answer(found: Trial, fits: Sequence[Fit], options: argparse.Namespace, goal: Goal) -> Answer:
    """What a trial says here and of other cards. Runs may have taken hours: what cannot be said or drawn of them is a note, and not the end."""
    elsewhere, failed = dict[str, Recommendation | None](), list[str]()
    for each in fits:
        try:
            elsewhere[each.gpu.id] = found.recommended_on(each, options.devices, goal.offers(each.gpu.id))
        except InvalidInputError as error:
            failed.append(f"on {each.gpu.id}: {error}")
    failed += _draw(found, [choice for choice in elsewhere.values() if choice], options)
    notes = (*found.remarks, *offer_notes(options), *failed)
    return Answer(_document(found, elsewhere, notes), _text(found, elsewhere, notes))


def _document(found: Trial, elsewhere: Mapping[str, Recommendation | None], notes: tuple[str, ...]) -> TrialDocument:
    return TrialDocument(
        command="trial",
        notes=notes,
        question=dict(found.question),
        rows=found.rows,
        noise_scale=found.noise_scale,
        law=found.law,
        critical_batch=None if found.law is None else found.law.critical_batch,
        recommended=found.recommended,
        elsewhere={name: choice for name, choice in elsewhere.items() if choice},
    )


_SHOWN = ("html", "picture")
# Of a learning rate range test: what is trained, on which samples and how, and the one batch.
_OF_RATES = ("lr_range", "model", *arguments.SHAPE, *Training.model_fields, "data", "batches", "effective_batches", "micro_batch", "steps", *_SHOWN)


def _require_effect(options: argparse.Namespace, elsewhere: bool) -> None:
    """Raises `InvalidInputError` for an option that has no effect in what is asked: a report, a range of learning rates or a trial."""
    if options.report is not None:
        kept = ("report", *_SHOWN, *(("gpu",) if elsewhere else ()))  # a card has a line of its own
        leave_out(options, "--report says what a trial has found, and runs nothing", all_but(options, *kept))
    elif options.lr_range is not None:
        kept = (*_OF_RATES, *(() if elsewhere else ("gpu",)))
        leave_out(options, "--lr-range is one run at one batch on the device here, whose rate rises", all_but(options, *kept))
        if options.effective_batches:
            leave_out(options, "--effective-batches says the one batch", ("batches",))
    elif not elsewhere:
        leave_out(options, "these are for cards elsewhere, and --gpu names none", ("price", *OFFERS, "devices", "context", "headroom"))


def _draw(found: Trial, elsewhere: Sequence[Recommendation], options: argparse.Namespace) -> list[str]:
    """Writes what is asked, and says what cannot be; of a trial that was only read, that is raised."""
    from bsmodel.trials import page, picture

    failed = []
    drawn: dict[str, tuple[str | None, Callable[[], str]]] = {
        pictures.PAGE: (options.html, lambda: page(found, elsewhere)),
        pictures.PICTURE: (options.picture, lambda: picture(found)),
    }
    for what, (path, made) in drawn.items():
        try:
            if path:
                pictures.write(path, made(), what)
        except InvalidInputError as error:
            if options.report is not None:
                raise
            failed.append(f"{what} is not written: {error}")
    return failed


_BOTH = "--report says what a trial that was run has found; leave out the model"


class _Asked(NamedTuple):
    """What is tried, and on what."""

    workload: Workload
    recipe: Training
    data: Any
    validation: Any


def _asked(source: Source, options: argparse.Namespace) -> _Asked:
    from bsmodel.trials import data_named

    workload = source.workload()
    found = (None, None) if options.data is None else data_named(options.data, source, workload)
    return _Asked(workload, Training(**{**dict(workload.training), **arguments.changes(options)}), *found)


def _speaks() -> bool:
    from bsmodel.trials import speaks

    return speaks()


def _run(asked: _Asked, options: argparse.Namespace) -> Trial:
    from bsmodel.trials import Options, trial

    given = {field.name: getattr(options, field.name) for field in fields(Options)}
    with training() as watch:
        return trial(asked.workload, asked.recipe, data=asked.data, validation=asked.validation, out=options.out, watch=watch, **given)


def _fits(options: argparse.Namespace, gpus: Sequence[Gpu]) -> list[Fit]:
    """The largest batch on each card that one might rent, before anything is run: raises `InvalidInputError` for one of which nothing can be predicted."""
    if not gpus:
        return []
    if options.model is None:
        asked = f"give it and --out {options.report} instead of --report, to predict for {gpus[0].id}"
        raise InvalidInputError(f"a trial's folder does not hold its model; {asked}")
    found = [fit(tape, gpu) for tape, gpu in zip(tapes(arguments.named(options), arguments.changes(options), gpus, options.cache), gpus, strict=True)]
    for each in found:
        if reason := f"{each.tape.name} {each.verdict}" if each.batch < 1 else why_untimed(each.tape, each.gpu):
            raise InvalidInputError(f"{reason}; leave out --gpu {each.gpu.id}, for which no batch can be recommended")
    return found


# -- as text -----------------------------------------------------------------------------------------------------------------------------


def _text(found: Trial, elsewhere: dict[str, Recommendation | None], notes: Sequence[str]) -> str:
    question, rows = found.question, found.rows
    recipe = question["recipe"]
    seeds = f"{len(question['seeds'])} seed" + ("s" if len(question["seeds"]) > 1 else "")
    head = f"{question['workload']}: {recipe['precision']}, {recipe['optimizer']}; {question['data']}; {seeds}; on {question['device']}"
    parts: list[Part] = [head, "", _losses(found, rows), "", _measured(rows), ""]
    parts += _conclusions(found)
    for name, choice in elsewhere.items():
        parts.append(f"On {name}: {_recommended(choice, found.law is not None)}")
        parts += [price_line(name, choice.price, choice.unpriced)] if choice else []
    return render(*parts, *(f"Note: {remark.removesuffix('.')}." for remark in notes))


def _losses(found: Trial, rows: Sequence[TrialRow]) -> Part:
    target = found.target_loss
    reached = () if target is None else ((f"steps to {target:g}", "right"), ("samples", "right"), ("seconds", "right"))
    first = (("batch", "right"), ("micro x accumulation x devices", ""), ("learning rate", "right"), ("updates", "right"))
    samples, seconds = found.equal_samples, found.equal_seconds
    places = ("at equal samples", "at equal seconds") if samples is None else (f"after {samples:,} samples", f"after {seconds:.3g} s")
    last = "last validation loss" if found.validates else "last loss"
    losses = ((last, "right"), *((place, "right") for place in places), ("ended", ""))
    return table(*first, *reached, *losses, rows=[_loss_cells(found, row) for row in rows])


def _loss_cells(found: Trial, row: TrialRow) -> list[Cell]:
    rung = row.rung
    there = [] if found.target_loss is None else [_spread(row.steps_to_target), _spread(row.samples_to_target), _spread(row.seconds_to_target)]
    losses = [_spread(row.validation_loss if found.validates else row.final_loss), _spread(row.loss_at_samples), _spread(row.loss_at_seconds)]
    split = f"{rung.micro_batch} x {rung.accumulation} x {rung.devices}"
    made = Spread.of(len(run.updates) for run in found.by_rung[rung])
    return [f"{rung.batch:,}", split, f"{rung.learning_rate:.3g}", _spread(made), *there, *losses, row.status]


def _measured(rows: Sequence[TrialRow]) -> Part:
    """What was predicted beside what was measured; columns of which nothing is known are left out."""
    columns = (
        ("batch", "right"),
        ("samples per s", "right"),
        ("seconds a step", "right"),
        ("predicted", "right"),
        ("allocated", "right"),
        ("predicted", "right"),
        ("reserved", "right"),
        ("predicted", "right"),
        ("gradient noise scale", "right"),
    )
    lines = [_measured_cells(row) for row in rows]
    known = [place for place in range(len(columns)) if any(line[place] != _UNKNOWN for line in lines)]
    return table(*(columns[place] for place in known), rows=[[line[place] for place in known] for line in lines])


def _measured_cells(row: TrialRow) -> list[Cell]:
    rung, noise = row.rung, row.noise_scale
    pairs = ((row.allocated_bytes, rung.predicted_allocated_bytes), (row.reserved_bytes, rung.predicted_reserved_bytes))
    memory = [_UNKNOWN if value is None else format_bytes(value) for pair in pairs for value in pair]
    seconds = [_UNKNOWN if value is None else f"{value:.4g}" for value in (row.step_seconds, rung.predicted_step_seconds)]
    scale = _UNKNOWN if noise is None else interval(noise)
    return [f"{rung.batch:,}", _UNKNOWN if row.samples_per_s is None else f"{row.samples_per_s:,.4g}", *seconds, *memory, scale]


def _conclusions(found: Trial) -> list[Part]:
    law, noise = found.law, found.noise_scale
    said: list[Part] = []
    if law is not None:
        critical = f"critical batch {law.critical_batch:,.0f}" + (f" ({law.low:,.0f} to {law.high:,.0f})" if law.low < law.high else "")
        said.append(f"Steps to the target: {law.fewest_steps:,.1f} + {law.fewest_samples:,.0f} / batch; {critical} samples.")
    if noise is not None:
        said.append(f"Gradient noise scale: {interval(noise)} samples, over {noise.steps:,} steps; it grows in training.")
    said.append(f"Here: {_recommended(found.recommended, law is not None)}")
    return said


def _recommended(choice: Recommendation | None, to_target: bool) -> str:
    if choice is None:
        return "no batch is recommended: that needs a target that two batches reach, or steps of several micro-batches."
    tried = [each.batch for each in choice.choices]
    edge = ", the fewest that were tried," if choice.batch == min(tried) else ", the most that were tried," if choice.batch == max(tried) else ""
    said = f"{choice.batch:,} samples a step{edge} are worth having, by {choice.by}"
    if not to_target:
        return f"{said}, with steps by the noise scale: no target was reached by two batches."
    cost = next(each for each in choice.choices if each.batch == choice.batch)
    money = "" if cost.usd is None else f", {number(cost.usd)} USD"
    return f"{said}: {cost.seconds:,.4g} s to the target{money}."


def _spread(value: Spread | None) -> str:
    return _UNKNOWN if value is None else spread(value)
