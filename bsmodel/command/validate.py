# SPDX-License-Identifier: Apache-2.0
"""`bsmodel validate`: its arguments, and which part of the package answers them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsmodel.command import pictures
from bsmodel.command.arguments import positive, size
from bsmodel.command.given import all_but, leave_out
from bsmodel.command.report import write_answer
from bsmodel.errors import InvalidInputError
from bsmodel.files import require_writable, write_whole
from bsmodel.hardware import Gpu, defaults
from bsmodel.training import Training
from bsmodel.units import format_bytes
from bsmodel.workloads import MADE_HERE, Workload

if TYPE_CHECKING:
    from bsmodel.validation.cases import Case
    from bsmodel.validation.running import Bench, Runner

_TABLE = "the table"
_WRITTEN = ("out_dir", "html", "markdown")
EXAMPLE = "bsmodel validate resnet50 --out rows.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel validate`."""
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"as in bsmodel plan (default: {', '.join(MADE_HERE)})")
    text = "rows, as JSON lines; those already there are not run again; with --calibrate the GPU file (needed, but for --report)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--largest", action="store_true", help="find largest batches by real out-of-memory errors (default: peaks and times)")
    parser.add_argument("--accumulation", action="store_true", help="planned accumulation, and its gradients against a full batch's (default: peaks and times)")
    parser.add_argument("--side-by-side", action="store_true", help="ask other estimators the same questions (default: peaks and times)")
    text = "rows to a Markdown table, with --html or --out-dir also a page; needs no GPU (default: measure)"
    parser.add_argument("--report", type=Path, metavar="FILE", help=text)
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="rows to a GPU file of your own, written to --out; needs no GPU (default: measure)")
    parser.add_argument("--gpu", metavar="GPU", help="predict with this row, an id or TOML file (default: the card's own row of the catalogue)")
    parser.add_argument("--batch", action="append", type=positive, metavar="N", help="repeatable (default: 1/2, all, 1/8 of the predicted largest)")
    text = "repeatable, for --largest (default: the card and four GPUs) or --side-by-side (default: the card)"
    parser.add_argument("--capacity", action="append", type=size, metavar="SIZE", help=text)
    parser.add_argument("--seq-len", type=positive, metavar="N", help="tokens a sample (default: the model's own, 2048 at most)")
    parser.add_argument("--image-size", type=positive, metavar="N", help="pixels a side (default: the model's own)")
    parser.add_argument("--precision", metavar="NAME", help="only this recipe, with the two below (default: the matrix, or the workload's own recipe)")
    parser.add_argument("--optimizer", metavar="NAME", help="as in bsmodel plan (default: the workload's own)")
    parser.add_argument("--checkpointing", action="store_true", default=None, help="recompute activations (default: as the workload says)")
    parser.add_argument("--quick", action="store_true", help="only each workload's own recipe, at one batch (default: the whole matrix)")
    parser.add_argument("--minutes", type=_minutes, default=10.0, metavar="M", help="start nothing new after this long (default: 10)")
    parser.add_argument("--retry", action="store_true", help="run cases again whose row says that they failed (default: leave them)")
    parser.add_argument("--python", default="", metavar="CMD", help="command that starts Python in the children (default: this one, or BSMODEL_PYTHON)")
    parser.add_argument("--out-dir", type=Path, metavar="DIR", help="where --report writes report.html and report.md (default: prints Markdown)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where --report writes its page; needs bsmodel[page] (default: nowhere)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where --report writes its table (default: prints it)")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of minutes")
    return value


def run(options: argparse.Namespace) -> int:
    """Answer the command; 0 where everything asked for was done. Raises `BsmodelError` for what cannot be."""
    modes = [name for name in ("report", "calibrate", "largest", "accumulation", "side_by_side") if getattr(options, name)]
    if len(modes) > 1:
        raise InvalidInputError(f"--{modes[0].replace('_', '-')} and --{modes[1].replace('_', '-')} are two questions; ask them one by one")
    if options.report:
        leave_out(options, "--report says what rows hold, and measures nothing", all_but(options, "report", *_WRITTEN))
        return _report(options)
    for name in _WRITTEN:
        if getattr(options, name):
            raise InvalidInputError(f"--{name.replace('_', '-')} is where --report writes; add --report FILE, the rows")
    if options.out is None:
        raise InvalidInputError(f"--out FILE is missing: where to write, e.g. {EXAMPLE}")
    if options.calibrate:
        leave_out(options, "--calibrate makes a GPU file of rows, and measures nothing", all_but(options, "calibrate", "out", "gpu"))
        return _calibrate(options)
    if options.largest:
        leave_out(options, "--largest finds the batch", ("batch",))
    elif not options.side_by_side:
        leave_out(options, "capacities are for --largest and --side-by-side", ("capacity",))
    return _measure(options, modes[0] if modes else "step")


