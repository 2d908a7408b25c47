# SPDX-License-Identifier: Apache-2.0
"""`bsmodel check`: whether a batch still trains, and whether a training is no worse than its baseline; for continuous integration."""

from __future__ import annotations

import argparse

from bsmodel.command import arguments
from bsmodel.command.asked import Asked, of_other_versions
from bsmodel.command.documents import CheckDocument
from bsmodel.command.report import Answer
from bsmodel.command.terminal import escaped
from bsmodel.command.wording import uncounted
from bsmodel.errors import InvalidInputError
from bsmodel.files import require_writable
from bsmodel.gate import Allowance, Baseline, check
from bsmodel.hardware import Gpu
from bsmodel.memory import fit, on_devices
from bsmodel.studies import Recorded
from bsmodel.training import Training
from bsmodel.workloads import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel check`."""
    arguments.add_model(parser, gpus="none; one is needed")
    arguments.add_recipe(parser)
    arguments.add_cache(parser)
    parser.add_argument("--require-batch", type=arguments.positive, metavar="N", help="micro-batch that has to train (default: none)")
    parser.add_argument("--against", metavar="FILE", help="baseline that memory, largest batch and step time are held against (default: none)")
    text = "by how much they may be worse: 1%%, 0.01, or memory=1%%,batch=0%%,time=5%% (default: 1%%)"
    parser.add_argument("--allow", type=allowance, metavar="SHARE", help=text)
    text = "micro-batch of the baseline (default: with --against its own, with --save-baseline that of --require-batch)"
    parser.add_argument("--batch", type=arguments.positive, metavar="N", help=text)
    parser.add_argument("--save-baseline", metavar="FILE", help="write what the training takes there, to be held against later (default: nowhere)")


def allowance(text: str) -> Allowance:
    """A share, or several with names."""
    try:
        return Allowance.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> Answer:
    """One line, and below it, where memory got worse, the modules that grew; what can be refused is refused before the work."""
    before = _baseline(options)
    found = arguments.asked(options)
    gpu = _gpu(options)
    if before is not None:
        _require_same(before, found, gpu, options)
    tape = on_devices(arguments.tapes_for(found, options, [gpu])[0], options.devices)
    largest, recorded = fit(tape, gpu), Recorded.of(tape)
    verdict = check(largest, options.require_batch, before, options.allow or Allowance()) if options.require_batch or before else None
    saves = options.save_baseline and (verdict is None or verdict.passes)  # a training that fails is none to hold others against
    saved = Baseline.of(largest, options.batch or options.require_batch) if saves else None
    if saved is not None:
        saved.save(options.save_baseline)
    lines = [verdict.line, *verdict.below] if verdict else []
    lines += [f"saved: {saved.workload} at a micro-batch of {saved.batch:,} on {gpu.id}, as baseline {options.save_baseline}"] if saved else []
    lines += ["Note: no baseline is written of a training that fails."] if options.save_baseline and not saves else []
    lines += [uncounted(recorded.uncounted)] if recorded.uncounted else []
    notes = [*arguments.room_asked(options), *of_other_versions(found)]
    lines += [f"Note: {note}." for note in notes]
    passes = verdict is None or verdict.passes
    document = CheckDocument(
        command="check",
        notes=(*(verdict.notes if verdict else ()), *notes),
        workload=recorded,
        passes=passes,
        line=escaped(lines[0]),
        verdict=verdict,
        saved=saved,
        uncounted=recorded.uncounted,
    )
    return Answer(document, "".join(f"{escaped(line)}\n" for line in lines), fits=passes)


def _baseline(options: argparse.Namespace) -> Baseline | None:
    """The baseline that is read; raises `InvalidInputError` for flags that say nothing together."""
    required, against, saved = options.require_batch, options.against, options.save_baseline
    problems = {
        "nothing is to be checked; give --require-batch N, --against FILE or both, or --save-baseline FILE": not (required or against or saved),
        "--against reads a baseline and --save-baseline writes one; give one of them": against and saved,
        "--allow is for --against FILE": options.allow is not None and not against,
        "--batch is for --against and --save-baseline; what has to train is --require-batch": options.batch and not (against or saved),
        "--network is for --against and --save-baseline, which time a step; leave it out": options.network is not None and not (against or saved),
        "--save-baseline needs a micro-batch; give --batch N": saved and not (options.batch or required),
    }
    for problem, found in problems.items():
        if found:
            raise InvalidInputError(problem)
    if saved:
        require_writable(saved, "the baseline")
    return Baseline.load(against) if against else None


def _require_same(before: Baseline, found: Asked, gpu: Gpu, options: argparse.Namespace) -> None:
    """Raises `InvalidInputError` where the baseline is of another question, as far as the command line tells that."""
    given = arguments.changes(options)
    recipe = {name: value for name, value in Training(**given).model_dump(mode="json").items() if name in given}
    own = dict(found.options) if isinstance(found, Source) else None
    before.require_same(own, recipe, gpu=gpu.id, devices=options.devices, batch=options.batch or before.batch)


def _gpu(options: argparse.Namespace) -> Gpu:
    """The one card, with the room that is asked."""
    names = options.gpu or []
    if len(names) != 1:
        raise InvalidInputError(f"a check is of one GPU, and {', '.join(names) or 'none'} is given; give --gpu once")
    return arguments.with_room(options, [Gpu.named(names[0])])[0]
