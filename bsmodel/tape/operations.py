# SPDX-License-Identifier: Apache-2.0
"""The kernels of a training step as plain data: what each computes and moves, as polynomials in the micro-batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsmodel.tape.polynomials import interpolated, pairs

COLUMNS = ("groups", "m", "n", "k", "moved_bytes", "launches", "counted_flops", "activations")
DTYPES = ("fp32", "fp16", "bf16", "fp8")
COEFFICIENTS = ("fixed", "per_sample", "per_pair")
PHASES = ("forward", "backward", "recompute", "gradient", "accumulation", "step")
KEEPS = ("gradient", "accumulation")  # what the first micro-step does to keep gradients, and each further one


@dataclass(frozen=True)
class Operations:
    """Row by row one kernel: `fixed + per_sample * b + per_pair * b (b - 1) / 2` of each column.

    A matrix product is `groups` times `m x k` by `k x n`, all zero where there is none, but for the `groups`
    (channels) of a batch norm that has a thread block for each. `counted_flops` and `activations` are fvcore's, in
    forward only. Phases: forward, backward, recompute (forward again under checkpointing), gradient (what the first micro-step of an
    optimizer step does to keep gradients), accumulation (what every further one does instead) and step (clipping, optimizer, averages).
    """

    operators: tuple[str, ...]
    modules: tuple[str, ...]
    phases: tuple[str, ...]
    kinds: tuple[str, ...]
    dtypes: tuple[str, ...]
    fixed: NDArray[np.float64]
    per_sample: NDArray[np.float64]
    per_pair: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.operators)

    def column(self, name: str, batch: ArrayLike, rows: Any = slice(None)) -> NDArray[np.float64]:
        """One column of all or some rows at a micro-batch, or at each of several: an array of shape (batches..., rows)."""
        index = COLUMNS.index(name)
        fixed, per_sample, per_pair = (getattr(self, name)[rows, index] for name in COEFFICIENTS)
        batches = np.asarray(batch, np.float64)[..., None]
        lines = fixed + per_sample * batches
        return np.asarray(lines + per_pair * (batches * (batches - 1) / 2) if per_pair.any() else lines)

    @cached_property
    def products(self) -> NDArray[np.bool_]:
        """Which rows compute a matrix product at some batch."""
        index = COLUMNS.index("m")
        return np.asarray(np.any([numbers[:, index] for numbers in self._coefficients], axis=0))

    def where(self, *phases: str) -> NDArray[np.bool_]:
        """Which rows belong to these phases."""
        return np.isin(self._phases, phases)

    @cached_property
    def _phases(self) -> NDArray[np.str_]:
        return np.array(self.phases, str)

    @cached_property
    def distinct(self) -> tuple[Operations, NDArray[np.int64]]:
        """One row for all that are equal but for operator, module and phase, and which of them each row is."""
        words = list(zip(self.kinds, self.dtypes, strict=True))
        index = {word: position for position, word in enumerate(dict.fromkeys(words))}
        marks = np.array([index[word] for word in words], np.float64).reshape(-1, 1)
        table = np.ascontiguousarray(np.hstack([marks, *self._coefficients]))
        whole_rows = table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1]))).ravel()
        _, first, inverse = np.unique(whole_rows, return_index=True, return_inverse=True)
        operators, modules, phases, kinds, dtypes = (
            tuple(words[i] for i in first) for words in (self.operators, self.modules, self.phases, self.kinds, self.dtypes)
        )
        return Operations(operators, modules, phases, kinds, dtypes, *(numbers[first] for numbers in self._coefficients)), inverse.ravel()

    @cached_property
    def counts(self) -> dict[str, NDArray[np.float64]]:
        """How often each phase runs each of the distinct rows."""
        first, inverse = self.distinct
        return {phase: np.bincount(inverse, self.where(phase), len(first)).astype(np.float64) for phase in PHASES}

    @property
    def _coefficients(self) -> tuple[NDArray[np.float64], ...]:
        return self.fixed, self.per_sample, self.per_pair

    def document(self) -> dict[str, Any]:
        """For `Tape.save`."""
        words = {name: getattr(self, name) for name in ("operators", "modules", "phases", "kinds", "dtypes")}
        return {**words, **{name: getattr(self, name).tolist() for name in COEFFICIENTS}}

    @staticmethod
    def of(document: dict[str, Any]) -> Operations:
        """From what `document` gave."""
        numbers = {name: np.asarray(document.pop(name), np.float64).reshape(-1, len(COLUMNS)) for name in COEFFICIENTS}
        operators, modules, phases, kinds, dtypes = (tuple(document[name]) for name in ("operators", "modules", "phases", "kinds", "dtypes"))
        return Operations(operators, modules, phases, kinds, dtypes, **numbers)


@dataclass(frozen=True)
class Row:
    """One kernel at one batch, as it was recorded: its columns are `numbers`."""

    operator: str
    module: str
    phase: str
    kind: str
    dtype: str
    numbers: tuple[float, ...]


def through(recordings: list[list[Row]], batches: tuple[int, ...]) -> Operations | None:
    """Polynomials through the rows of several batches, or None where they are not the same ones.

    The second recording is the one that counts: what only another one has (a loss scale made in the first step) is left out. Of the second degree
    is what leaves the line through the first and the last batch and is so at four batches, of which three would fit anything.
    """
    steady = recordings[1]
    matched = [_matched(recording, steady) for recording in recordings]
    if any(rows is None for rows in matched):
        return None
    values = np.array([[row.numbers for row in rows] for rows in matched if rows], np.float64).reshape(len(recordings), -1, len(COLUMNS))
    per_sample = (values[-1] - values[0]) / (batches[-1] - batches[0])
    line = np.stack([values[0] - per_sample * batches[0], per_sample, np.zeros_like(per_sample)])
    if len(batches) < 4:
        return _operations(steady, *line)
    curve = np.round(interpolated(values, batches), 6)  # columns are shares of whole numbers: a row's of what several products move
    basis = np.array([(1, batch, pairs(batch)) for batch in batches], np.float64)
    is_line, is_curve = (np.isclose(np.tensordot(basis, each, 1), values, rtol=1e-9, atol=1e-4).all(axis=0) for each in (line, curve))
    grows = (curve[0] + curve[1] >= 0) & (curve[1] + curve[2] >= 0) & (curve[2] > 0)
    return _operations(steady, *np.where(is_curve & grows & ~is_line, curve, line))


def _matched(rows: list[Row], steady: list[Row]) -> list[Row] | None:
    """The rows that are the steady ones' twins, or None where one of those has none."""
    kept = _subsequence([_name(row) for row in rows], [_name(row) for row in steady])
    return None if kept is None else _in_order([rows[position] for position in kept], steady)


