# SPDX-License-Identifier: Apache-2.0
"""What is taken for values that nobody knows: as a healthy step would have them, or so that it takes the most there can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

aten = torch.ops.aten

_MANY = 4  # rows of a sample for each column: what is left over of them is then little
FINITE = "every number is finite"
EVENLY = "the largest of a row lie evenly over its columns, as rows of balanced experts do; the upper end has them in the same columns for all rows"
ALL = "what is selected by values is all there is to select from, the most there can be"
CHANCE = "what is left to chance on the host turns out so that the step takes the most memory"


@dataclass(frozen=True)
class Assumed:
    """What a recording answers where it does not know.

    `stand_in` is what a read gets: 0 in one recording, something else in another, whose allocations are then compared. `answers` are the
    truth values of checks by the line that asks, where the other answer is complained about. `chance`, from 0 to 1, is where in its range a number lies
    that is drawn on the host. `crowded`: the largest of all rows are in the same columns, and not evenly over them.
    `whole`: the largest of a batch are all there are, where a share of it is no line in the batch.
    """

    stand_in: int = 0
    answers: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    chance: float = 1.0
    crowded: bool = False
    whole: bool = False


def _same(one: Any, other: Any) -> bool | None:
    return True if one is other else None


def _other(one: Any, other: Any) -> bool | None:
    return False if one is other else None


def _finite(tensor: Any, bound: Any) -> bool | None:
    return True if isinstance(bound, float) and bound == math.inf else None


# By operator: what holds for every element where all are numbers. `x == x` and `|x| != inf` are how `isfinite` asks.
_OF_NUMBERS: dict[Any, Callable[..., bool | None]] = {
    aten.isnan.default: lambda tensor: False,
    aten.isinf.default: lambda tensor: False,
    aten.ne.Tensor: _other,
    aten.eq.Tensor: _same,
    aten.ne.Scalar: _finite,
}


def _highest(period: int | None, tensor: torch.Tensor, k: int, dim: int | None = -1) -> torch.Tensor | None:
    """Positions of the k largest: k other columns for each row, one after the other, beginning again after a period; or (None) the first k for all rows."""
    if dim not in (-1, tensor.dim() - 1):
        return None
    positions = torch.arange(math.prod(tensor.shape[:-1]) * k)
    return (positions % k if period is None else positions % max(1, period) % max(1, tensor.size(-1))).view(*tensor.shape[:-1], k)


def _argmax(period: int | None, tensor: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor | None:
    positions = _highest(period, tensor, 1, dim)
    return positions if keepdim or positions is None else positions.squeeze(-1)


def of_numbers(func: Any, args: Any) -> torch.Tensor | None:
    """Truth values that hold for all numbers, as many as the operator gives, in the memory of one."""
    holds = _OF_NUMBERS[func](*args) if func in _OF_NUMBERS else None
    return None if holds is None else torch.tensor(holds).expand(args[0].size())


def _period(rows: int, columns: int, samples: int) -> int:
    """After how many columns chosen one after the other they begin again: after each sample where it has many, so that a column has as many of each."""
    each = rows // max(1, samples)
    return each if each * samples == rows and each >= _MANY * columns else rows


def highest(func: Any, args: Any, most: int, crowded: bool, samples: int) -> Any:
    """What an operator finds in rows of so many samples that nobody knows: at most so many known positions, beside unknown values where it gives these too."""
    if func not in (aten.topk.default, aten.argmax.default) or not args[0].dim():
        return None
    each = args[1] if func is aten.topk.default else 1
    count = args[0].numel() // max(1, args[0].size(-1)) * each
    if count > most:
        return None
    period = None if crowded else _period(count, args[0].size(-1), samples)
    if func is aten.argmax.default:
        return _argmax(period, *args)
    positions = _highest(period, *args[:3])
    return None if positions is None else (torch.empty(positions.size(), dtype=args[0].dtype, device="meta"), positions)


# By operator: its outputs where all is selected.
_ALL_SELECTED: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: lambda mask: torch.empty((mask.numel(), mask.dim()), dtype=torch.long, device="meta"),
    aten.masked_select.default: lambda tensor, mask: torch.empty(
        math.prod(torch.broadcast_shapes(tensor.shape, mask.shape)), dtype=tensor.dtype, device="meta"
    ),
}


def all_selected(func: Any, args: Any) -> Any:
    """What an operator whose output has the size of a selection gives where all is selected; None for others."""
    return _ALL_SELECTED[func](*args) if func in _ALL_SELECTED else None
