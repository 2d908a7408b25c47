# SPDX-License-Identifier: Apache-2.0
"""Operators that are made of others on CUDA, which a dispatch mode would not see: below autograd, in terms of operators that are there, too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bsmodel.recording.cuda_like import distances

aten = torch.ops.aten


def _gemm_4bit(
    rows: torch.Tensor,
    packed: torch.Tensor,
    shape: Sequence[int],
    scales: torch.Tensor,
    block: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    scales_8bit: torch.Tensor | None = None,
    code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """The whole weight in the dtype of the rows, and a product with it: what is done for many rows (bitsandbytes/backends/cuda/ops.py, 0.50).

    Before 0.50 always; since then up to 1,536 rows may have a kernel that unpacks as it multiplies, and takes less.
    """
    unpack = torch.ops.bitsandbytes
    if scales_8bit is not None:
        unpacked = unpack.dequantize_blockwise.default(scales_8bit, scales, code, 256, torch.float32)
        scales = unpacked + offset
    weight = unpack.dequantize_4bit.default(packed, scales, block, quant_type, shape, rows.dtype)
    flat = (rows if rows.is_contiguous() else rows.clone(memory_format=torch.contiguous_format)).view(-1, rows.size(-1))
    product = flat.mm(weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
    return product.view(*rows.shape[:-1], -1)


def _quantize_rows(rows: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows in 8 bits with a scale each, and the columns that are kept out: none (bitsandbytes/backends/cuda/ops.py)."""
    scales = rows.new_empty(rows.numel() // rows.size(-1), dtype=torch.float32)
    codes = torch.empty_like(rows, dtype=torch.int8)
    if threshold <= 0:
        return codes, scales, None
    outliers = rows.abs() >= threshold
    outliers.any()
    return codes, scales, rows.new_empty(0, dtype=torch.long)


def _mixed_product(
    rows: torch.Tensor,
    codes: torch.Tensor,
    weight: torch.Tensor,
    row_scales: torch.Tensor,
    scales: torch.Tensor,
    columns: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in 8 bits, and what is kept out of it: nothing."""
    return _scaled_product(codes, weight, row_scales, scales, bias, rows.dtype), rows.new_empty(0)


def _scaled_product(
    codes: torch.Tensor,
    weight: torch.Tensor,
    row_scales: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Sums in int32, float16 of them, and these in the dtype that is asked for."""
    sums = torch.ops.bitsandbytes.int8_linear_matmul.default(codes, weight)
    product = torch.empty_like(sums, dtype=torch.float16)
    if bias is not None and bias.dtype is not torch.float16:
        product.add_(bias)
    return product if dtype in (None, torch.float16) else aten._to_copy.default(product, dtype=dtype)


_OF_LIBRARIES: dict[str, Callable[..., Any]] = {  # by name: they may not be installed
    "bitsandbytes::gemm_4bit": _gemm_4bit,
    "bitsandbytes::int8_vectorwise_quant": _quantize_rows,
    "bitsandbytes::int8_mixed_scaled_mm": _mixed_product,
    "bitsandbytes::int8_scaled_mm": _scaled_product,
}
OUTLIERS = "columns of outliers, which products in 8 bits keep out, and the arithmetic of these products"


def composite(func: Any) -> Callable[..., Any] | None:
    """What an operator is made of; None for one that is a kernel."""
    return distances.COMPOSITES.get(func) or _OF_LIBRARIES.get(func._schema.name) or _decomposed(func)


@functools.cache
def _decomposed(func: Any) -> Callable[..., Any] | None:
    """What PyTorch itself makes of others above dispatch modes, and which comes by whole where it is called below autograd: inside tensor subclasses."""
    kernel = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), torch._C.DispatchKey.CPU)
    return func.decompose if func._can_decompose() and not kernel else None


def uncounted(func: Any, given: Sequence[torch.Tensor]) -> set[str]:
    """What is not counted of it, for these operands."""
    if func._schema.name == "bitsandbytes::int8_mixed_scaled_mm":
        return {OUTLIERS}
    few = func in distances.COMPOSITES and max(tensor.size(-2) for tensor in given) <= distances.FEW_ROWS
    return {distances.UNCOUNTED} if few else set()
