# SPDX-License-Identifier: Apache-2.0
"""`bsmodel plan --seq-len N:M`: the largest batch and throughput by length, and the longest context; by side of images; batches of real lengths."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from bsmodel.command import arguments, pictures
from bsmodel.command.asked import foot, together
from bsmodel.command.documents import LengthsDocument, PaddedDocument
from bsmodel.command.given import leave_out
from bsmodel.command.priced import OFFERS
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, Part, render, table
from bsmodel.command.watching import watching
from bsmodel.command.wording import title
from bsmodel.errors import InvalidInputError
from bsmodel.files import require_writable
from bsmodel.hardware import Gpu
from bsmodel.studies import (
    ByLength,
    LengthRow,
    PaddedRow,
    Recorded,
    by_length,
    doublings,
    for_card,
    lengths,
    padded,
    padded_to_most,
    pool,
    require_range,
    sides,
    whole_steps,
)
from bsmodel.tape import STEP, Lengths, is_tape, load_lengths, require_agreement, require_same_kernels, save_lengths
from bsmodel.units import whole
from bsmodel.workloads import Source

LONG = ("seq_len", "image_size")  # the options of which a range may be given
_DIGITS = re.compile("[0-9]{1,18}")  # of lengths that anybody has
_OF_A_RUN = ("target_batch", "samples", "epochs", "base_lr", "base_batch", "price", *OFFERS, "network")


class _Asked(NamedTuple):
    """What is long, and the lengths that are asked about."""

    option: str
    wanted: list[int]


class _Found(NamedTuple):
    """The recordings for each card that is asked about, the cards, and what is to be said of them."""

    lengths: list[Lengths]
    gpus: list[Gpu]
    notes: tuple[str, ...]


def answer(options: argparse.Namespace) -> Answer:
    """The table; raises `InvalidInputError` for what has one length only: a recording of one, a target batch, several devices."""
    ranges = [name for name in LONG if isinstance(getattr(options, name), tuple)]
    if len(ranges) > 1:
        raise InvalidInputError("--seq-len and --image-size both give a range; give one, and one length of the other")
    (option,) = ranges
    _require_table(options, option)
    low, high, *steps = getattr(options, option)
    require_range(option, low, high, *steps)
    asked = _Asked(option, [*range(low, high + 1, steps[0])] if steps else doublings(low, high))
    with _hands(options) as executor:
        found = _found(options, asked, executor)
        made = by_length(found.lengths, found.gpus, asked.wanted, found.notes, executor)
    recorded = together(made.recorded)
    reached = {name: getattr(made, name) for name in ("longest", "limits", "limit")}
    document = LengthsDocument(command="plan", notes=made.notes, workload=recorded, option=option, rows=made.rows, **reached)
    if options.html:
        _draw(recorded, made, found.lengths, options.html)
    parts: list[Part] = [title(recorded), "", *_tables(made), "", *foot(recorded, made.notes)]
    return Answer(document, render(*parts), fits=any(made.longest.values()))


def _draw(recorded: Recorded, made: ByLength, lengths: Sequence[Lengths], path: str) -> None:
    """Write the page."""
    from bsmodel.command.lengths_page import page

    pictures.write(path, page(recorded, made, lengths, (batch_cells(made), speed_cells(made)), foot(recorded, made.notes)))


def of_a_file(options: argparse.Namespace) -> Answer:
    """What batches of samples of the lengths in a file take; raises `InvalidInputError` as `answer` does, and for a file that is none."""
    if options.seq_len is not None:
        raise InvalidInputError("--lengths and --seq-len both say how long samples are; give one")
    _require_table(options, "seq_len")
    known = _mean_and_longest(options.lengths)
    tokens = [] if known else _read(Path(options.lengths))
    with _hands(options) as executor:
        found = _found(options, _Asked("seq_len", [STEP, whole_steps(known[1] if known else max(tokens))]), executor)
    made = padded_to_most(found.lengths, found.gpus, *known, found.notes) if known else padded(found.lengths, found.gpus, tokens, found.notes)
    recorded = together(made.recorded)
    document = PaddedDocument(
        command="plan", notes=made.notes, workload=recorded, gpus=made.rows, samples=made.samples, mean_len=made.mean_len, longest=made.longest
    )
    samples, to = ("samples", "the longest of all") if made.samples is None else (f"{made.samples:,} samples", "its longest")
    said = f"{samples} of {made.mean_len:,.0f} tokens on average, {made.longest:,} at most, each batch padded to {to}, in steps of {STEP}"
    right = ("largest", "likely", "padded to", "useful", "useful tokens per s")
    columns = (("GPU", ""), *((heading, "right") for heading in right))
    shown = table(*columns, rows=[_padded_cells(row) for row in made.rows])
    return Answer(document, render(title(recorded), "", said, "", shown, "", *foot(recorded, made.notes)), fits=any(row.largest_batch for row in made.rows))


def _require_table(options: argparse.Namespace, option: str) -> None:
    """Raises `InvalidInputError` for an option that is of a run, whose samples have one length."""
    several = ("devices",) if options.devices > 1 else ()
    leave_out(options, f"a run is planned of samples of one length, by --{option.replace('_', '-')} N", (*_OF_A_RUN, *several))


@contextlib.contextmanager
def _hands(options: argparse.Namespace) -> Iterator[Executor | None]:
    """Who records, and answers for many lengths: other processes, but where all is in a file."""
    if is_tape(options.model):
        yield None
        return
    executor = pool(filter(None, [Source.of(options.model).library]))
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _found(options: argparse.Namespace, asked: _Asked, executor: Executor | None) -> _Found:
    """The recordings, of the model that is asked about or in a file, written where `--save` says."""
    setattr(options, asked.option, None)
    found = _of_recordings(options, asked) if is_tape(options.model) else _of_model(options, asked, executor)
    if options.save:
        save_lengths({each.first.gpu.kernel_family: each for each in found.lengths}.values(), options.save)
    return found


def _of_model(options: argparse.Namespace, asked: _Asked, executor: Executor | None) -> _Found:
    if options.save:
        require_writable(options.save, "the tape")  # not found out after the work
    source = arguments.asked(options)
    assert isinstance(source, Source), "files of recordings are told apart before"
    gpus, notes = arguments.gpus_asked(options, source)
    changes = arguments.changes_of(source, options)
    with watching("recordings") as watch:
        if asked.option == "image_size":
            return _Found(sides(source, changes, gpus, asked.wanted, options.cache, watch, executor), gpus, tuple(notes))
        span = asked.wanted[0], asked.wanted[-1]
        return _Found(lengths(source, changes, gpus, span, options.cache, watch, executor), gpus, tuple(notes))


def _of_recordings(options: argparse.Namespace, asked: _Asked) -> _Found:
    several = load_lengths(options.model)
    if not several or several[0].option != asked.option:
        raise InvalidInputError(f"{options.model} holds no recordings by {asked.option.replace('_', '-')}; name the model to ask about several")
    firsts = tuple(each.first for each in several)
    for tape in firsts:
        require_agreement(tape, arguments.changes(options), {name: value for name in arguments.SHAPE if (value := getattr(options, name)) is not None})
    gpus, notes = arguments.gpus_asked(options, firsts)
    by_family = {each.first.gpu.kernel_family: each for each in several}
    for gpu in gpus:
        require_same_kernels(for_card(firsts, gpu), gpu)
    return _Found([by_family[gpu.kernel_family] for gpu in gpus], gpus, tuple(notes))


def _mean_and_longest(text: str) -> tuple[int, int] | None:
    """`MEAN:LONGEST`, where that is no file."""
    parts = text.split(":")
    if Path(text).exists() or len(parts) != 2 or not all(map(_DIGITS.fullmatch, parts)):
        return None
    mean, longest = (whole("lengths", int(part)) for part in parts)
    if mean > longest:
        raise InvalidInputError(f"lengths are {mean} on average and {longest} at most; expected the mean first")
    return mean, longest


def _read(path: Path) -> list[int]:
    """Whole numbers, one a line; lines without any are passed over."""
    try:
        lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"cannot read the lengths {str(path)!r}: {error}") from None
    if not lines:
        raise InvalidInputError(f"the lengths {str(path)!r} are none; expected one for each sample, in tokens")
    return [whole(f"{path.name}, line {number}", int(line) if _DIGITS.fullmatch(line) else line) for number, line in lines]


def _padded_cells(row: PaddedRow) -> list[Cell]:
    share = "-" if row.useful is None else f"{row.useful:.0%}"
    speed = "-" if row.useful_tokens_per_s is None else f"{row.useful_tokens_per_s:,.0f}"
    return [row.gpu, f"{row.largest_batch:,}", f"{row.likely_batch:,}", f"{row.padded_len:,}", share, speed]


def _tables(made: ByLength) -> list[Part]:
    """The largest batch by length, a column for each GPU, with the longest sample that trains alone; and how fast that is."""
    (columns, batches), (_, speeds) = batch_cells(made), speed_cells(made)
    speed = "Samples" if made.option == "image_size" else "Tokens"
    return ["Largest batch", table(*columns, rows=batches), "", f"{speed} a second at that batch", table(*columns, rows=speeds)]


def batch_cells(made: ByLength) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Columns, and a line for each length: the largest batch on each GPU; last the longest sample that trains alone."""
    columns, batches = _cells(made, _batch)
    name = "largest, alone" if made.option == "image_size" else "longest, alone"
    return columns, [*batches, [name, *(_longest(made, gpu) for gpu in made.longest)]]


def speed_cells(made: ByLength) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Columns, and a line for each length: tokens a second on each GPU, of images samples."""
    return _cells(made, _speed)


def _cells(made: ByLength, of: Callable[[LengthRow], str]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    unit = "pixels a side" if made.option == "image_size" else "tokens a sample"
    lengths = list(dict.fromkeys(row.length for row in made.rows))
    rows = {(row.gpu, row.length): row for row in made.rows}
    columns = [(unit, "right"), *((name, "right") for name in made.longest)]
    return columns, [[f"{length:,}", *(of(rows[name, length]) for name in made.longest)] for length in lengths]


def _batch(row: LengthRow) -> str:
    likely = f" (likely {row.likely_batch:,})" if row.likely_batch != row.largest_batch else ""
    return f"{row.largest_batch:,}{likely}"


def _speed(row: LengthRow) -> str:
    if row.samples_per_s is None:
        return "-"
    return f"{row.samples_per_s:,.1f}" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"


def _longest(made: ByLength, gpu: str) -> str:
    length = made.longest[gpu]
    return f"{length:,} or more" if length == made.limits[gpu] else f"{length:,}" if length else "none"
