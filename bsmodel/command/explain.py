# SPDX-License-Identifier: Apache-2.0
"""`bsmodel explain`: where the bytes go at the binding moment, or FLOPs and activations by module or operator."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bsmodel.command import arguments, pictures
from bsmodel.command.asked import foot, of_other_versions, together
from bsmodel.command.documents import CountedForm, ExplainDocument, Explained, Said
from bsmodel.command.given import leave_out
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Part, render, table
from bsmodel.command.wording import title, uncounted
from bsmodel.errors import InvalidInputError
from bsmodel.files import require_writable, write_whole
from bsmodel.hardware import Gpu
from bsmodel.memory import breakdown, footprint, on_devices, pickled, predict, snapshot
from bsmodel.pages import ITSELF
from bsmodel.studies import Recorded
from bsmodel.tape import ModuleRow, OperatorRow, Polynomial, Tape, by_module, by_operator, counted
from bsmodel.timing import memory_timeline, timeline
from bsmodel.units import format_bytes

DEFAULT_GPU = "a100-40gb"
_MOST_MODULES = 30
_DEPTH = 3  # of modules, as text
_COUNTS = "FLOPs and activations as fvcore counts them, a multiply-add as two"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel explain`."""
    arguments.add_model(parser, gpus=DEFAULT_GPU)
    arguments.add_recipe(parser)
    arguments.add_recording(parser)
    parser.add_argument("--batch", type=arguments.positive, required=True, metavar="N", help="micro-batch (needed)")
    parser.add_argument("--by", choices=("category", "module", "operator"), default="category", help="bytes, or FLOPs and activations (default: category)")
    parser.add_argument("--depth", type=arguments.positive, metavar="N", help="with --by module: how deep (default: 3, and in JSON every depth)")
    text = "write when what of a step runs, for ui.perfetto.dev or chrome://tracing; gzipped where the name ends in .gz (default: nowhere)"
    parser.add_argument("--trace", metavar="FILE", help=text)
    text = "write what the allocator of one GPU will do, for PyTorch's memory visualiser (default: nowhere)"
    parser.add_argument("--snapshot", metavar="FILE", help=text)
    text = "write memory over the step as torch.profiler does: .json or .json.gz sizes by category, .raw.json.gz events (default: nowhere)"
    parser.add_argument("--memory-timeline", metavar="FILE", help=text)
    parser.add_argument("--html", metavar="FILE", help="write the bytes as a page with charts (default: none)")


def run(options: argparse.Namespace) -> Answer:
    """Bytes by category and module on each GPU, or the counts of the first one's recording."""
    _require_effect(options)
    _require_page(options)
    asked = arguments.asked(options)
    gpus, notes = arguments.gpus_asked(options, asked, (Gpu.named(DEFAULT_GPU),))
    _require_one(options, gpus)
    asked, notes = arguments.saved(asked, options, gpus), [*notes, *of_other_versions(asked)]
    recordings = arguments.tapes_for(asked, options, gpus if options.by == "category" else gpus[:1])
    tapes = [on_devices(tape, options.devices) for tape in recordings]
    for name, content in _FILES.items():
        if path := getattr(options, name):
            write_whole(path, content(tapes[0], gpus[0], options.batch, path), _said(name))
    recorded = together(map(Recorded.of, tapes))
    known = {"command": "explain", "notes": tuple(notes), "workload": recorded, "batch": options.batch}
    head, last = title(recorded, f", batch {options.batch}"), [uncounted(recorded.uncounted), *foot(recorded, notes)]
    if options.by == "module":
        modules = tuple(row for row in by_module(tapes[0], options.batch) if options.depth is None or row.depth <= options.depth)
        return Answer(ExplainDocument(**known, modules=modules), _modules_text(head, tapes[0], modules, options.depth or _DEPTH, last))
    if options.by == "operator":
        operators = by_operator(tapes[0], options.batch)
        return Answer(ExplainDocument(**known, operators=operators), _operators_text(head, operators, last))
    found = tuple(_explained(tape, gpu, options.batch) for gpu, tape in zip(gpus, tapes, strict=True))
    if options.html:
        _draw(recorded, found, [*zip(tapes, gpus, strict=True)], options, notes)
    parts: list[Part] = [] if len(found) == 1 else [""]
    parts += [part for explained in found for part in _parts(explained, options.batch, alone=len(found) == 1)]
    said = _collectives(tapes, gpus, options.batch)
    document = ExplainDocument(**known, gpus=found, collectives=said)
    return Answer(document, render(head, *parts, *_spoken_text(said), *last))


