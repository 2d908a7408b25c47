# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel plan --seq-len N:M`: the largest batch, the size of a step and throughput against the length, for every GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsmodel.command.page_tables import written
from bsmodel.command.terminal import Cell
from bsmodel.command.wording import title
from bsmodel.pages import Curve, Drawing, Reach, Section, Table, document, head, of_page, signed
from bsmodel.studies import ByLength, LengthRow, Recorded
from bsmodel.tape import Lengths

Lines = tuple[list[tuple[str, str]], list[list[Cell]]]  # columns, and lines


def page(recorded: Recorded, made: ByLength, lengths: Sequence[Lengths], tables: tuple[Lines, Lines], said: Sequence[str]) -> str:
    """The answers as one HTML page; `tables` are those of the text, of batches and of speeds, and `said` what it says below them."""
    of_images = made.option == "image_size"
    unit, sample = ("pixels", "pixels a side of an image") if of_images else ("tokens", "tokens a sample")
    top = head(("What fits", _findings(made)), ("What was asked", [("Model", title(recorded)), ("Lengths", _asked(made))]), said)
    batches = written("batches", "The largest batch that surely fits, and the one that likely does where that is larger.", *tables[0])
    speeds = written("speeds", f"{'Samples' if of_images else 'Tokens'} a second at the largest batch that surely fits.", *tables[1])
    parts = [_batches(made, _recorded(lengths), (sample, unit, 2 if of_images else 1), batches), _figures(made, sample, unit, speeds)]
    return document(f"Lengths of {recorded.name}", top, parts)


def _size(row: LengthRow) -> int:
    """Tokens of a sample, or pixels."""
    return row.seq_len or (row.image_size or 0) ** 2


def _asked(made: ByLength) -> str:
    return ", ".join(dict.fromkeys(f"{row.length:,}" for row in made.rows))


def _findings(made: ByLength) -> list[str]:
    """A sentence for each GPU: the largest batches of the shortest and the longest samples that fit, and how long one alone may be."""
    unit = "pixels a side" if made.option == "image_size" else "tokens"
    found = []
    for gpu, longest in made.longest.items():
        rows = [row for row in made.rows if row.gpu == gpu and row.largest_batch]
        ends = dict.fromkeys((rows[0], rows[-1])) if rows else {}
        fits = " and ".join(f"{row.largest_batch:,} samples of {row.length:,} {unit}" for row in ends)
        alone = f"one alone may have {longest:,} {unit}{' or more' if longest == made.limits[gpu] else ''}" if longest else "not one sample fits, however short"
        found.append(f"{gpu}: {f'{fits} surely fit; ' if fits else ''}{alone}.")
    return found


def _recorded(lengths: Sequence[Lengths]) -> list[int]:
    """The lengths that were recorded: those that the polynomials go through, and those that check how far these hold."""
    return sorted({length for each in lengths for piece in each.pieces for length in (*piece.lengths, piece.most)})


def _curves(made: ByLength, of: Callable[[LengthRow], float | None]) -> tuple[Curve, ...]:
    """A curve for each GPU, of the lengths at which a sample fits."""
    curves = []
    for gpu in made.longest:
        rows = [(row, value) for row in made.rows if row.gpu == gpu and row.largest_batch and (value := of(row)) is not None]
        reached = [Reach(row.length, value, max(value, row.likely_batch), row.largest_batch * _size(row)) for row, value in rows]
        curves.append(Curve(gpu, tuple(reached)))
    return tuple(curves)


def _batches(made: ByLength, recorded: Sequence[int], axis: tuple[str, str, int], table: Table) -> Section:
    from bsmodel.pages import largest_by_length

    name, curves = "Largest batch", _curves(made, lambda row: row.largest_batch)
    without = [curve.name for curve in curves if not curve.reached]
    said = [f"Not drawn, where no sample of these lengths fits: {', '.join(without)}."] if without else []
    if len(without) == len(curves):
        return Section(name, ("There is no chart: no sample of these lengths fits.",), table=table)
    sizes = list(dict.fromkeys(row.length for row in made.rows))
    caption = f"Lines are what surely fits, up to where not one sample does; bands go up to what likely fits. Dotted: equally many {axis[1]} a step."
    spec = largest_by_length(curves, recorded, sizes, axis, of_page(0))
    return Section(
        name,
        tuple(said),
        (Drawing("batches", "Largest batch against the length", f"{caption} Strokes at the foot: recorded lengths.", spec, signed(curves)),),
        table,
    )


def _figures(made: ByLength, sample: str, unit: str, table: Table) -> Section:
    """The size of a step, and throughput."""
    from bsmodel.pages import by_length

    sizes = list(dict.fromkeys(row.length for row in made.rows))
    speed = "samples" if made.option == "image_size" else unit
    figures: dict[str, tuple[str, Callable[[LengthRow], float | None]]] = {
        "sizes": (f"{unit} a step", lambda row: row.largest_batch * _size(row)),
        "speeds": (f"{speed} a second", lambda row: row.samples_per_s if speed == "samples" else row.tokens_per_s),
    }
    drawings = []
    for name, (axis, of) in figures.items():
        curves = _curves(made, of)
        if any(curve.reached for curve in curves):
            spec = by_length(curves, sizes, (sample, axis), of_page(0))
            drawings.append(Drawing(name, f"{axis[0].upper()}{axis[1:]}", "At the largest batch that surely fits.", spec, signed(curves)))
    return Section("A step at that batch", () if drawings else ("There is no chart: no sample of these lengths fits.",), tuple(drawings), table)
