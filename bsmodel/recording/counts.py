# SPDX-License-Identifier: Apache-2.0
"""FLOPs and activations of forward operators by fvcore's formulas, driven from recorded operations.

fvcore traces a model with `torch.jit.trace`, which fails on current transformers. Its formulas only ask an operator's arguments for
shapes and constants, so they are given the recorded ones. fvcore counts a multiply-add as one; here it is two FLOPs.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bsmodel.recording.cuda_like import flash
from bsmodel.recording.cuda_like.work import Work
from bsmodel.tape import Row

aten = torch.ops.aten


@dataclass(frozen=True)
class Count:
    """FLOPs (a multiply-add is two) and activations (elements a matmul or convolution puts out) of one operator."""

    flops: int
    activations: int = 0


@dataclass(frozen=True)
class _Value:
    """As much of a `torch._C.Value` as fvcore's formulas ask for."""

    content: Any

    def isCompleteTensor(self) -> bool:  # noqa: N802 - the name fvcore calls
        return isinstance(self.content, (torch.Tensor, torch.Size))

    def type(self) -> _Value:
        return self

    def sizes(self) -> list[int]:
        return list(self.content.shape if isinstance(self.content, torch.Tensor) else self.content)

    def toIValue(self) -> Any:  # noqa: N802 - the name fvcore calls
        return self.content


@dataclass(frozen=True)
class _Formula:
    """A formula of `fvcore.nn.jit_handles`, what to hand it, and whether it counts multiply-adds."""

    name: str
    arguments: Callable[[Any], Sequence[Any]] = lambda args: args
    options: tuple[int, ...] | None = None  # for the handles that are made by a function
    multiply_adds: bool = True


def _padded(args: Any) -> Sequence[Any]:
    """The twelve arguments of `aten::_convolution`, of which `aten::convolution` has the first nine."""
    return (*args, *[None] * (12 - len(args)))


def _scores(args: Any) -> Sequence[Any]:
    """Query and key of an attention, heads folded into the batch: their product is as large as a bmm's."""
    query, key = args[0].shape, args[1].shape
    groups = math.prod(query[:-2])
    return torch.Size((groups, query[-2], query[-1])), torch.Size((groups, query[-1], key[-2]))


def _mixture(args: Any) -> Sequence[Any]:
    query, value = args[0].shape, args[2].shape
    groups = math.prod(query[:-2])
    return torch.Size((groups, query[-2], value[-2])), torch.Size((groups, value[-2], value[-1]))


def _flash_scores(func: Any) -> Callable[[Any], Sequence[Any]]:
    def scores(args: Any) -> Sequence[Any]:
        (groups, rows, columns), (_, keys, _), _ = flash.heads_first(func, args)
        return torch.Size((groups, rows, columns)), torch.Size((groups, columns, keys))

    return scores


def _flash_mixture(func: Any) -> Callable[[Any], Sequence[Any]]:
    def mixture(args: Any) -> Sequence[Any]:
        (groups, rows, _), (_, keys, _), (_, _, width) = flash.heads_first(func, args)
        return torch.Size((groups, rows, keys)), torch.Size((groups, keys, width))

    return mixture


def _first_two(args: Any) -> Sequence[Any]:
    """Rows of all groups together, or of what is scaled, times a matrix."""
    left, right = args[0].shape, args[1].shape
    return torch.Size(left[-2:]), torch.Size((left[-1], right[-1]))


_MATMUL = (_Formula("matmul_flop_jit"),)
_CONVOLUTION = (_Formula("conv_flop_jit", _padded),)
_BATCH_NORM = (_Formula("batchnorm_flop_jit", multiply_adds=False),)
_ATTENTION = (_Formula("bmm_flop_jit", _scores), _Formula("bmm_flop_jit", _mixture))

# Rows as fvcore's own tables have them (fvcore/nn/flop_count.py), for the operators these become when they run.
FORMULAS: dict[Any, tuple[_Formula, ...]] = {
    aten.mm.default: _MATMUL,
    aten.addmm.default: (_Formula("addmm_flop_jit"),),
    aten._grouped_mm.default: (_Formula("matmul_flop_jit", _first_two),),
    aten._scaled_mm.default: (_Formula("matmul_flop_jit", _first_two),),
    aten.bmm.default: (_Formula("bmm_flop_jit"),),
    aten.baddbmm.default: (_Formula("bmm_flop_jit", lambda args: args[1:3]),),
    aten.convolution.default: _CONVOLUTION,
    aten.cudnn_batch_norm.default: _BATCH_NORM,
    aten.native_batch_norm.default: _BATCH_NORM,
    aten.native_layer_norm.default: (_Formula("norm_flop_counter", options=(2,), multiply_adds=False),),
    aten.native_group_norm.default: (_Formula("norm_flop_counter", options=(1,), multiply_adds=False),),
    aten.upsample_nearest2d.default: (_Formula("elementwise_flop_counter", options=(0, 1), multiply_adds=False),),
    aten.upsample_bilinear2d.default: (_Formula("elementwise_flop_counter", options=(0, 4), multiply_adds=False),),
    aten._adaptive_avg_pool2d.default: (_Formula("elementwise_flop_counter", options=(1, 0), multiply_adds=False),),
    aten.grid_sampler_2d.default: (_Formula("elementwise_flop_counter", options=(0, 4), multiply_adds=False),),
    aten._scaled_dot_product_flash_attention.default: _ATTENTION,
    aten._scaled_dot_product_efficient_attention.default: _ATTENTION,
    aten._scaled_dot_product_cudnn_attention.default: _ATTENTION,
    **{func: (_Formula("bmm_flop_jit", _flash_scores(func)), _Formula("bmm_flop_jit", _flash_mixture(func))) for func in (flash.FORWARD, flash.FORWARD3)},
}


@functools.cache
def _handle(name: str, options: tuple[int, ...] | None) -> Callable[[Any, Any], Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts two of its losses when it is imported
        from fvcore.nn import jit_handles

    handle: Any = getattr(jit_handles, name)
    return handle if options is None else handle(*options)


def count(func: Any, args: Any, output: torch.Tensor) -> Count | None:
    """What fvcore counts for a forward operator with this (first) output, or None where it has no formula for it, or one that fails on these shapes."""
    formulas = FORMULAS.get(func)
    if formulas is None:
        return None
    flops, activations = 0, 0
    for formula in formulas:
        try:
            found = _handle(formula.name, formula.options)([_Value(value) for value in formula.arguments(args)], [_Value(output)])
        except Exception:  # fvcore asserts how many dimensions there are, and which arguments
            return None
        amount = sum(found.values()) if isinstance(found, dict) else found
        flops += int(amount) * (2 if formula.multiply_adds else 1)
        activations = output.numel() if formula.multiply_adds else 0
    return Count(flops, activations)


def rows_of(operator: str, module: str, phase: str, work: Work, counted: Count) -> list[Row]:
    """What an operator computes and moves: a row for each matrix product in it, and one for what is done beside them."""
    products = work.products or ((0, 0, 0, 0),)
    shared = (work.moved_bytes / len(products), work.launches / len(products), counted.flops / len(products), counted.activations / len(products))
    rows = [Row(operator, module, phase, work.kind, work.dtype, (*product, *shared)) for product in products]
    if work.beside_bytes:
        rows.append(Row(operator, module, phase, "beside convolution", work.dtype, (0, 0, 0, 0, work.beside_bytes, work.beside_launches, 0, 0)))
    return rows