def _require_effect(options: argparse.Namespace) -> None:
    """Raises `InvalidInputError` for an option that has no effect on what is asked."""
    if options.by != "module":
        leave_out(options, "modules are shown by --by module", ("depth",))
    if options.by != "category" and len(options.gpu or ()) > 1:
        raise InvalidInputError(f"--by {options.by} counts one recording, and {', '.join(options.gpu)} are asked about; give one --gpu")
    if not options.snapshot:
        leave_out(options, "explain tells the bytes that are requested, whatever room the card has", ("context", "headroom"))
    if options.devices < 2 or not (options.trace or options.memory_timeline or options.html):
        leave_out(options, "what connects nodes tells in the times of several devices: in --trace, --memory-timeline and --html", ("network",))


def _require_page(options: argparse.Namespace) -> None:
    """Raises `InvalidInputError`, before the work, for a page that cannot be drawn or written."""
    if options.html:
        if options.by != "category":
            raise InvalidInputError(f"--html draws bytes, not FLOPs; leave out --by {options.by}")
        pictures.require_drawable(options.html)


def _require_one(options: argparse.Namespace, gpus: Sequence[Gpu]) -> None:
    """Raises `InvalidInputError`, before the work, for a file of several cards, or one that cannot be written."""
    for name in _FILES:
        if path := getattr(options, name):
            flag = name.replace("_", "-")
            if len(gpus) > 1:
                raise InvalidInputError(f"--{flag} is of one GPU, and {', '.join(gpu.id for gpu in gpus)} are asked about; give one --gpu")
            if name == "memory_timeline" and not path.endswith(_FORMS):
                raise InvalidInputError(f"--{flag} is {path!r}; expected a name that ends in {', '.join(_FORMS[:-1])} or {_FORMS[-1]}, which says the form")
            require_writable(path, _said(name))


def _said(name: str) -> str:
    return f"the {name.replace('_', ' ')}"


def _trace(tape: Tape, gpu: Gpu, batch: int, path: str) -> bytes:
    return _as_json(timeline(tape, gpu, batch).chrome_trace(), path)


def _memory_timeline(tape: Tape, gpu: Gpu, batch: int, path: str) -> bytes:
    found = memory_timeline(tape, gpu, batch)
    return _as_json(found.raw() if path.endswith(_FORMS[-1]) else found.sizes(), path)


def _as_json(document: Any, path: str) -> bytes:
    content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return gzip.compress(content, compresslevel=6, mtime=0) if path.endswith(".gz") else content


def _snapshot(tape: Tape, gpu: Gpu, batch: int, path: str) -> bytes:
    return pickled(snapshot(tape, gpu, batch))


_FORMS = (".json", ".json.gz", ".raw.json.gz")  # of torch.profiler's export_memory_timeline
# Of one GPU, for tools of others.
_FILES: dict[str, Callable[[Tape, Gpu, int, str], bytes]] = {"trace": _trace, "snapshot": _snapshot, "memory_timeline": _memory_timeline}


def _draw(recorded: Recorded, found: Sequence[Explained], on: Sequence[tuple[Tape, Gpu]], options: argparse.Namespace, notes: Sequence[str]) -> None:
    """Write the page."""
    from bsmodel.command.explain_page import Course, page
    from bsmodel.command.page_tables import what_was_asked

    said = [uncounted(recorded.uncounted), *foot(recorded, tuple(notes))]
    courses = [Course.of(tape, gpu, options.batch) for tape, gpu in on]
    pictures.write(options.html, page(recorded, found, courses, what_was_asked(options), said))


def _explained(tape: Tape, gpu: Gpu, batch: int) -> Explained:
    form, shares, plain = footprint(tape, gpu=gpu), breakdown(tape, batch, gpu=gpu), counted(tape)
    return Explained(
        gpu=gpu.id,
        moment=str(form.binding(batch)),
        total_bytes=form(batch),
        by_category=shares.by_category,
        by_module=shares.by_module,
        closed_form=form,
        counted_form=CountedForm(states_bytes=plain.fixed, activation_bytes=plain.per_sample, pair_bytes=plain.per_pair),
        allocated_bytes=predict(tape, gpu, batch).allocated_bytes,
    )


def _collectives(tapes: Sequence[Tape], gpus: Sequence[Gpu], batch: int) -> tuple[Said, ...]:
    """What devices say to one another, once for all GPUs of which it is the same."""
    found: dict[tuple[Said, ...], list[str]] = {}
    for tape, gpu in zip(tapes, gpus, strict=True):
        found.setdefault(spoken(tape, batch), []).append(gpu.id)
    return tuple(replace(each, gpus=tuple(names)) for said, names in found.items() for each in said)


