# SPDX-License-Identifier: Apache-2.0
"""A second axis: recordings of one step at several lengths or sides of images, and the polynomials in the length that go through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from bsmodel.errors import InvalidInputError, UntraceableError
from bsmodel.tape.operations import COEFFICIENTS, Operations
from bsmodel.tape.polynomials import NOTHING, Polynomial
from bsmodel.tape.tape import Collective, Tape, Term, Workspace
from bsmodel.units import whole

SIZES = ("fixed_bytes", "per_sample_bytes", "per_pair_bytes")
DEGREES = {"seq_len": 2, "image_size": 4}  # of each size in the option: attention compares tokens with one another, and images have as many as pixels
_SAME = ("blocks", "reached", "streams", "lent", "waits", "operators", "modules", "phases", "categories", "gpu", "recipe")
_WORDS = ("operators", "modules", "phases", "kinds", "dtypes")


STEP = 128  # tokens, which all lengths are multiples of: kernels of attention round up to as many
MOST_PIECES = 6  # a step that is another one from length to length is answered for as far as these reach


@dataclass(frozen=True)
class Piece:
    """A step between two lengths at which it does the same: `at(s)` is an ordinary tape for every multiple of `step` from `lengths[0]` to `most`.

    Every coefficient c of a size `f + p b` (and of what pairs samples) is a polynomial in the length s: for a text of the second degree, what is there
    anyway, for every token, and for every token with every other; for the side of an image of the fourth. As many recordings as it has coefficients, at
    lengths `step` apart, give it in whole numbers, `c(s) = sum_j binomial(k, j) D^j c` with `k = (s - s0) / step` and Newton's forward differences
    `D^j`; others check it (`piece_from`). A piece of one recording is that one.
    """

    option: str
    tapes: tuple[Tape, ...]
    lengths: tuple[int, ...]
    most: int
    step: int
    ends: str = ""  # why it goes no farther, where more was asked for

    @property
    def known(self) -> range:
        """The lengths that it tells."""
        return range(self.lengths[0], self.most + 1, self.step)

    def at(self, length: int) -> Tape:
        """The tape at a length, which is not checked."""
        first = self.tapes[0]
        sizes = {name: self._through(length, [getattr(tape, name) for tape in self.tapes]) for name in SIZES}
        operations = [self._through(length, [getattr(tape.operations, name) for tape in self.tapes]) for name in COEFFICIENTS]
        worst = tuple(tape.worst for tape in self.tapes if tape.worst is not None)
        return replace(
            first,
            **sizes,
            terms={number: self._term(length, number) for number in first.terms},
            workspaces={number: self._workspace(length, number) for number in first.workspaces},
            operations=Operations(*(getattr(first.operations, name) for name in _WORDS), *operations),
            collectives=self._collectives(length),
            tokens_per_sample=int(self._through(length, [np.array(tape.tokens_per_sample) for tape in self.tapes])),
            options={**first.options, self.option: length},
            worst=replace(self, tapes=worst).at(length) if worst else None,
        )

    def _term(self, length: int, number: int) -> Term:
        return Term(self.tapes[0].terms[number].formula, self._polynomials(length, [tape.terms[number].parameters for tape in self.tapes]))

    def _workspace(self, length: int, number: int) -> Workspace:
        return Workspace(self.tapes[0].workspaces[number].kind, *self._polynomials(length, [(tape.workspaces[number].excess,) for tape in self.tapes]))

    def _collectives(self, length: int) -> tuple[Collective, ...]:
        sizes = self._polynomials(length, [[each.size for each in tape.collectives] for tape in self.tapes])
        return tuple(each._replace(size=size) for each, size in zip(self.tapes[0].collectives, sizes, strict=True))

    def _polynomials(self, length: int, of: Sequence[Sequence[Polynomial]]) -> tuple[Polynomial, ...]:
        rows = self._through(length, [np.array([(each.fixed, each.per_sample, each.per_pair) for each in several], np.int64) for several in of])
        return tuple(Polynomial(*map(int, row)) for row in rows.reshape(-1, 3))

    def _through(self, length: int, values: list[Any]) -> Any:
        """The polynomial through values at the recorded lengths, numbers or arrays of them, at another."""
        k = (length - self.lengths[0]) // self.step
        found, chosen = values[0], 1
        for j in range(1, len(values)):
            values = [high - low for low, high in pairwise(values)]
            chosen = chosen * (k - j + 1) // j
            found = found + chosen * values[0]
        return found


@dataclass(frozen=True)
class Lengths:
    """A step at many lengths, from the shortest recorded to `most`: `at(s)` is an ordinary tape for each of those that are `known`.

    It goes from piece to piece where the step does something else from some length on, as that of a model does whose attention looks back through a window.
    """

    pieces: tuple[Piece, ...]

    @property
    def option(self) -> str:
        """What is long: "seq_len", in tokens, or "image_size", in pixels a side."""
        return self.pieces[0].option

    @property
    def known(self) -> list[int]:
        """The lengths that it tells, in order."""
        return [length for piece in self.pieces for length in piece.known]

    @property
    def most(self) -> int:
        """The longest length that the recordings are known to hold at."""
        return self.pieces[-1].most

    @property
    def ends(self) -> str:
        """Why they hold at no longer one, where more was asked for."""
        return self.pieces[-1].ends

    @property
    def first(self) -> Tape:
        """The recording at the shortest length."""
        return self.pieces[0].tapes[0]

    def at(self, length: int) -> Tape:
        """The recording at a length; `InvalidInputError` for one that is not known, with the nearest that is."""
        name, known = self.option.replace("_", "-"), self.known
        length = whole(name, length, known[0], known[-1])
        piece = next(piece for piece in self.pieces if length <= piece.most)
        if length not in piece.known:
            nearest = min(known, key=lambda other: abs(other - length))
            raise InvalidInputError(f"{name} is {length}; expected {_said(piece)}, such as {nearest}")
        return piece.at(length)


def _said(piece: Piece) -> str:
    return f"a multiple of {piece.step}" if len(piece.known) > 1 else "one that was recorded"


def piece_from(recorded: Callable[[int], Tape], start: int, longest: int, step: int, option: str = "seq_len") -> Piece:
    """The piece that begins at a length, as far as it holds, at most up to `longest`; all of them multiples of `step`.

    As many recordings as there are coefficients give it, and one at `longest` checks it; where that differs, further ones find the last length at which
    none does. Where not even the next one agrees, the piece is the first recording alone. Raises what recording that one raises.
    """
    first, lengths = recorded(start), tuple(range(start, start + (DEGREES[option] + 1) * step, step))
    alone = Piece(option, (first,), (start,), start, step)
    if lengths[-1] + step > longest:
        return alone
    try:
        tapes = (first, *map(recorded, lengths[1:]))
        for tape, length in zip(tapes[1:], lengths[1:], strict=True):
            require_same_step(first, tape, start, length)
    except UntraceableError as error:
        return replace(alone, ends=str(error))
    found = Piece(option, tapes, lengths, longest, step)

    def disagrees(length: int) -> str:
        try:
            require_through(found, recorded(length), length)
        except UntraceableError as error:
            return str(error)
        return ""

    ends = disagrees(longest)
    low, high = lengths[-1], longest
    while ends and high - low > step:
        middle = (low + high) // (2 * step) * step
        reason = disagrees(middle)
        low, high, ends = (low, middle, reason) if reason else (middle, high, ends)
    return found if not ends else replace(found, most=low, ends=ends) if low > lengths[-1] else replace(alone, ends=ends)


def pieces_from(piece: Callable[[int], Piece], start: int, longest: int) -> Lengths:
    """All lengths from `start` on, up to `longest` or as far as a few pieces reach; `piece` gives the one that begins at a length."""
    pieces = [piece(start)]
    while pieces[-1].most < longest and len(pieces) < MOST_PIECES:
        pieces.append(piece(pieces[-1].most + pieces[-1].step))
    return Lengths(tuple(pieces))


def require_same_step(first: Tape, other: Tape, length: int, another: int) -> None:
    """Raises `UntraceableError` where two recordings do not allocate and compute the same in the same order."""
    same = all(getattr(first, name) == getattr(other, name) for name in _SAME)
    kinds = [[(number, term.formula) for number, term in tape.terms.items()] for tape in (first, other)]
    spaces = [[(number, space.kind) for number, space in tape.workspaces.items()] for tape in (first, other)]
    said = [[each._replace(size=NOTHING) for each in tape.collectives] for tape in (first, other)]
    words = all(getattr(first.operations, name) == getattr(other.operations, name) for name in _WORDS)
    if not (same and words and kinds[0] == kinds[1] and spaces[0] == spaces[1] and said[0] == said[1]):
        operator = next((f"{a} and {b}" for a, b in zip(first.operators, other.operators, strict=False) if a != b), "their number")
        raise UntraceableError(f"{first.name} takes another path at length {another} than at length {length} ({operator}); ask for one at a time")


def require_through(piece: Piece, tape: Tape, length: int) -> None:
    """Raises `UntraceableError` where the step of a piece is not what was recorded at another length, or its sizes and its work not what polynomials say."""
    require_same_step(piece.tapes[0], tape, piece.lengths[0], length)
    told = piece.at(length)
    at = ", ".join(map(str, (*piece.lengths, length)))
    for name in SIZES:
        other = np.flatnonzero(getattr(told, name) != getattr(tape, name))
        if other.size:
            where = f"{tape.operators[other[0]]} in module {tape.modules[other[0]] or 'model'}"
            values = ", ".join(f"{int(getattr(each, name)[other[0]]):,}" for each in (*piece.tapes, tape))
            raise UntraceableError(f"{where} takes {values} bytes at lengths {at}: no polynomial of degree {DEGREES[piece.option]}; ask for one at a time")
    if piece.tapes[0].worst is not None and tape.worst is not None:
        require_through(replace(piece, tapes=tuple(each.worst for each in piece.tapes if each.worst is not None)), tape.worst, length)
    work = all(np.allclose(getattr(told.operations, name), getattr(tape.operations, name), rtol=1e-9) for name in COEFFICIENTS)
    if not work or told.collectives != tape.collectives or told.tokens_per_sample != tape.tokens_per_sample:
        raise UntraceableError(f"what {tape.name} computes or sends is no polynomial in the length, by lengths {at}; ask for one at a time")
    if told.terms != tape.terms or told.workspaces != tape.workspaces:
        raise UntraceableError(f"buffers inside of kernels of {tape.name} are no polynomials in the length, by lengths {at}; ask for one at a time")
