# SPDX-License-Identifier: Apache-2.0
"""A second axis: recordings of one step at several lengths, and the polynomials in the length that go through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from bsmodel.errors import InvalidInputError, UntraceableError
from bsmodel.tape.operations import COEFFICIENTS, Operations
from bsmodel.tape.polynomials import Polynomial
from bsmodel.tape.tape import Tape, Term, Workspace
from bsmodel.units import whole

SIZES = ("fixed_bytes", "per_sample_bytes", "per_pair_bytes")
DEGREES = {"seq_len": 2, "image_size": 4}  # of each size in the option: attention compares tokens with one another, and images have as many as pixels
_SAME = ("blocks", "operators", "modules", "phases", "categories", "gpu", "recipe")
_WORDS = ("operators", "modules", "phases", "kinds", "dtypes")


@dataclass(frozen=True)
class Lengths:
    """A step at any length that is a multiple of `step`, up to `most`: `at(s)` is an ordinary tape.

    Every coefficient c of a size `f + p b` (and of what pairs samples) is a polynomial in the length s: for a text of the second degree, what is there
    anyway, for every token, and for every token with every other; for the side of an image of the fourth. As many recordings as it has coefficients, at
    lengths `step` apart, give it in whole numbers, `c(s) = sum_j binomial(k, j) D^j c` with `k = (s - s0) / step` and Newton's forward differences
    `D^j`; others check it (`Lengths.through`).
    """

    option: str
    tapes: tuple[Tape, ...]
    lengths: tuple[int, ...]
    most: int

    @staticmethod
    def through(tapes: Sequence[Tape], lengths: Sequence[int], option: str = "seq_len") -> Lengths:
        """From recordings at lengths equally far apart, as many as `option` has coefficients, and further ones, which check them.

        Raises `UntraceableError` where the step allocates otherwise at one length than at another, or some size is no such polynomial, naming it;
        `InvalidInputError` for lengths that give none.
        """
        count = DEGREES[option] + 1
        apart = {high - low for low, high in pairwise(lengths[:count])}
        if len(apart) != 1 or lengths[0] % min(apart) or len(tapes) < count:
            raise InvalidInputError(f"lengths are {', '.join(map(str, lengths))}; expected {count} multiples of what they are apart, and more to check them")
        found = Lengths(option, tuple(tapes[:count]), tuple(lengths[:count]), lengths[-1])
        for tape, length in zip(tapes[1:], lengths[1:], strict=True):
            _require_same(tapes[0], tape, lengths[0], length)
        for tape, length in zip(tapes[count:], lengths[count:], strict=True):
            _require_through(found, tape, length)
        return found

    @property
    def step(self) -> int:
        """What every length is a multiple of."""
        return self.lengths[1] - self.lengths[0]

    def at(self, length: int) -> Tape:
        """The recording at a length; `InvalidInputError` for one that is no multiple of `step`, or beyond `most`."""
        length = whole("length", length, most=self.most)
        if length % self.step:
            raise InvalidInputError(f"length is {length}; expected a multiple of {self.step}, such as {max(1, round(length / self.step)) * self.step}")
        return self._at(length)

    def _at(self, length: int) -> Tape:
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
            tokens_per_sample=int(self._through(length, [np.array(tape.tokens_per_sample) for tape in self.tapes])),
            options={**first.options, self.option: length},
            worst=replace(self, tapes=worst)._at(length) if worst else None,
        )

    def _term(self, length: int, number: int) -> Term:
        return Term(self.tapes[0].terms[number].formula, self._polynomials(length, [tape.terms[number].parameters for tape in self.tapes]))

    def _workspace(self, length: int, number: int) -> Workspace:
        return Workspace(self.tapes[0].workspaces[number].kind, *self._polynomials(length, [(tape.workspaces[number].excess,) for tape in self.tapes]))

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


def _require_same(first: Tape, other: Tape, length: int, another: int) -> None:
    """Raises `UntraceableError` where two recordings do not allocate and compute the same in the same order."""
    same = all(getattr(first, name) == getattr(other, name) for name in _SAME)
    kinds = [[(number, term.formula) for number, term in tape.terms.items()] for tape in (first, other)]
    spaces = [[(number, space.kind) for number, space in tape.workspaces.items()] for tape in (first, other)]
    words = all(getattr(first.operations, name) == getattr(other.operations, name) for name in _WORDS)
    if not (same and words and kinds[0] == kinds[1] and spaces[0] == spaces[1]):
        operator = next((f"{a} and {b}" for a, b in zip(first.operators, other.operators, strict=False) if a != b), "their number")
        raise UntraceableError(f"{first.name} takes another path at length {another} than at length {length} ({operator}); ask for one at a time")


def _require_through(lengths: Lengths, tape: Tape, length: int) -> None:
    """Raises `UntraceableError` where the polynomial through some lengths is not what was recorded at another."""
    told = lengths._at(length)
    at = ", ".join(map(str, (*lengths.lengths, length)))
    for name in SIZES:
        other = np.flatnonzero(getattr(told, name) != getattr(tape, name))
        if other.size:
            where = f"{tape.operators[other[0]]} in module {tape.modules[other[0]] or 'model'}"
            values = ", ".join(f"{int(getattr(each, name)[other[0]]):,}" for each in (*lengths.tapes, tape))
            raise UntraceableError(f"{where} takes {values} bytes at lengths {at}: no polynomial of degree {DEGREES[lengths.option]}; ask for one at a time")
    if told.terms != tape.terms or told.workspaces != tape.workspaces:
        raise UntraceableError(f"buffers inside of kernels of {tape.name} are no polynomials in the length, by lengths {at}; ask for one at a time")
