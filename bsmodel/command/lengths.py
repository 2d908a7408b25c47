# SPDX-License-Identifier: Apache-2.0
"""`bsmodel plan --seq-len N:M`: the largest batch and throughput by length, and the longest context; `--lengths FILE`: batches of real lengths."""

from __future__ import annotations

import argparse
from pathlib import Path

from bsmodel.command import arguments
from bsmodel.command.asked import foot, together
from bsmodel.command.documents import LengthsDocument, PaddedDocument
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, Part, render, table
from bsmodel.command.watching import watching
from bsmodel.command.wording import title
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.studies import ByLength, LengthRow, PaddedRow, by_length, padded
from bsmodel.units import whole
from bsmodel.workloads import Source

_OF_A_RUN = ("target_batch", "samples", "epochs", "base_lr", "base_batch", "save")


def answer(options: argparse.Namespace) -> Answer:
    """The table; raises `InvalidInputError` for what has one length only: a saved recording, a target batch, several devices."""
    low, high = options.seq_len
    found, gpus, notes = _asked(options)
    with watching("recordings") as watch, arguments.hands([found]) as executor:
        made = by_length(found, arguments.changes_of(found, options), gpus, low, high, options.cache, watch, executor)
    recorded = together(made.recorded)
    notes = (*notes, *made.notes)
    document = LengthsDocument(command="plan", notes=notes, workload=recorded, rows=made.rows, longest=made.longest, limit=made.limit)
    parts: list[Part] = [title(recorded), "", *_tables(made), "", *foot(recorded, notes)]
    return Answer(document, render(*parts), fits=any(made.longest.values()))


def of_a_file(options: argparse.Namespace) -> Answer:
    """What batches of samples of the lengths in a file take; raises `InvalidInputError` as `answer` does, and for a file that is none."""
    if options.seq_len is not None:
        raise InvalidInputError("--lengths and --seq-len both say how long samples are; give one")
    found, gpus, notes = _asked(options)
    with watching("recordings") as watch, arguments.hands([found]) as executor:
        made = padded(found, arguments.changes_of(found, options), gpus, _read(Path(options.lengths)), options.cache, watch, executor)
    recorded = together(made.recorded)
    notes = (*notes, *made.notes)
    document = PaddedDocument(
        command="plan", notes=notes, workload=recorded, gpus=made.rows, samples=made.samples, mean_len=made.mean_len, longest=made.longest
    )
    said = f"{made.samples:,} samples of {made.mean_len:,.0f} tokens on average, {made.longest:,} at most, each batch padded to its longest"
    right = ("largest", "likely", "padded to", "useful", "useful tokens per s")
    columns = (("GPU", ""), *((heading, "right") for heading in right))
    shown = table(*columns, rows=[_padded_cells(row) for row in made.rows])
    return Answer(document, render(title(recorded), "", said, "", shown, "", *foot(recorded, notes)), fits=any(row.largest_batch for row in made.rows))


def _asked(options: argparse.Namespace) -> tuple[Source, list[Gpu], tuple[str, ...]]:
    """The model without a length, the cards and what is to be said of them."""
    options.seq_len = None
    for name in _OF_A_RUN:
        if getattr(options, name) is not None:
            raise InvalidInputError(f"--{name.replace('_', '-')} goes with one length; give --seq-len N")
    if options.devices > 1:
        raise InvalidInputError("--devices goes with one length; give --seq-len N")
    found = arguments.asked(options)
    if not isinstance(found, Source):
        raise InvalidInputError(f"{options.model} holds recordings of one length; name the model to ask about several")
    gpus, notes = arguments.gpus_asked(options, found)
    return found, gpus, tuple(notes)


def _read(path: Path) -> list[int]:
    """Whole numbers, one a line."""
    try:
        lines = path.read_text().split()
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"cannot read the lengths {str(path)!r}: {error}") from None
    return [whole(f"{path.name}, line {number}", int(line) if line.isdigit() else line) for number, line in enumerate(lines, 1)]


def _padded_cells(row: PaddedRow) -> list[Cell]:
    share = "-" if row.useful is None else f"{row.useful:.0%}"
    speed = "-" if row.useful_tokens_per_s is None else f"{row.useful_tokens_per_s:,.0f}"
    return [row.gpu, f"{row.largest_batch:,}", f"{row.likely_batch:,}", f"{row.padded_len:,}", share, speed]


def _tables(made: ByLength) -> list[Part]:
    """The largest batch by length, a column for each GPU, with the longest sample that trains alone; and tokens a second."""
    names, lengths = list(made.longest), list(dict.fromkeys(row.seq_len for row in made.rows))
    of = {(row.gpu, row.seq_len): row for row in made.rows}
    columns = (("tokens a sample", "right"), *((name, "right") for name in names))
    batches: list[list[Cell]] = [[f"{length:,}", *(_batch(of[name, length]) for name in names)] for length in lengths]
    speeds: list[list[Cell]] = [[f"{length:,}", *(_speed(of[name, length]) for name in names)] for length in lengths]
    longest: list[Cell] = ["longest, alone", *(_longest(made, name) for name in names)]
    return ["Largest batch", table(*columns, rows=[*batches, longest]), "", "Tokens a second at that batch", table(*columns, rows=speeds)]


def _batch(row: LengthRow) -> str:
    likely = f" (likely {row.likely_batch:,})" if row.likely_batch != row.largest_batch else ""
    return f"{row.largest_batch:,}{likely}"


def _speed(row: LengthRow) -> str:
    return "-" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"


def _longest(made: ByLength, gpu: str) -> str:
    tokens = made.longest[gpu]
    return f"{tokens:,} or more" if tokens == made.limit else f"{tokens:,}" if tokens else "none"