def _say(document: dict[str, Any]) -> None:
    write_answer(f"{json.dumps(document, indent=2)}\n")


def _report(options: argparse.Namespace) -> int:
    from bsmodel.validation import rows, summary

    html, markdown = _targets(options)
    found = rows.read(options.report)
    text = summary.markdown(found)
    if html:
        from bsmodel.validation.page import page

        pictures.write(html, page(found))
    if markdown:
        write_whole(markdown, text.encode(), _TABLE)
    written = [str(path) for path in (html, markdown) if path]
    if options.json:
        _say({"schema_version": rows.SCHEMA_VERSION, "command": "validate", **summary.document(found), "written": written})
    else:
        write_answer(f"wrote {' and '.join(written)}\n" if written else text)
    return 0


def _targets(options: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Where the page and the table go; raises `InvalidInputError`, before the work, for one that cannot be made or written."""
    html, markdown = options.html, options.markdown
    if html and markdown:
        leave_out(options, "--html and --markdown say where both go", ("out_dir",))
    if options.out_dir:
        if not options.out_dir.is_dir():
            raise InvalidInputError(f"no such folder: {str(options.out_dir)!r}")
        html, markdown = html or options.out_dir / "report.html", markdown or options.out_dir / "report.md"
    if html and markdown and os.path.realpath(html) == os.path.realpath(markdown):
        raise InvalidInputError(f"the page and the table would both be {str(html)!r}; give each a file of its own")
    pictures.require_drawable(html)
    if markdown:
        require_writable(markdown, _TABLE)
    return html, markdown


def _calibrate(options: argparse.Namespace) -> int:
    from bsmodel.validation import calibration, rows

    found = calibration.calibrate(rows.read(options.calibrate), options.calibrate.name, options.gpu)
    write_whole(options.out, calibration.toml(found.gpu).encode(), "the GPU file")
    written = {"gpu": found.gpu.model_dump(mode="json"), "errors": found.errors, "notes": list(found.notes), "written": str(options.out)}
    if options.json:
        _say({"schema_version": rows.SCHEMA_VERSION, "command": "validate", **written})
    else:
        write_answer("".join(f"{line}\n" for line in (*found.notes, f"wrote {options.out}; use it with --gpu {options.out}")))
    return 0


# -- on the device -----------------------------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace, kind: str) -> int:
    from bsmodel.validation import cases, running

    given: dict[str, Any] = {name: value for name in ("seq_len", "image_size") if (value := getattr(options, name)) is not None}
    names = options.workloads or cases.available()
    changes = {name: value for name in ("precision", "optimizer", "checkpointing") if (value := getattr(options, name)) is not None}
    for name in names:
        Training(**{**dict(Workload.named(name, **given).training), **changes})  # refused before anything starts
    bench = _bench(options)
    matrix = cases.matrix(names, bench.gpu.id, bench.gpu.supports_bf16, options.batch or (), given, changes)
    if options.quick or kind != "step":
        matrix = cases.quick(matrix)
    outcomes = [running.run(bench, *run) for run in _passes(options, kind, matrix, bench)]
    written, left = sum(outcome.written for outcome in outcomes), sum(outcome.left for outcome in outcomes)
    again = f", {left} cases left: the same command goes on where this one stopped" if left else ""
    answer = {"schema_version": 1, "command": "validate", "written": written, "left": left, "out": str(options.out)}
    if options.json:
        _say(answer)
    else:
        write_answer(f"{written} rows added to {options.out}{again}; see bsmodel validate --report {options.out}\n")
    return 0


def _passes(options: argparse.Namespace, kind: str, matrix: list[Case], bench: Bench) -> list[tuple[str, list[Case], Runner]]:
    """Kind, cases and runner of each pass over the matrix."""
    from bsmodel.validation import cases, running

    plain = [replace(case, share=None) for case in matrix]
    if kind == "accumulation":
        return [("accumulation", plain, running.accumulation)]
    if kind == "largest":
        limits = _capacities(options, bench.gpu)
        return [("largest", [replace(case, batch=None, capacity_bytes=limit) for case in plain for limit in limits], running.largest)]
    if kind == "side_by_side":
        limits = _capacities(options, bench.gpu) if options.capacity else [None]
        return [("side-by-side", [replace(case, capacity_bytes=limit) for case in matrix for limit in limits], running.side_by_side)]
    rates = cases.Case("rates", bench.gpu.id, Training())
    convolutions = cases.Case("convolutions", bench.gpu.id, Training())
    return [("hardware", [rates], _hardware), ("workspaces", [convolutions], _workspaces), ("step", matrix, running.step)]


def _hardware(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Rates of the card, and the host's time per kernel: that of a step too small for the device, over the kernels recorded for it."""
    import bsmodel
    from bsmodel.validation import device, rows

    measured = bench.child({"do": "hardware"})
    tape = bsmodel.trace(device.tiny(), None, bench.gpu)
    kernels = tape.operations.column("launches", device.TINY_BATCH)[~tape.operations.where("accumulation")].sum()
    if seconds := measured.pop("tiny_step_seconds", None):
        measured["launch_seconds"] = seconds / float(kernels)
    return [rows.row("hardware", case.key, rows.MEASURED, gpu=case.gpu, measured=measured, environment=bench.environment)]


def _workspaces(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """By kind of workspace what single convolutions allocate besides their outputs, beside what may be wanted, summed over the probes.

    Where one of several kinds may be taken, the nearest in size is.
    """
    from bsmodel.recording import probes
    from bsmodel.validation import rows

    measured = bench.child({"do": "workspaces"})
    sums: dict[str, dict[str, int]] = {}
    for probe in probes.probes():
        for direction, (kinds, others) in probes.wanted(probe, bench.gpu).items():
            taken = max(0, measured[probe.name][direction] - others)
            nearest = min((0, *kinds.values()), key=lambda wanted: abs(wanted - taken))
            for kind, wanted in kinds.items():
                found = sums.setdefault(kind, {"wanted_bytes": 0, "taken_bytes": 0, "probes": 0})
                found["wanted_bytes"] += wanted
                found["taken_bytes"] += taken if wanted == nearest else 0
                found["probes"] += 1
    return [rows.row("workspaces", case.key, rows.MEASURED, gpu=case.gpu, measured={"kinds": sums}, environment=bench.environment)]


def _capacities(options: argparse.Namespace, gpu: Gpu) -> list[int | None]:
    """The card's own capacity (None) and the smaller ones asked for; larger ones are named on stderr and left out."""
    from bsmodel.validation.running import say

    asked = options.capacity or [row.usable_bytes for row in defaults()]
    for capacity in asked:
        if capacity > gpu.usable_bytes:
            say(f"capacity {format_bytes(capacity)} is above the {format_bytes(gpu.usable_bytes)} of {gpu.id}: left out")
    smaller = sorted({capacity for capacity in asked if capacity < gpu.usable_bytes})
    return [*smaller] if options.capacity else [None, *smaller]


def _bench(options: argparse.Namespace) -> Bench:
    from bsmodel.validation import child, environment, running

    python = tuple(shlex.split(options.python or os.environ.get("BSMODEL_PYTHON", "")))
    deadline = time.monotonic() + 60 * options.minutes
    try:
        device = child.run({"do": "device"}, python, 120)
    except child.ChildFailedError as error:
        raise InvalidInputError(str(error).removeprefix("InvalidInputError: ")) from None
    gpu, known = environment.card(device)
    if options.gpu:
        given = Gpu.named(options.gpu)
        if given.compute_capability != device["compute_capability"]:
            raise InvalidInputError(f"{given.id} has compute capability {given.compute_capability}, the card here {device['compute_capability']}")
        gpu = given
    if not options.out.absolute().parent.is_dir():
        raise InvalidInputError(f"cannot write {str(options.out)!r}: no such folder")
    running.say(f"{device['name']}, as {gpu.id}{'' if known else ' (not in the catalogue: its own properties)'}, {format_bytes(device['memory_bytes'])}")
    surroundings = environment.environment(device, gpu, known)
    bench = running.Bench(options.out, gpu, surroundings, deadline, python, retry=options.retry, uuid=device.get("uuid"))
    bench.settings  # noqa: B018 - refused here, not in every row
    return bench
