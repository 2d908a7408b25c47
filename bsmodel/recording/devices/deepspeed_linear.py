# SPDX-License-Identifier: Apache-2.0
"""The linear layer that stage 3 of ZeRO puts in the place of torch's: it keeps the parameter itself for backward and no view of it, so that it can be released.

By deepspeed/runtime/zero/linear.py of DeepSpeed 0.19.8.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def replace_all(model: torch.nn.Module) -> None:
    """Every linear layer of a model that computes as torch's does computes so."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward:
            module.forward = functools.partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: torch.nn.Linear, rows: torch.Tensor) -> Any:
    return _Product.apply(rows, module.weight, module.bias)


class _Product(torch.autograd.Function):
    """A product with a weight, and a bias perhaps."""

    @staticmethod
    def forward(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The bias is added in place where that is no part of the product."""
        if rows.dim() == 2 and bias is not None:
            return torch.addmm(bias, rows, weight.t())
        product = rows.matmul(weight.t())
        if bias is not None:
            product += bias
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What backward needs."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of what has them."""
        rows, weight, bias = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_rows = gradient.matmul(weight) if ctx.needs_input_grad[0] else None
        of_weight = flat.t().matmul(rows.reshape(-1, rows.shape[-1])) if ctx.needs_input_grad[1] else None
        of_bias = gradient.sum(list(range(gradient.dim() - 1))) if bias is not None and ctx.needs_input_grad[2] else None
        return of_rows, of_weight, of_bias
