# SPDX-License-Identifier: Apache-2.0
"""What cuDNN runs for a recurrent layer, in place of the steps that PyTorch's own kernels were recorded in.

On a card `torch.nn.LSTM`, `GRU` and `RNN` are one call of cuDNN (aten/src/ATen/native/cudnn/RNN.cpp): the products with the inputs, and the
gradients of the weights, are one matrix product each over the whole sequence; what is left to each step is the product with the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from bsmodel.tape import Row

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
# The largest state of which cuDNN keeps weights on chip, forward and backward (RNN.cpp, use_rnn_persist_small_h).
_ON_CHIP = {"LSTM": (192, 128), "GRU": (192, 128), "RNN_TANH": (384, 256), "RNN_RELU": (384, 256)}


@dataclass(frozen=True)
class Recurrent:
    """A stack of recurrent layers: gates times hidden units each, the inputs of each layer, and in how many directions it runs."""

    mode: str
    hidden: int
    inputs: tuple[int, ...]
    directions: int

    @classmethod
    def of(cls, module: torch.nn.RNNBase) -> Recurrent | None:
        """None for layers with projections."""
        if module.proj_size:
            return None
        directions = 2 if module.bidirectional else 1
        further = (module.hidden_size * directions,) * (module.num_layers - 1)
        return cls(module.mode, module.hidden_size, (module.input_size, *further), directions)

    @property
    def columns(self) -> int:
        return _GATES[self.mode] * self.hidden

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Layer and inputs of every recurrence."""
        return [(layer, inputs) for layer, inputs in enumerate(self.inputs) for _ in range(self.directions)]


def recurrent_layers(model: torch.nn.Module) -> dict[str, Recurrent]:
    """The recurrent layers of a model by name."""
    found = {name: Recurrent.of(module) for name, module in model.named_modules() if isinstance(module, torch.nn.RNNBase)}
    return {name: layer for name, layer in found.items() if layer is not None}


def as_cudnn(rows: Sequence[Row], layers: dict[str, Recurrent]) -> list[Row]:
    """The rows with those of each recurrent layer replaced by what cuDNN runs; as they are where steps differ in size (packed sequences)."""
    kept = list(rows)
    for name, layer in layers.items():
        products = [row for row in kept if row.module == name and row.phase == "forward" and row.kind == "matmul"]
        sizes = _steps_and_batch(products, layer)
        if sizes is not None:
            for phase in ("forward", "recompute", "backward"):
                new = _calls(layer, *sizes, dtype=products[0].dtype, backward=phase == "backward")
                kept = _replaced(kept, new, name, phase)
    return kept


def _steps_and_batch(products: Sequence[Row], layer: Recurrent) -> tuple[int, int] | None:
    """Steps of the sequence and the batch, from the products of forward; None where they are not those of so many equal steps."""
    batch = int(min((row.numbers[1] for row in products), default=0))
    each = batch * layer.columns * sum(inputs + layer.hidden for _, inputs in layer.cells)
    steps, rest = divmod(int(sum(row.numbers[0] * row.numbers[1] * row.numbers[2] * row.numbers[3] for row in products)), max(each, 1))
    return None if rest or not steps else (steps, batch)


def _replaced(rows: list[Row], new: list[Row], name: str, phase: str) -> list[Row]:
    """What backward does for a cell's elementwise products names no module: it stands between rows that do, and goes with them."""
    own = [position for position, row in enumerate(rows) if row.module == name and row.phase == phase]
    if not own:
        return rows
    inside = {position for position in range(own[0], own[-1] + 1) if rows[position].phase == phase and rows[position].module in (name, "")}
    counted = tuple(sum(rows[position].numbers[column] for position in inside) for column in (-2, -1))
    operator = "aten._cudnn_rnn_backward.default" if phase == "backward" else "aten._cudnn_rnn.default"
    made = [replace(row, operator=operator, module=name, phase=phase) for row in new]
    made[0] = replace(made[0], numbers=(*made[0].numbers[:-2], *counted))
    return [*rows[: own[0]], *made, *(row for position, row in enumerate(rows[own[0] :], own[0]) if position not in inside)]


def _calls(layer: Recurrent, steps: int, batch: int, *, dtype: str, backward: bool) -> list[Row]:
    size = 4 if dtype == "fp32" else 2
    columns, hidden, tokens = layer.columns, layer.hidden, steps * batch
    found: list[Row] = []
    for depth, inputs in layer.cells:
        kind = "recurrence on chip" if hidden <= _ON_CHIP[layer.mode][backward] else "further recurrence" if depth else "recurrence"
        streamed = 0 if kind == "recurrence on chip" else steps * columns * hidden
        moved = (streamed + tokens * (columns + 2 * hidden)) * size
        shape = (batch, hidden, columns) if backward else (batch, columns, hidden)
        found.append(_row(kind, dtype, (steps, *shape), moved))
        products = [(tokens, inputs, columns), (columns, inputs, tokens), (columns, hidden, tokens)] if backward else [(tokens, columns, inputs)]
        found += [_row("sequence product", dtype, (1, *product), size * _operands(product)) for product in products]
    return found


def _operands(product: Iterable[int]) -> int:
    m, n, k = product
    return m * k + k * n + m * n


def _row(kind: str, dtype: str, product: tuple[int, ...], moved_bytes: int) -> Row:
    return Row("", "", "", kind, dtype, (*product, moved_bytes, 1, 0, 0))