def _name(row: Row) -> tuple[str, str, str]:
    return row.operator, row.module, row.kind


def _in_order(rows: list[Row], steady: list[Row]) -> list[Row]:
    """Where neighbours of one name are the same at any batch but come in another order, they are put in that of the steady ones.

    DistributedDataParallel empties its buckets in another order once it has rebuilt them.
    """
    found: list[Row] = []
    for _, neighbours in itertools.groupby(steady, key=_name):
        theirs = list(neighbours)
        own = rows[len(found) : len(found) + len(theirs)]
        same = sorted(row.numbers for row in own) == sorted(row.numbers for row in theirs)
        found += theirs if same else own
    return found


def _subsequence(names: list[Any], wanted: list[Any]) -> list[int] | None:
    """Positions in `names` of all that is wanted, in order: what stands between is what only the first step does."""
    found: list[int] = []
    for position, name in enumerate(names):
        if len(found) < len(wanted) and name == wanted[len(found)]:
            found.append(position)
    return found if len(found) == len(wanted) else None


def fixed(rows: list[Row]) -> Operations:
    """Rows that do not depend on the batch."""
    values = np.array([row.numbers for row in rows], np.float64).reshape(-1, len(COLUMNS))
    return _operations(rows, values, np.zeros_like(values), np.zeros_like(values))


def joined(parts: Iterable[Operations]) -> Operations:
    """All the rows of several parts, in order."""
    kept = list(parts)
    operators, modules, phases, kinds, dtypes = (
        tuple(word for part in kept for word in getattr(part, name)) for name in ("operators", "modules", "phases", "kinds", "dtypes")
    )
    numbers = (np.concatenate([getattr(part, name) for part in kept]) for name in COEFFICIENTS)
    return Operations(operators, modules, phases, kinds, dtypes, *numbers)


def _operations(rows: list[Row], *coefficients: NDArray[np.float64]) -> Operations:
    operators, modules, phases, kinds, dtypes = (tuple(getattr(row, name) for row in rows) for name in ("operator", "module", "phase", "kind", "dtype"))
    return Operations(operators, modules, phases, kinds, dtypes, *coefficients)