def spoken(tape: Tape, batch: int) -> tuple[Said, ...]:
    """What devices say to one another in a step, by phase and kind."""
    found: dict[tuple[str, str], list[int]] = {}
    for each in tape.collectives:
        found.setdefault((each.phase, each.kind), []).append(each.size(batch))
    return tuple(Said(phase=phase, kind=kind, count=len(sizes), total_bytes=sum(sizes)) for (phase, kind), sizes in found.items())


def _spoken_text(said: Sequence[Said]) -> list[Part]:
    if not said:
        return []
    several = len({each.gpus for each in said}) > 1
    rows = [[each.phase, each.kind, f"{each.count:,}", format_bytes(each.total_bytes), ", ".join(each.gpus)][: 5 if several else 4] for each in said]
    columns = [("said to the others", ""), ("", ""), ("times", "right"), ("bytes in all", "right"), *([("GPUs", "")] if several else [])]
    return [table(*columns, rows=rows), ""]


def _parts(found: Explained, batch: int, alone: bool) -> list[Part]:
    """Bytes at the binding moment by category, then by module, then both closed forms."""
    (columns, rows), (headings, modules) = category_cells(found.by_category), module_cells(found.by_module)
    moment = f"Binding moment: {found.moment}" if alone else f"{found.gpu}, binding moment: {found.moment}"
    return [
        moment,
        "",
        table(*columns, rows=rows, bars=[*found.by_category.values(), 0]),
        "",
        table(*headings, rows=modules, bars=[*_largest(found.by_module).values()]),
        "",
        _forms(found, batch),
        "",
    ]


def category_cells(held: Mapping[str, int]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Columns, and a line for each category, then their total."""
    total = sum(held.values())
    lines = [[name, format_bytes(size), f"{size:,}", f"{size / total:.1%}"] for name, size in held.items()]
    return [("category", ""), ("size", "right"), ("bytes", "right"), ("share", "right")], [*lines, ["total", format_bytes(total), f"{total:,}", "100.0%"]]


def module_cells(held: Mapping[str, int]) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Columns, and a line for each of the largest modules, then what the others hold."""
    total = sum(held.values())
    lines = [[name or ITSELF, format_bytes(size), f"{size / total:.1%}"] for name, size in _largest(held).items()]
    return [("module", ""), ("size", "right"), ("share", "right")], lines


def _largest(held: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the largest modules, and of all others together."""
    sizes = dict([*held.items()][:_MOST_MODULES])
    further = {f"{len(held) - len(sizes)} more": sum(held.values()) - sum(sizes.values())}
    return sizes | (further if len(held) > len(sizes) else {})


def _forms(found: Explained, batch: int) -> Part:
    """The counted closed form beside the traced one, each against the replay at this batch."""
    form = found.counted_form
    counted_form = Polynomial(form.states_bytes, form.activation_bytes, form.pair_bytes)
    rows = []
    for name, formula, size in (
        ("counted", f"M(b) = {counted_form}", counted_form(batch)),
        ("traced", str(found.closed_form), found.total_bytes),
    ):
        rows.append([name, format_bytes(size), f"{size / found.allocated_bytes - 1:+.2%}", formula])
    return table(("closed form", ""), ("at this batch", "right"), ("against the replay", "right"), ("", ""), rows=rows)


def _modules_text(head: str, tape: Tape, rows: Sequence[ModuleRow], depth: int, last: Sequence[str]) -> str:
    """The tree of modules down to `depth`."""
    cells = [
        [
            "  " * row.depth + (row.module.rpartition(".")[2] or tape.name),
            f"{row.parameters / 1e6:,.3f} M",
            f"{row.flops / 1e9:,.3f} G",
            f"{row.activations / 1e6:,.3f} M",
            format_bytes(row.saved_bytes),
        ]
        for row in rows
        if row.depth <= depth
    ]
    columns = (("module", ""), *((heading, "right") for heading in ("parameters", "forward FLOPs", "activations", "saved for backward")))
    counts = f"{_COUNTS}; activations are outputs of matmuls and convolutions."
    unknown = f"Operators without a formula: {'; '.join(tape.uncounted_operators) or 'none'}."
    return render(head, "", table(*columns, rows=cells), "", counts, unknown, *last)


def _operators_text(head: str, rows: Sequence[OperatorRow], last: Sequence[str]) -> str:
    cells = [
        [
            row.operator,
            f"{row.calls:,}",
            "-" if row.flops is None else f"{row.flops / 1e9:,.3f} G",
            "-" if row.activations is None else f"{row.activations / 1e6:,.3f} M",
            format_bytes(row.moved_bytes),
        ]
        for row in rows
    ]
    columns = (("operator", ""), *((heading, "right") for heading in ("calls", "forward FLOPs", "activations", "read and written")))
    counts = f"{_COUNTS}; - where it has no formula."
    return render(head, "", table(*columns, rows=cells), "", counts, *last)
