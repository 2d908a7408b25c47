# SPDX-License-Identifier: Apache-2.0
"""What ranks say to one another, of which there is one: collectives are answered at once, and take no memory of the allocator's."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.distributed_c10d import _resolve_process_group

from bsmodel.recording.cuda_like.machine import Stream
from bsmodel.recording.cuda_like.shapes import tensors_in

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
    return func.namespace in ("c10d", "_c10d_functional")


class Listener(Protocol):
    """Who is told of collectives."""

    values: Any

    def say(self, kind: str, size_bytes: int, ranks: int, stride: int, waits: bool) -> None:
        """One is begun by the stream in progress, which `waits` for it or goes on."""


def run(func: Any, args: Any, listener: Listener) -> Any:
    """What a collective gives: where it writes, and work that is done. Every rank says what this one does."""
    if func.namespace == "_c10d_functional":
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
    """The same of those that write into a tensor of their own, which is waited for where it is first used (torch/csrc/distributed/c10d/Functional.cpp)."""
    name = func._schema.name.rpartition("::")[2]
    if name == "_wrap_tensor_autograd":
        return AsyncCollectiveTensor(args[0])
    if name == "wait_tensor":
        number = listener.begun.pop(args[0].untyped_storage()._cdata, None)
        if number is not None:
            Stream.current.says(number)
        return args[0]
    with listener:
        made = _MADE[name](args)
    ranks = dist.get_process_group_ranks(_resolve_process_group(_option(func, args, "group_name")))
    size_bytes = max(tensor.numel() * tensor.element_size() for tensor in (args[0], made))
    listener.say(_FUNCTIONAL[name], size_bytes, len(ranks), ranks[1]-ranks[0], waits=False)
    listener.begun[made.untyped_storage()._cdata] = len(listener.said) - 1
    return made

_MADE = {
    "all_reduce": lambda args: args[0].clone(memory_format=torch.contiguous_format),
    "all_gather_into_tensor": lambda args: args[0].new_empty((args[0].size(0) * args[1], *args[0].shape[1:])),
    "reduce_scatter_tensor": lambda args: args[0].new_empty((args[0].size(0) // args[2], *args[0].shape[1:])),
}
_FUNCTIONAL = {"all_reduce": "all-reduce", "all_gather_into_tensor": "all-gather", "reduce_scatter_tensor": "reduce-scatter"}

def _option(func: Any, args: Any, name: str) -> Any:
    """An argument of an operator by its name, or its default."""
    position = next(index for index, argument in enumerate(func._schema.arguments) if argument.name == name)
    return args[position] if position < len(args) else func._schema.arguments[position].default_value


def _group(func: Any, args: Any) -> tuple[int, int]:
    """How many ranks take part, and how far they are from one another."""
    ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(_option(func, args, "process_group")))
    return len(ranks), ranks[1] - ranks[0] if len(ranks) > 1 else 1
