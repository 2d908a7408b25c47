# SPDX-License-Identifier: Apache-2.0
"""What ranks say to one another, of which there is one: collectives are answered at once, and take no memory of the allocator's."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist

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
    return bool(func.namespace == "c10d")


class Listener(Protocol):
    """Who is told of collectives."""

    values: Any

    def say(self, kind: str, size_bytes: int, ranks: int, stride: int, waits: bool) -> None:
        """One is begun by the stream in progress, which `waits` for it or goes on."""


def run(func: Any, args: Any, listener: Listener) -> Any:
    """What a collective gives: where it writes, and work that is done. Every rank says what this one does."""
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


def _option(func: Any, args: Any, name: str) -> Any:
    """An argument of an operator by its name, or its default."""
    position = next(index for index, argument in enumerate(func._schema.arguments) if argument.name == name)
    return args[position] if position < len(args) else func._schema.arguments[position].default_value


def _group(func: Any, args: Any) -> tuple[int, int]:
    """How many ranks take part, and how far they are from one another."""
    ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(_option(func, args, "process_group")))
    return len(ranks), ranks[1] - ranks[0] if len(ranks) > 1 else 1
