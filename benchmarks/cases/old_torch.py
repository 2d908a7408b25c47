# SPDX-License-Identifier: Apache-2.0
"""Functions as PyTorch before 1.11 kept them for their backward, for models that were measured with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Softmax(torch.autograd.Function):
    """`softmax` or `log_softmax` whose backward keeps its input beside its output."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dim: int, logarithm: bool) -> Tensor:
        """The weights or their logarithms; scores are saved, too."""
        ctx.dim, ctx.logarithm = dim, logarithm
        found = (torch.log_softmax if logarithm else torch.softmax)(scores, dim)
        ctx.save_for_backward(scores, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """One tensor of the size of the scores."""
        scores, found = ctx.saved_tensors
        backward = torch.ops.aten._log_softmax_backward_data if ctx.logarithm else torch.ops.aten._softmax_backward_data
        return backward(gradients[0], found, ctx.dim, scores.dtype), None, None


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        nn.functional.hardtanh_(x, 0.0, 6.0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.ops.aten.hardtanh_backward(gradients[0], ctx.saved_tensors[0], 0.0, 6.0)


class ReLU6(nn.Module):
    """`ReLU6` in place whose backward reads what it made, where PyTorch now keeps a copy of its input."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Any:
        """Between 0 and 6."""
        return _Clipped.apply(x)


def softmax(scores: Tensor, dim: int, old: bool, logarithm: bool = False) -> Any:
    """The weights, or with `logarithm` theirs, as of PyTorch before 1.11 (`old`) or now."""
    if old:
        return Softmax.apply(scores, dim, logarithm)
    return (torch.log_softmax if logarithm else torch.softmax)(scores, dim)
