# SPDX-License-Identifier: Apache-2.0
"""Operators on values that the host knows; of large ones that repeat along a dimension, on one of the repeated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from bsmodel.recording.cuda_like.shapes import is_view

aten = torch.ops.aten
_FACTORIES = ("aten::arange", "aten::eye", "aten::full", "aten::ones", "aten::zeros", "aten::scalar_tensor")
_LIKE = frozenset(("aten::ones_like", "aten::zeros_like", "aten::full_like"))
_ELEMENTWISE = frozenset((aten._to_copy.default, aten.clone.default))  # beside those that torch tags so
_RESIZES = {aten.upsample_nearest2d.default: 2, aten.upsample_nearest2d.vec: 2, aten.upsample_nearest1d.default: 1}  # by how many last dimensions
_OF_ALL = frozenset((aten.any.default, aten.all.default, aten.max.default, aten.min.default))
_SUMS = frozenset((aten.sum.default, aten.sum.dim_IntList))
_MANY = 1 << 16  # elements
_HOST = torch.device("cpu")


def held(value: torch.Tensor) -> int:
    """Elements that a value has memory for: what is repeated counts once."""
    return math.prod(_sizes(value))


def makes_constants(func: Any, args: Any, most: int) -> bool:
    """Whether an operator that is given no values makes at most so many."""
    return func._schema.name.startswith(_FACTORIES) and _elements_made(func, args) <= most


def like(func: Any, args: Any, kwargs: Any, most: int) -> Any:
    """Zeros, ones or another constant in as many elements as an operand has, at most so many; None for other operators, and for floats."""
    if func._schema.name not in _LIKE or (kwargs.get("dtype") or args[0].dtype).is_floating_point or args[0].numel() > most:
        return None
    return func(torch.empty(args[0].size(), dtype=args[0].dtype), *args[1:], **{**kwargs, "device": _HOST})


def on_host(func: Any, args: Any, kwargs: Any, known: Callable[[torch.Tensor], torch.Tensor], most: int) -> Any:
    """What an operator gives for the values of its operands; None where it fails, or would go through more than so many elements."""
    args, kwargs = tree_map(lambda leaf: known(leaf) if isinstance(leaf, torch.Tensor) and leaf.is_meta else leaf, (args, kwargs))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": _HOST}
    if func in _SUMS and args[0].numel() > _MANY and is_constant(args[0]):
        return _sum_of_constant(func, *args, **kwargs)
    if _takes_one_for_all(func) or (func in _RESIZES and is_constant(args[0])):
        args, kwargs = _once(args, kwargs)
    elif func in _RESIZES:
        args = (_leading_once(args[0], _RESIZES[func]), *args[1:])
    if not is_view(func) and _elements(_tensors(args, kwargs)) > most:
        return None
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        return None


def _sum_of_constant(func: Any, value: torch.Tensor, dims: Any = None, *rest: Any, **kwargs: Any) -> Any:
    """As many times one element as are added up."""
    one = value[(slice(0, 1),) * value.dim()]
    summed = dims if dims else range(value.dim())
    return func(one, *([dims] if func is aten.sum.dim_IntList else []), *rest, **kwargs) * math.prod(value.size(dim) for dim in summed)


def _takes_one_for_all(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags or func in _ELEMENTWISE or func in _OF_ALL


def _tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


def _together(values: list[torch.Tensor]) -> torch.Size | None:
    """What values are broadcast to, such as labels against labels; None where they are not."""
    try:
        return torch.broadcast_shapes(*(value.shape for value in values))
    except RuntimeError:
        return None


def _elements(values: list[torch.Tensor]) -> int:
    shape = _together(values)
    return max(value.numel() for value in values) if shape is None else math.prod(shape)


def _once(args: Any, kwargs: Any) -> Any:
    """The operands without what all of them repeat, where many elements come of them."""
    shaped = [value for value in _tensors(args, kwargs) if value.dim()]
    shape = _together(shaped)
    if shape is None or math.prod(shape) <= _MANY:
        return args, kwargs
    shaped = [value for value in shaped if not is_constant(value)]
    repeated = [dim for dim in range(-len(shape), 0) if not any(value.expand(shape).stride(dim) for value in shaped)]

    def once(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim():
            return leaf
        for dim in repeated:
            if -dim <= leaf.dim():
                leaf = leaf.narrow(dim, 0, 1)
        return leaf

    return tree_map(once, (args, kwargs))


def _leading_once(value: torch.Tensor, resized: int) -> torch.Tensor:
    """A value without what it repeats along the dimensions that are not resized."""
    for dim in range(value.dim() - resized):
        if not value.stride(dim):
            value = value.narrow(dim, 0, 1)
    return value


def is_constant(value: torch.Tensor) -> bool:
    """Whether all elements are the same."""
    first = value[(slice(0, 1),) * value.dim()]
    return value.numel() > 0 and bool((value.as_strided(_sizes(value), value.stride()) == first).all())


def _sizes(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(size if stride else min(size, 1) for size, stride in zip(value.size(), value.stride(), strict=True))


def _elements_made(func: Any, args: Any) -> float:
    """Elements of what a factory makes: by its sizes, or by the numbers a range runs between."""
    if func is aten.scalar_tensor.default:
        return 1
    if func._schema.name == "aten::eye":
        return int(args[0] * args[-1])
    if args and isinstance(args[0], (list, tuple)):
        return math.prod(args[0])
    return max((abs(leaf) for leaf in args if isinstance(leaf, (int, float)) and math.isfinite(leaf)), default=1)
