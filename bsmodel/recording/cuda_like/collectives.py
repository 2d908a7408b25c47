# SPDX-License-Identifier: Apache-2.0
"""What ranks say to one another, of which there is one: collectives are answered at once, and take no memory of the allocator's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from bsmodel.errors import UntraceableError
from bsmodel.recording.cuda_like.machine import current
from bsmodel.recording.cuda_like.shapes import tensors_in
from bsmodel.recording.said import Said

FUNCTIONAL = "_c10d_functional"
# What each is called, and which of its arguments holds all that goes round.
_KINDS = {
    "allreduce_": ("all-reduce", 0),
    "broadcast_": ("broadcast", 0),
    "allgather_": ("all-gather", 0),
    "_allgather_base_": ("all-gather", 0),
    "reduce_scatter_": ("reduce-scatter", 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
}


def concerns(func: Any) -> bool:
    """Whether an operator is a collective of a process group (torch/csrc/distributed/c10d/Ops.cpp)."""
    return func.namespace in ("c10d", FUNCTIONAL)


class Listener(Protocol):
    """Who is told of collectives."""

    values: Any
    said: list[Said]
    begun: dict[int, int]  # by storage: the collective that writes into it, until somebody waits

    def __enter__(self) -> Any:
        """Within this context it sees operators."""

    def __exit__(self, *raised: Any) -> Any:
        """No longer."""

    def say(self, kind: str, size_bytes: int, ranks: int, stride: int, waits: bool) -> None:
        """One is begun by the stream in progress, which `waits` for it or goes on."""


def run(func: Any, args: Any, listener: Listener) -> Any:
    """What a collective gives: where it writes, and work that is done. Every rank says what this one does."""
    if func.namespace == FUNCTIONAL:
        return _functional(func, args, listener)
    name, position = func._schema.name.rpartition("::")[2], 0
    kind, position = _KINDS.get(name, (name, 0))
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in((args[position],)))
    listener.say(kind, size_bytes, *_group(func, args), waits=not _option(func, args, "async_op"))
    if name == "allgather_":
        for outputs, given in zip(args[0], args[1], strict=True):
            for output in outputs:
                listener.values.copy(output, given)
    future: Any = torch.futures.Future()
    future.set_result(list(args[0]) if isinstance(args[0], (list, tuple)) else [args[0]])
    work = torch._C._distributed_c10d._create_work_from_future(future).boxed()  # type: ignore[attr-defined]
    return (args[0], work) if len(func._schema.returns) > 1 else work


def _functional(func: Any, args: Any, listener: Listener) -> Any:
    """What one gives that writes into a tensor of its own, which is waited for where it is first used (torch/distributed/_functional_collectives.py)."""
    name = func._schema.name.rpartition("::")[2]
    if name == "_wrap_tensor_autograd":
        return AsyncCollectiveTensor(args[0])
    if name == "wait_tensor":
        if (number := listener.begun.pop(args[0].untyped_storage()._cdata, None)) is not None:
            current().says(number)
        return args[0]
    if name not in _FUNCTIONAL:
        raise UntraceableError(f"{func} is not recorded; of functional collectives {', '.join(_FUNCTIONAL)} are")
    kind, make = _FUNCTIONAL[name]
    with listener:
        made: torch.Tensor = make(*args)
    listener.begun[made.untyped_storage()._cdata] = len(listener.said)
    listener.say(kind, max(tensor.numel() * tensor.element_size() for tensor in (args[0], made)), *_group(func, args), waits=False)
    return made


def _rows(tensor: torch.Tensor, count: int) -> torch.Tensor:
    return tensor.new_empty((count, *tensor.shape[1:]))


# What each is called, and how it makes what it gives (torch/csrc/distributed/c10d/Functional.cpp).
_FUNCTIONAL: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "all_reduce": ("all-reduce", lambda given, operation, group: given.clone(memory_format=torch.contiguous_format)),
    "all_gather_into_tensor": ("all-gather", lambda given, ranks, group: _rows(given, given.size(0) * ranks)),
    "reduce_scatter_tensor": ("reduce-scatter", lambda given, operation, ranks, group: _rows(given, given.size(0) // ranks)),
}


def _option(func: Any, args: Any, name: str) -> Any:
    """An argument of an operator by its name, or its default."""
    position = next(index for index, argument in enumerate(func._schema.arguments) if argument.name == name)
    return args[position] if position < len(args) else func._schema.arguments[position].default_value


def _group(func: Any, args: Any) -> tuple[int, int]:
    """How many ranks take part, and how far they are from one another."""
    functional = func.namespace == FUNCTIONAL
    group = _resolve_process_group(_option(func, args, "group_name")) if functional else dist.ProcessGroup.unbox(_option(func, args, "process_group"))
    ranks = dist.get_process_group_ranks(group)
    return len(ranks), ranks[1] - ranks[0] if len(ranks) > 1 else 1
