# SPDX-License-Identifier: Apache-2.0
"""Weights in four bits where bitsandbytes is not installed: layers that hold and do what its layout says, in operators of torch alone.

Two weights share a byte, and each 64 have a scale in float32; quantized scales take a byte, each 256 of them a scale in float32, and all a code of 256 and an
offset (Dettmers 2023, arXiv 2305.14314; bitsandbytes/functional.py). Products are with the whole weight, unpacked in forward and again in backward.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch

BLOCK, NESTED = 64, 256  # weights a scale, and scales a scale


class Packed(torch.nn.Parameter):
    """A weight in four bits, with its `quant_state` beside it."""


class Linear(torch.nn.Linear):
    """A linear layer with such a weight, which is not trained; what comes in is cast to `compute`, and what goes out back again."""

    def __init__(self, layer: torch.nn.Linear, dtype: torch.dtype, compute: torch.dtype, double_quant: bool) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute = layer.in_features, layer.out_features, compute
        data = torch.empty((layer.weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        self.weight = torch.Tensor._make_subclass(Packed, data, False)
        self.weight.quant_state = _state(layer.weight, double_quant)  # type: ignore[attr-defined]
        bias: torch.nn.Parameter | None = layer.bias
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias.data.to(dtype), requires_grad=False))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The product; peft makes a copy of what its layers of four bits give."""
        given: torch.Tensor | None = self.bias
        bias = None if given is None else given.to(self.compute)
        product: torch.Tensor = _Product.apply(rows.to(self.compute), self.weight, bias)
        return product.to(rows.dtype).clone()


class _Product(torch.autograd.Function):
    """`MatMul4Bit`: the packed weight is kept for backward, and what came in is not."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """The product with the unpacked weight."""
        ctx.weight = weight
        return torch.nn.functional.linear(rows, _unpacked(weight, rows.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """That of what came in, with the weight unpacked again."""
        return torch.matmul(gradient, _unpacked(ctx.weight, gradient.dtype)), None, None


def replaced(model: torch.nn.Module, layers: Mapping[str, torch.nn.Linear], dtype: torch.dtype, compute: torch.dtype, double_quant: bool) -> int:
    """Puts such layers in the place of a model's linear ones; how many these are."""
    for name, layer in layers.items():
        model.set_submodule(name, Linear(layer, dtype, compute, double_quant))
    return len(layers)


def _state(weight: torch.Tensor, double_quant: bool) -> types.SimpleNamespace:
    """What is held beside the packed weight, each on its own."""
    scales, code = -(-weight.numel() // BLOCK), torch.empty(16, device="meta")
    if not double_quant:
        return types.SimpleNamespace(shape=weight.shape, absmax=torch.empty(scales, device="meta"), code=code, offset=None, state2=None)
    nested = types.SimpleNamespace(absmax=torch.empty(-(-scales // NESTED), device="meta"), code=torch.empty(256, device="meta"))
    absmax = torch.empty(scales, dtype=torch.uint8, device="meta")
    return types.SimpleNamespace(shape=weight.shape, absmax=absmax, code=code, offset=torch.empty((), device="meta"), state2=nested)


def _unpacked(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """The whole weight in a dtype; scales that are quantized, too, are unpacked before, and moved by their offset."""
    state = weight.quant_state
    scales = state.absmax if state.state2 is None else state.absmax.to(torch.float32) + state.offset
    return scales.new_zeros(state.shape, dtype=dtype)
