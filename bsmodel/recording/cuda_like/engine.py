# SPDX-License-Identifier: Apache-2.0
"""What autograd's engine does otherwise on CUDA: the order of nodes that a backward pass has made, and which sums it writes in place.

A gradient of gradients (`create_graph=True`) frees by that order.

The engine takes of all nodes that are ready the one with the highest number. CUDA tensors have a thread of their own for backward, and every thread
counts for itself: where backward makes fewer nodes than forward, its numbers are soon below all others, and they come last; where it makes more, they
come first. On `meta` one thread makes them all (torch/csrc/autograd/engine.cpp, CompareNodeTaskTime; aten/src/ATen/SequenceNumber.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bsmodel.recording.cuda_like import machine

aten = torch.ops.aten
SUMS = frozenset((aten.add.Tensor, aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.index_add.default, aten.index_put.default))
_MARK = "made in a backward pass"


def is_renumbered(node: Any) -> bool:
    """Whether a node has been given the number it has on CUDA."""
    return _MARK in node.metadata


def in_backward() -> bool:
    """Whether the engine runs a backward pass."""
    return torch._C._current_graph_task_id() != -1


def keeps_gradient() -> bool:
    """Whether the engine is at the end of its graph, where a gradient is kept or added to the one that is there."""
    node: Any = torch._C._current_autograd_node()
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"


class Numbers:
    """`run`, the engine, whose hooks see the device as the program does, by `mode`.

    The nodes it makes are numbered below those of the main thread where there are fewer of them.

    In the first step, as on CUDA, they mingle: both threads have counted from zero.
    """

    def __init__(self, run: Callable[..., Any], mode: Any) -> None:
        self.run, self.mode = run, mode
        self.first = torch._C._autograd._get_sequence_nr()
        self.made = 0

    def __call__(self, outputs: Any, gradients: Any, retain_graph: Any, create_graph: Any, *rest: Any, **named: Any) -> Any:
        """A run of the engine."""
        start = torch._C._autograd._get_sequence_nr()
        with self.mode, machine.chosen_by_engine():  # the mode has stepped aside for the call that this is part of
            results = self.run(outputs, gradients, retain_graph, create_graph, *rest, **named)
        if not create_graph:
            return results
        before, by_main = self.made, start - self.first - self.made
        self.made += torch._C._autograd._get_sequence_nr() - start
        if self.made < by_main:
            for node in _nodes(results, start):
                node.metadata[_MARK] = True
                node._set_sequence_nr(self.first + before + node._sequence_nr() - start)
        return results


def _nodes(tensors: Any, start: int) -> list[Any]:
    """The nodes behind these tensors that are numbered from `start` on."""
    waiting = [tensor.grad_fn for tensor in tensors or () if tensor is not None and tensor.grad_fn is not None]
    found: dict[Any, None] = {}
    while waiting:
        node = waiting.pop()
        if node not in found and start <= node._sequence_nr() < machine.LEAF:
            found[node] = None
            waiting += [following for following, _ in node.next_functions if following is not None]
    return list(found)


def sums_in_place(func: Any, args: Any) -> bool:
    """Whether autograd writes a sum, or what it scatters, into the first operand: a whole tensor that nobody else holds.

    Under a dispatch mode the engine, and the formulas of gathers and of maxima, never do so (torch/csrc/autograd/input_buffer.cpp,
    can_accumulate_inplace; FunctionsManual.cpp, areAnyTensorSubclassLike).
    """
    total = args[0]
    if func is aten.add.Tensor and (not isinstance(args[1], torch.Tensor) or total.shape != args[1].shape or total.dtype is not args[1].dtype):
        return False
    storage = total.untyped_storage()
    whole = storage.nbytes() == total.numel() * total.element_size()
    return whole and torch._C._storage_Use_Count(storage._cdata) <= 2  # the tensor itself, and this function's view of its storage
