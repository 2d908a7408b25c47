# SPDX-License-Identifier: Apache-2.0
"""Tensors around others: subclasses without memory of their own, such as torchao's weights in 8 bits, whose operators work on what is inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = torch.Tensor.__torch_dispatch__
_WHOLE = (torch.Tensor, torch.nn.Parameter)


def is_wrapper(tensor: torch.Tensor) -> bool:
    """Whether a tensor is around others."""
    return type(tensor) not in _WHOLE and is_traceable_wrapper_subclass(tensor)


def concerned(types: Any) -> bool:
    """Whether one of these types, of the arguments of an operator, says itself what it does: a mode then leaves it to that, and sees what comes of it."""
    return bool(types) and any(kind.__torch_dispatch__ is not _PLAIN for kind in types)


def left(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """What a mode gives for such an operator: nothing, so that the type says it, but of what has a shape alone, such as DTensor asks about, the result."""
    return func(*args, **(kwargs or {})) if FakeTensor in types else NotImplemented


def parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors with memory that are inside, in their order; of others the tensor itself."""
    if not is_wrapper(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        if isinstance(part := getattr(tensor, name), torch.Tensor):  # a DTensor has its mesh there, too
            yield from parts(part)


def moved(tensor: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same around others, which `move` gives for those inside."""
    if not is_wrapper(tensor):
        return move(tensor)
    names, context = tensor.__tensor_flatten__()
    inside = {name: moved(getattr(tensor, name), move) for name in names}
    found = type(tensor).__tensor_unflatten__(inside, context, tensor.size(), tensor.stride())
    found.requires_grad_(tensor.requires_grad)
    if isinstance(tensor, torch.nn.Parameter):
        found._is_param = True
    return found
