# SPDX-License-Identifier: Apache-2.0
"""The tables of modules and operators that users know from fvcore, and the closed form that counting gives."""

from __future__ import annotations

from dataclasses import dataclass

from bsmodel.tape.asked import micro_batches
from bsmodel.tape.polynomials import Polynomial, values
from bsmodel.tape.tape import WEIGHTS, Tape
from bsmodel.units import whole

_STATES = (*WEIGHTS, "buffer", "gradient", "optimizer state")


@dataclass(frozen=True)
class ModuleRow:
    """One module with everything inside it, at one micro-batch: forward FLOPs (a multiply-add is two) and activations as fvcore counts them.

    `saved_bytes` is what its forward leaves in memory for backward.
    """

    module: str
    parameters: int
    flops: int
    activations: int
    saved_bytes: int

    @property
    def depth(self) -> int:
        """How far below the model it is; the model itself is 0."""
        return self.module.count(".") + 1 if self.module else 0


def by_module(tape: Tape, batch: int) -> tuple[ModuleRow, ...]:
    """Every module that computes or holds something, each with its descendants' share, in the order of the model; the first is the whole.

    Raises `InvalidInputError` for a batch that is no whole number of at least 1, or one at which the step takes another path than recorded.
    """
    sums: dict[str, list[float]] = {"": [0, 0, 0, 0]}

    def add(module: str, column: int, amount: float) -> None:
        names = [""]
        for part in filter(None, module.split(".")):
            names.append(f"{names[-1]}.{part}".lstrip("."))
        for name in names:
            sums.setdefault(name, [0, 0, 0, 0])[column] += amount

    batch = int(micro_batches(tape, whole("batch", batch)))
    for module, count in tape.parameters.items():
        add(module, 0, count)
    flops, activations = (tape.operations.column(name, batch) for name in ("counted_flops", "activations"))
    for row in tape.operations.where("forward").nonzero()[0]:
        add(tape.operations.modules[row], 1, flops[row])
        add(tape.operations.modules[row], 2, activations[row])
    sizes = values(tape.coefficients(), batch)
    for number in _kept_for_backward(tape):
        add(tape.modules[number], 3, sizes[number])
    rows = [ModuleRow(module, *(round(value) for value in values)) for module, values in sums.items()]
    return tuple(sorted(rows, key=lambda row: _in_order(row.module)))


@dataclass(frozen=True)
class OperatorRow:
    """All calls of one operator in forward, at one micro-batch; without a formula, FLOPs and activations are None."""

    operator: str
    calls: int
    flops: int | None
    activations: int | None
    moved_bytes: int


def by_operator(tape: Tape, batch: int) -> tuple[OperatorRow, ...]:
    """Every operator that forward runs on the device, by FLOPs and then by the bytes it reads and writes.

    Raises `InvalidInputError` for a batch that is no whole number of at least 1, or one at which the step takes another path than recorded.
    """
    batch = int(micro_batches(tape, whole("batch", batch)))
    columns = [tape.operations.column(name, batch) for name in ("counted_flops", "activations", "moved_bytes")]
    sums: dict[str, list[float]] = {}
    for row in tape.operations.where("forward").nonzero()[0]:
        total = sums.setdefault(tape.operations.operators[row], [0, 0, 0, 0])
        total[0] += 1
        for position, column in enumerate(columns, 1):
            total[position] += column[row]
    rows = []
    for operator, (calls, *amounts) in sums.items():
        flops, activations, moved = (round(amount) for amount in amounts)
        known = operator not in tape.uncounted_operators
        rows.append(OperatorRow(operator, round(calls), flops if known else None, activations if known else None, moved))
    return tuple(sorted(rows, key=lambda row: (-(row.flops or 0), -row.moved_bytes)))


def counted(tape: Tape) -> Polynomial:
    """The formula of every tutorial, counted: `M(b) = states + b * activation_bytes`, and where samples are paired those of every pair.

    States are parameters, buffers, gradients and optimizer state; activation bytes are what forward keeps for backward, per sample, with
    the batch itself. It has no moments: temporaries, workspaces and what backward frees while it allocates are left out, so it stands
    beside the traced form as an independent check.
    """
    states = sum(int(tape.fixed_bytes[k]) for k in range(len(tape.categories)) if tape.categories[k] in _STATES)
    kept = _kept_for_backward(tape)
    return Polynomial(states, int(tape.per_sample_bytes[kept].sum()), int(tape.per_pair_bytes[kept].sum()))


def _kept_for_backward(tape: Tape) -> list[int]:
    """What forward allocates and still holds when backward begins: activations, statistics, masks, and the batch."""
    alive: dict[int, bool] = {}
    for event in tape.blocks["micro"]:
        number = event if event >= 0 else ~event
        if event >= 0 and tape.phases[number] == "backward":
            break
        alive[number] = event >= 0
    return [number for number, living in alive.items() if living and tape.categories[number] in ("saved", "batch")]


def _in_order(module: str) -> list[tuple[int, int, str]]:
    """Layers by number, names by letter: `layers.2` before `layers.10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in module.split(".")] if module else []
