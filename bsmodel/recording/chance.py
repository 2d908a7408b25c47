# SPDX-License-Identifier: Apache-2.0
"""What a step decides by chance on the host (LayerDrop, teacher forcing, the size of an image): numbers that it draws one at a time."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from bsmodel.recording.cuda_like.pretence import replaced

aten = torch.ops.aten
Ends = tuple[float, float]  # the least that can be drawn, and the most


def _unit(*_: Any) -> Ends:
    return 2.0**-53, _below(1.0)  # 0 itself comes once in 2**53 draws: what is done when a number exceeds a rate of 0 is always done


def _between(low: float = 0.0, high: float = 1.0) -> Ends:
    return low, _below(high)


def _integers(low: int, high: int) -> Ends:
    return low, high


def _range(start: int, stop: int | None = None, *_: Any) -> Ends:
    return (0, start - 1) if stop is None else (start, stop - 1)


def _below(high: float) -> float:
    return math.nextafter(high, -math.inf)


# By where they are found: what of one number each draws, by its arguments.
_FUNCTIONS: tuple[tuple[Any, str, Callable[..., Ends]], ...] = (
    (random, "random", _unit),
    (random, "uniform", _integers),
    (random, "randint", _integers),
    (random, "randrange", _range),
    (np.random, "rand", _unit),
    (np.random, "random", _unit),
    (np.random, "uniform", _between),
    (np.random, "randint", _range),
)
_OPERATORS: dict[Any, Callable[..., Ends]] = {
    aten.rand.default: _unit,
    aten.rand_like.default: _unit,
    aten.uniform_.default: lambda tensor, low=0.0, high=1.0, **_: (low, _below(high)),
    aten.randint.default: lambda high, size: (0, high - 1),
    aten.randint.low: lambda low, high, size: (low, high - 1),
    aten.bernoulli.default: lambda tensor: (0, 1),
    aten.bernoulli_.float: lambda tensor, p=0.5: (0, 1),
}
Decide = Callable[[], float | None]  # where in its range a number lies; None where it is left to chance


def at(ends: Ends, place: float) -> float:
    """The number at this place of a range, from 0 to 1; whole between whole ends."""
    low, high = ends
    found = low + (high - low) * place
    return type(low)(found) if type(low) is type(high) else found


@contextmanager
def decided(decide: Decide) -> Iterator[None]:
    """Within this context Python's and numpy's functions draw what `decide` says, where they are asked for one number."""
    with ExitStack() as stack:
        for owner, name, ends in _FUNCTIONS:
            stack.enter_context(replaced(owner, name, _deciding(getattr(owner, name), ends, decide)))
        yield


def _deciding(original: Callable[..., Any], ends: Callable[..., Ends], decide: Decide) -> Callable[..., Any]:
    @functools.wraps(original)
    def draw(*args: Any, **kwargs: Any) -> Any:
        several = bool(kwargs) or (args and original.__name__ in ("rand", "random")) or len(args) > 2
        place = None if several else decide()
        return original(*args, **kwargs) if place is None else at(ends(*args), place)

    return draw


def drawn(func: Any, args: Any, output: Any, decide: Decide) -> Any:
    """The output of an operator on the host, or what is decided where it draws one number."""
    if func not in _OPERATORS or output.numel() != 1:
        return output
    place = decide()
    return output if place is None else _filled(output, at(_OPERATORS[func](*args), place))


def _filled(output: Any, number: float) -> Any:
    """The output with this number, rounded down: the upper end of a range is not of it."""
    output.fill_(number)
    return output.copy_(torch.nextafter(output, torch.full_like(output, -math.inf))) if output.item() > number else output
