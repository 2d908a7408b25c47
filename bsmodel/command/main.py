# SPDX-License-Identifier: Apache-2.0
"""The command line: reads arguments, calls the library, prints what `report` makes of it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import bsmodel
from bsmodel import hardware, planning
from bsmodel.command import documents, validate
from bsmodel.command import tables as report
from bsmodel.command.arguments import positive, price, size
from bsmodel.command.parallel import beside, later
from bsmodel.errors import BsmodelError, InvalidInputError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.memory import Footprint, breakdown, fit, footprint, predict
from bsmodel.tape import Tape, by_module, by_operator, counted
from bsmodel.training import OPTIMIZERS, PRECISIONS, Training, require_arithmetic
from bsmodel.workloads import NAMED, Workload, bare_module

FITS, DOES_NOT_FIT, BAD_USAGE = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"bsmodel: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None, begin: Callable[[Callable[[], Any]], Callable[[], Any]] = later) -> int:
    """Run one command; returns the exit code: 0 fits, 1 fits on none of the GPUs asked for, 2 bad usage or untraceable.

    `begin` says how work is done whose result is not needed yet: by default when it is.
    """
    options = _parser().parse_args(arguments)
    options.begin = begin
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the answer has left
        return FITS
    except (BsmodelError, OSError) as error:
        print(f"bsmodel: {error}", file=sys.stderr)
        return BAD_USAGE
    return code


def run() -> NoReturn:
    """The command `bsmodel`: `main` in a process of its own, too short for garbage collection to pay, and free to make copies of itself.

    It ends at once: taking down torch and a recorded model object by object takes a second, and the system frees their memory anyway.
    """
    gc.disable()
    code = main(begin=beside)
    with contextlib.suppress(OSError):  # said already
        sys.stdout.flush()
    os._exit(code)


def _parser() -> _Parser:
    parser = _Parser(prog="bsmodel", description="Which batch trains on which GPU, before you rent it.")
    parser.add_argument("--version", action="version", version=f"bsmodel {bsmodel.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    plan = _command(commands, "plan", _plan, "largest batch per GPU, and how to reach a target batch")
    _add_recipe(plan)
    _add_run(plan)
    plan.add_argument("--base-lr", type=float, metavar="LR", help="a learning rate that works (default: the published one of a named model)")
    plan.add_argument("--base-batch", type=positive, metavar="N", help="the effective batch it works at")
    compare = _command(commands, "compare", _compare, "GPUs ranked by what a run costs and how long it takes")
    _add_recipe(compare)
    _add_run(compare)
    one = _command(commands, "predict", _predict, "the peak at one batch, and whether it fits")
    _add_recipe(one)
    one.add_argument("--batch", type=positive, required=True, metavar="N", help="micro-batch")
    explain = _command(commands, "explain", _explain, "where the bytes go at the binding moment, by category and module")
    _add_recipe(explain)
    explain.add_argument("--batch", type=positive, required=True, metavar="N", help="micro-batch")
    explain.add_argument("--by", choices=("category", "module", "operator"), default="category", help="bytes, or FLOPs and activations")
    explain.add_argument("--depth", type=positive, default=3, metavar="N", help="how deep to show modules (default 3)")
    checked = _command(commands, "validate", validate.run, "predictions against a real GPU: measure, report, calibrate")
    validate.add_arguments(checked)
    gpus = _command(commands, "gpus", _gpus, "the GPUs of the catalogue")
    gpus.add_argument("--min-memory", type=size, default=0, metavar="SIZE", help="only cards with at least this, e.g. 40GiB")
    gpus.add_argument("--schema", action="store_true", help="print the JSON schema of a GPU file instead")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON, nothing else")
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"one of {', '.join(NAMED)}; timm:NAME, torchvision:NAME, config.json, module:attr, path.py:attr, tape.json.gz")
    parser.add_argument("--gpu", action="append", metavar="GPU", help="id or TOML file, repeatable (default: the four of the catalogue)")
    parser.add_argument("--seq-len", type=positive, metavar="N")
    parser.add_argument("--image-size", type=positive, metavar="N")
    parser.add_argument("--attention", choices=("sdpa", "eager"))
    parser.add_argument("--input", metavar="SHAPE", help="shape of one sample for a bare nn.Module, e.g. 3x224x224")
    parser.add_argument("--precision", metavar="NAME", help=", ".join(PRECISIONS))
    parser.add_argument("--optimizer", metavar="NAME", help=", ".join(OPTIMIZERS))
    parser.add_argument("--checkpointing", action="store_true", default=None)
    parser.add_argument("--channels-last", action="store_true", default=None)
    parser.add_argument("--ema", action="store_true", default=None)
    parser.add_argument("--keep-outputs", action="store_true", default=None)
    parser.add_argument("--accumulation", type=positive, metavar="N", help="record with this many micro-steps per optimizer step")
    parser.add_argument("--gradient-clipping", type=float, metavar="NORM")
    parser.add_argument("--zero-grad", choices=("none", "zeros"))
    parser.add_argument("--lora-rank", type=positive, metavar="R")
    parser.add_argument("--frozen", action="append", metavar="PREFIX", help="parameters not trained, repeatable")
    parser.add_argument("--save", metavar="FILE", help="keep the recording, to ask again without torch (one group of GPUs only)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target-batch", type=positive, metavar="N", help="samples per optimizer step (default: the largest micro-batch)")
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="data-parallel GPUs (default 1)")
    parser.add_argument("--samples", type=positive, metavar="N", help="samples in the training set")
    parser.add_argument("--epochs", type=float, metavar="N", help="passes over it")
    parser.add_argument("--price", type=price, action="append", default=[], metavar="GPU=USD", help="your price an hour, repeatable (else the catalogue's)")


# -- recording -----------------------------------------------------------------------------------------------------------------------


def _gpus_asked(options: argparse.Namespace) -> list[Gpu]:
    gpus = [Gpu.named(name) for name in options.gpu] if options.gpu else list(hardware.defaults())
    own = [f"GPU row {gpu.id} from {name} (measured {gpu.calibrated_on})" for name, gpu in zip(options.gpu or (), gpus) if gpu.calibrated_on]
    options.notes = own  # stand in the answer: it rests on figures that only this user has
    return gpus


def _training(options: argparse.Namespace, base: Training) -> Training:
    names = set(Training.model_fields) & set(vars(options))
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "frozen" in given:
        given["frozen"] = tuple(given["frozen"])
    return Training(**{**base.model_dump(), **given})


def _workload(options: argparse.Namespace) -> Workload:
    if options.input is not None:
        return bare_module(options.model, options.input)
    return Workload.named(options.model, seq_len=options.seq_len, image_size=options.image_size, attention=options.attention)


def _recipe(options: argparse.Namespace) -> tuple[Workload, Training] | None:
    """What is trained, and how; None where a saved tape holds both."""
    if options.model.endswith(".json.gz"):
        return None
    workload = _workload(options)
    return workload, _training(options, workload.training)


def _recorded(options: argparse.Namespace, recipe: tuple[Workload, Training] | None, gpus: list[Gpu]) -> dict[str, Tape]:
    """A tape for each of these GPUs; those that pick the same kernels share one."""
    if recipe is None:
        tape = Tape.load(options.model)
        return {gpu.id: tape for gpu in gpus}
    workload, training = recipe
    for gpu in gpus:
        require_arithmetic(training, gpu)
    families: dict[tuple[int, int], Gpu] = {}
    for gpu in gpus:
        major, minor = gpu.kernel_family
        families.setdefault((major, minor), gpu.model_copy(update={"compute_capability": f"{major}.{minor}"}))
    recordings = {key: functools.partial(bsmodel.trace, workload, training, gpu) for key, gpu in families.items()}
    processors = os.cpu_count() or 1
    begun = {key: (options.begin if 0 < position < processors else later)(work) for position, (key, work) in enumerate(recordings.items())}
    groups = {key: _recording(workload, families[key], recorded) for key, recorded in begun.items()}
    tapes = {gpu.id: groups[gpu.kernel_family] for gpu in gpus}
    if options.save:
        if len(groups) > 1:
            raise InvalidInputError("--save keeps one recording, and these GPUs need several; name GPUs of one architecture")
        next(iter(groups.values())).save(options.save)
    return tapes


def _recording(workload: Workload, gpu: Gpu, recorded: Callable[[], Tape]) -> Tape:
    """The tape of a family of cards, with a line of progress."""
    started = time.perf_counter()
    print(f"recording {workload.name} for compute capability {gpu.compute_capability} ...", end=" ", file=sys.stderr, flush=True)
    try:
        tape = recorded()
    except BaseException:
        print(file=sys.stderr)
        raise
    print(f"{len(tape.operators):,} allocations in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return tape


def _print(options: argparse.Namespace, text: str, document: dict[str, Any]) -> None:
    notes: list[str] = getattr(options, "notes", [])
    text += "".join(f"{note}\n" for note in notes)
    print(json.dumps({**document, **({"notes": notes} if notes else {})}, indent=2) if options.json else text, end="\n" if options.json else "")


# -- commands ------------------------------------------------------------------------------------------------------------------------


def _plan(options: argparse.Namespace) -> int:
    gpus, recipe = _gpus_asked(options), _recipe(options)
    tapes = _recorded(options, recipe, gpus)
    plans = _plans(options, recipe, tapes, gpus)
    distinct = list({id(tape): tape for tape in tapes.values()}.values())
    of_tape = {id(tape): footprint(tape) for tape in distinct}
    forms = {gpu.id: of_tape[id(tapes[gpu.id])] for gpu in gpus}
    answer = [
        documents.plan_json(item, forms[gpu.id], planning.ladder(item.fit) if isinstance(item, planning.Plan) and options.json else ())
        for gpu, item in zip(gpus, plans, strict=True)
    ]
    text = "" if options.json else report.plan_text(distinct, plans, _labelled(tapes, gpus, forms))
    missing = sorted({name for tape in distinct for name in tape.uncounted})
    _print(options, text, documents.document("plan", workload=documents.tape_json(distinct[0]), gpus=answer, uncounted=missing))
    return FITS if any(isinstance(item, planning.Plan) for item in plans) else DOES_NOT_FIT


def _plans(
    options: argparse.Namespace, recipe: tuple[Workload, Training] | None, tapes: dict[str, Tape], gpus: Sequence[Gpu]
) -> list[planning.Plan | bsmodel.Fit]:
    """The plan on each GPU, or the fit that says why there is none; in copies of this process, where there may be any."""
    size = math.ceil(len(gpus) / (2 * (os.cpu_count() or 1)))  # two shares a processor, since some cards take longer
    mine, *others = (functools.partial(_planned, options, recipe, tapes, gpus[start : start + size]) for start in range(0, len(gpus), size))
    begun = [options.begin(share) for share in others]
    return [*mine(), *(plan for share in begun for plan in share())]


def _planned(
    options: argparse.Namespace, recipe: tuple[Workload, Training] | None, tapes: dict[str, Tape], gpus: Sequence[Gpu]
) -> list[planning.Plan | bsmodel.Fit]:
    base_lr, base_batch = getattr(options, "base_lr", None), getattr(options, "base_batch", None)
    if recipe is not None and base_lr is None:
        workload, _ = recipe
        base_lr, base_batch = workload.base_lr, base_batch or workload.base_batch
    prices = {Gpu.named(name).id: planning.Price(usd, "yours") for name, usd in options.price}
    plans: list[planning.Plan | bsmodel.Fit] = []
    for gpu in gpus:
        found = fit(tapes[gpu.id], gpu)
        arguments = (options.target_batch, options.devices, options.samples, options.epochs, base_lr, base_batch, prices.get(gpu.id))
        try:
            plans.append(planning.plan(found, *arguments) if found.batch else found)
        except UnreachableTargetError as error:  # of this card; the others may reach it
            plans.append(replace(found, verdict=f"does not fit on {gpu.id}: {error}"))
    return plans


def _compare(options: argparse.Namespace) -> int:
    options.gpu = options.gpu or [gpu.id for gpu in Gpu.all()]
    asked, recipe = _gpus_asked(options), _recipe(options)
    gpus, refused = _suitable(recipe, asked)
    tapes = _recorded(options, recipe, gpus or asked)
    if recipe is None:  # a tape holds for one family of cards
        refused = {gpu.id: "runs other kernels than the tape was recorded for" for gpu in gpus if tapes[gpu.id].gpu.capability[0] != gpu.capability[0]}
        gpus = [gpu for gpu in gpus if gpu.id not in refused]
    if not gpus:
        raise InvalidInputError("none of these GPUs can run this: " + "; ".join(f"{name} {reason}" for name, reason in refused.items()))
    plans = _plans(options, recipe, tapes, gpus)
    fitting = planning.ranked([item for item in plans if isinstance(item, planning.Plan)])
    reasons = refused | {item.gpu.id: item.verdict for item in plans if isinstance(item, bsmodel.Fit)}
    tape = tapes[gpus[0].id]
    content = {"workload": documents.tape_json(tape), "gpus": [documents.compared_json(item) for item in fitting], "not": reasons}
    _print(options, report.compare_text(tape, fitting, reasons), documents.document("compare", **content))
    return FITS if fitting else DOES_NOT_FIT


def _suitable(recipe: tuple[Workload, Training] | None, gpus: list[Gpu]) -> tuple[list[Gpu], dict[str, str]]:
    """The GPUs whose arithmetic the recipe can use, and why the others are left out."""
    lacking = [gpu for gpu in gpus if recipe is not None and recipe[1].numerics.needs_bf16 and not gpu.supports_bf16]
    reason = "has no bf16 arithmetic; with precision fp16-mixed it may fit"
    return [gpu for gpu in gpus if gpu not in lacking], {gpu.id: reason for gpu in lacking}


def _labelled(tapes: dict[str, Tape], gpus: Sequence[Gpu], forms: dict[str, Footprint]) -> list[tuple[str, Footprint]]:
    """Each closed form once, with the GPUs it holds for."""
    groups: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        groups.setdefault(str(forms[gpu.id]), []).append(gpu)
    return [(", ".join(gpu.id for gpu in group), forms[group[0].id]) for group in groups.values()]


def _predict(options: argparse.Namespace) -> int:
    gpus = _gpus_asked(options)
    tapes = _recorded(options, _recipe(options), gpus)
    peaks = [(gpu, predict(tapes[gpu.id], gpu, options.batch)) for gpu in gpus]
    tape = tapes[gpus[0].id]
    answer = [{"gpu": gpu.id, "usable_bytes": gpu.usable_bytes, **documents.peak_json(peak)} for gpu, peak in peaks]
    _print(options, report.predict_text(tape, peaks), documents.document("predict", workload=documents.tape_json(tape), gpus=answer))
    return FITS if any(peak.fits for _, peak in peaks) else DOES_NOT_FIT


def _explain(options: argparse.Namespace) -> int:
    if options.gpu is None:
        options.gpu = [hardware.DEFAULT_GPUS[2]]
    gpus = _gpus_asked(options)
    tapes = _recorded(options, _recipe(options), gpus)
    tape = tapes[gpus[0].id]
    if options.by != "category":
        return _explain_counts(options, tape)
    form, shares, line = footprint(tape), breakdown(tape, options.batch), counted(tape)
    peak = predict(tape, gpus[0], options.batch)
    moment = str(form.binding(options.batch))
    content = {
        "workload": documents.tape_json(tape),
        "batch": options.batch,
        "moment": moment,
        "total_bytes": int(form(options.batch)),
        "by_category": dict(report.totals(shares, "category")),
        "by_module": dict(report.totals(shares, "module")),
        "closed_form": documents.form_json(form),
        "counted_form": {"states_bytes": line.fixed, "activation_bytes": line.per_sample},
        "allocated_bytes": peak.allocated_bytes,
    }
    forms = report.forms_compared(tape, form, line, peak)
    _print(options, report.explain_text(tape, options.batch, moment, shares, forms), documents.document("explain", **content))
    return FITS


def _explain_counts(options: argparse.Namespace, tape: Tape) -> int:
    if options.by == "module":
        modules = by_module(tape, options.batch)
        text = report.modules_text(tape, options.batch, modules, options.depth)
        content = {"modules": [documents.row_json(row) for row in modules]}
    else:
        operators = by_operator(tape, options.batch)
        text = report.operators_text(tape, options.batch, operators)
        content = {"operators": [documents.row_json(row) for row in operators]}
    _print(options, text, documents.document("explain", workload=documents.tape_json(tape), batch=options.batch, **content))
    return FITS


def _gpus(options: argparse.Namespace) -> int:
    if options.schema:
        print(hardware.schema(), end="")
        return FITS
    gpus = [gpu for gpu in Gpu.all() if gpu.memory_bytes >= options.min_memory]
    _print(options, report.gpus_text(gpus), documents.document("gpus", gpus=[gpu.model_dump(mode="json") for gpu in gpus]))
    return FITS
