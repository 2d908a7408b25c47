# SPDX-License-Identifier: Apache-2.0
"""What device tensors hold, as far as it is known without data: small integers and booleans, so that masks can be asked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from bsmodel.errors import UntraceableError
from bsmodel.recording.frames import calling_line, reading_line

_LIMIT = 1 << 20  # elements: integer and boolean device tensors up to this size keep their values
_LIMIT_OF_FLOATS = 1 << 16
_FACTORIES = ("aten::arange", "aten::eye", "aten::full", "aten::ones", "aten::zeros", "aten::scalar_tensor")
_LIKE = frozenset(("aten::ones_like", "aten::zeros_like", "aten::full_like"))
_MOST_READS = 1000  # by the user's code: a loop that waits for a value would never end


class Values:
    """Values of the tensors of one recording, and what stands for those that nobody knows.

    `stand_in` is what a read outside of any module gets: 0 in one recording, something else in another, whose allocations are then compared.
    `lines` are the lines of the user's code that read so.
    """

    def __init__(self, stand_in: int) -> None:
        self.stand_in = stand_in
        self.limit = _LIMIT
        self.lines: dict[str, None] = {}
        self._reads = 0
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def set(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Remember what a device tensor holds, where it is small enough to be asked about."""
        if not value.is_meta and value.numel() <= (_LIMIT_OF_FLOATS if value.is_floating_point() else self.limit):
            self._known[tensor] = value

    def computed(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        """What an operator gives for known values, or None."""
        if func._schema.name in _LIKE and not (kwargs.get("dtype") or given[0].dtype).is_floating_point and given[0].numel() <= self.limit:
            return func(torch.empty(given[0].size(), dtype=given[0].dtype), *args[1:], **{**kwargs, "device": torch.device("cpu")})
        if func is torch.ops.aten.copy_.default or any(t.numel() > self.limit or (t.is_meta and t not in self._known) for t in given):
            return None
        if not given and (not func._schema.name.startswith(_FACTORIES) or _elements_made(func, args) > self.limit):
            return None
        if _elements_together(given) > self.limit:
            return None
        host = torch.device("cpu")

        def replace(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                return self._known[leaf]
            return host if isinstance(leaf, torch.device) else leaf

        args, kwargs = tree_map(replace, (args, kwargs))
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            return None

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a device tensor's values are known."""
        return tensor in self._known

    def selected(self, index: Any) -> int | None:
        """How many elements a boolean mask selects; None for what is none, or is not known."""
        value = self._known.get(index) if isinstance(index, torch.Tensor) and index.is_meta and index.dtype is torch.bool else None
        return None if value is None else int(value.count_nonzero())

    def keep(self, func: Any, outputs: list[torch.Tensor], values: list[torch.Tensor] | None, given: list[torch.Tensor]) -> None:
        """Note the outputs' values; without any, what an operator writes to is known no longer."""
        if values is None:
            if func._schema.is_mutable:
                for tensor in given:
                    self._known.pop(tensor, None)
            return
        for tensor, value in zip(outputs, values, strict=True):
            self.set(tensor, value)

    def item(self, tensor: torch.Tensor, module: str | None) -> Any:
        """The value of a scalar. `module`: the one in whose forward pass it is read, where nothing may stand for it."""
        value = self._known.get(tensor)
        if value is not None:
            return value.item()
        return torch.full((), self._instead(module), dtype=tensor.dtype).item()

    def on_host(self, tensor: torch.Tensor, dtype: torch.dtype, module: str | None) -> torch.Tensor:
        """A copy of a tensor on the host."""
        value = self._known.get(tensor)
        if value is not None:
            return value.to(dtype)
        return torch.full(tensor.size(), self._instead(module), dtype=dtype)

    def _instead(self, module: str | None) -> int:
        line = reading_line()
        if module is not None:
            raise UntraceableError(
                f"the forward pass reads the value of a tensor at {line or calling_line() or 'an unknown line'} (module {module or 'model'}): "
                "a recording has no values; take that branch by a shape or a Python number instead"
            )
        if line is None:
            return 0
        self.lines[line] = None
        self._reads += 1
        if self._reads > _MOST_READS:
            raise UntraceableError(f"the step reads values at {line} again and again: a recording has none, so a loop that waits for one never ends")
        return self.stand_in


def _elements_together(given: list[torch.Tensor]) -> int:
    """Elements of what several tensors are broadcast to, such as labels against labels; 0 where they are not."""
    try:
        return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in given))) if len(given) > 1 else 0
    except RuntimeError:
        return 0


def _elements_made(func: Any, args: Any) -> float:
    """Elements of what a factory makes: by its sizes, or by the numbers a range runs between."""
    if func._schema.name == "aten::eye":
        return int(args[0] * args[-1])
    if args and isinstance(args[0], (list, tuple)):
        return math.prod(args[0])
    return max((abs(leaf) for leaf in args if isinstance(leaf, (int, float)) and math.isfinite(leaf)), default=1)
