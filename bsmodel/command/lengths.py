# SPDX-License-Identifier: Apache-2.0
"""`bsmodel plan --seq-len N:M`: the largest batch and throughput by length, and the longest context."""

from __future__ import annotations

import argparse

from bsmodel.command import arguments
from bsmodel.command.asked import foot, together
from bsmodel.command.documents import LengthsDocument
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, Part, render, table
from bsmodel.command.watching import watching
from bsmodel.command.wording import title
from bsmodel.errors import InvalidInputError
from bsmodel.studies import ByLength, LengthRow, by_length
from bsmodel.workloads import Source

_OF_A_RUN = ("target_batch", "samples", "epochs", "base_lr", "base_batch", "save")


def answer(options: argparse.Namespace) -> Answer:
    """The table; raises `InvalidInputError` for what has one length only: a saved recording, a target batch, several devices."""
    low, high = options.seq_len
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
    with watching("recordings") as watch, arguments.hands([found]) as executor:
        made = by_length(found, arguments.changes_of(found, options), gpus, low, high, options.cache, watch, executor)
    recorded = together(made.recorded)
    notes = [*notes, *made.notes]
    document = LengthsDocument(command="plan", notes=tuple(notes), workload=recorded, rows=made.rows, longest=made.longest, limit=made.limit)
    parts: list[Part] = [title(recorded), "", *_tables(made), "", *foot(recorded, notes)]
    return Answer(document, render(*parts), fits=any(made.longest.values()))


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
