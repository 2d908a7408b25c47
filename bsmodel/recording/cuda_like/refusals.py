# SPDX-License-Identifier: Apache-2.0
"""What CUDA operators refuse and torch's shape functions accept: operands of several devices, or of dtypes that do not go together.

Every rule was tried on the operators of PyTorch 2.11's CUDA build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

# Operators that take operands from the host: copies, lengths, and indices.
_COPIES = frozenset(
    (
        aten.copy_.default,
        aten._to_copy.default,
        aten._pack_padded_sequence.default,
        aten._cudnn_ctc_loss.default,
    )
)
_INDEXED = frozenset(
    (
        aten.index.Tensor,
        aten.index_put.default,
        aten.index_put_.default,
        aten._index_put_impl_.default,
        aten._unsafe_index.Tensor,
        aten._unsafe_index_put.default,
    )
)


def mixed_devices(func: Any, args: Any, host: list[torch.Tensor]) -> None:
    """Raises `RuntimeError` for operands on the host beside others on the device; scalars may be, as everywhere in PyTorch."""
    if func in _COPIES:
        return
    indices = {id(index) for index in args[1]} if func in _INDEXED else set()
    for tensor in host:
        if tensor.dim() and id(tensor) not in indices:
            name, shape = func._schema.name.removeprefix("aten::"), tuple(tensor.shape)
            raise RuntimeError(f"{name} takes tensors of one device, not cuda:0 and cpu, where one of shape {shape} is; move it with .to(device)")


def _names(*tensors: Any) -> str:
    return " and ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)


def _same(*positions: int) -> Callable[[Any], str]:
    """These operands, where they are given, must have one dtype."""

    def check(args: Any) -> str:
        found = [args[position] for position in positions if position < len(args) and isinstance(args[position], torch.Tensor)]
        other = next((tensor for tensor in found if tensor.dtype is not found[0].dtype), None)
        return "" if other is None else f"operands of one dtype, not {_names(found[0], other)}"

    return check


def _norm(tensor: int, weight: int) -> Callable[[Any], str]:
    """Statistics and weights are of the input's dtype, or float32."""

    def check(args: Any) -> str:
        given, scale = args[tensor], args[weight]
        if scale is None or scale.dtype in (given.dtype, torch.float32):
            return ""
        return f"a weight of the input's dtype or float32, not {_names(given, scale)}"

    return check


def _long(position: int) -> Callable[[Any], str]:
    def check(args: Any) -> str:
        return "" if args[position].dtype in (torch.long, torch.uint8) else f"class labels of dtype int64, not {_names(args[position])}"

    return check


_DTYPES: dict[Any, Callable[[Any], str]] = {
    aten.mm.default: _same(0, 1),
    aten.addmm.default: _same(1, 2, 0),
    aten.mv.default: _same(0, 1),
    aten.addmv.default: _same(1, 2, 0),
    aten.bmm.default: _same(0, 1),
    aten.baddbmm.default: _same(1, 2, 0),
    aten.convolution.default: _same(0, 1, 2),
    aten.native_layer_norm.default: _same(0, 2, 3),
    aten.native_group_norm.default: _norm(0, 1),
    aten.native_batch_norm.default: _norm(0, 1),
    aten.cudnn_batch_norm.default: _norm(0, 1),
    aten.index_put.default: _same(0, 2),
    aten.index_put_.default: _same(0, 2),
    aten.index_add.default: _same(0, 3),
    aten.index_add_.default: _same(0, 3),
    aten.nll_loss_forward.default: _long(1),
    aten.nll_loss2d_forward.default: _long(1),
    aten.binary_cross_entropy.default: _same(0, 1),
}


def mixed_dtypes(func: Any, args: Any) -> None:
    """Raises `RuntimeError` for operands of dtypes that the CUDA operator does not take."""
    check = _DTYPES.get(func)
    wanted = check(args) if check is not None else ""
    if wanted:
        raise RuntimeError(f"{func._schema.name.removeprefix('aten::')} takes {wanted}")
