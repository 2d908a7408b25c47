# SPDX-License-Identifier: Apache-2.0
"""What ranks say to one another, of which there is one: collectives are answered at once, and take no memory of the allocator's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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


def named(func: Any, args: Any) -> tuple[str, int]:
    """What a collective is called, and the bytes that every rank has of it when it is done, or had before."""
    name, position = _KINDS.get(func._schema.name.rpartition("::")[2], (func._schema.name.rpartition("::")[2], 0))
    tensors = tensors_in((args[position],))
    return name, sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run(func: Any, args: Any, same: Callable[[torch.Tensor, torch.Tensor], None]) -> Any:
    """What a collective gives: where it writes, and work that is done. Every rank says what this one does: `same` is told which tensors hold that."""
    if func._schema.name == "c10d::allgather_":
        for outputs, given in zip(args[0], args[1], strict=True):
            for output in outputs:
                same(output, given)
    future: Any = torch.futures.Future()
    future.set_result(list(args[0]) if isinstance(args[0], (list, tuple)) else [args[0]])
    work = torch._C._distributed_c10d._create_work_from_future(future).boxed()  # type: ignore[attr-defined]
    return (args[0], work) if len(func._schema.returns) > 1 else work
