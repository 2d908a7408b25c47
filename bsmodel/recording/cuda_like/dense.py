# SPDX-License-Identifier: Apache-2.0
"""Operands that a kernel copies first, where they are not dense in the layout it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bsmodel.recording.cuda_like.buffers import Buffer, tensor_bytes

aten = torch.ops.aten


@dataclass(frozen=True)
class Dense:
    """One operand: its argument, the output its copy precedes (None: after them all), and how it must lie.

    "rows": contiguous; "order": its dimensions in order, gaps or not; "image": contiguous or channels-last, whichever its strides suggest;
    "heads": contiguous once heads and rows are swapped, as fused attention reads it.
    """

    argument: int
    before: int | None = None
    layout: str = "rows"


# The function named reads the operand through `contiguous()` or `expect_contiguous()`; all under aten/src/ATen/native/cuda unless said otherwise.
DENSE: dict[Any, tuple[Dense, ...]] = {
    aten.native_layer_norm.default: (Dense(0, 0),),  # layer_norm_kernel.cu, layer_norm_cuda
    aten.native_layer_norm_backward.default: (Dense(1, 0), Dense(0)),  # layer_norm_kernel.cu, layer_norm_backward_cuda
    aten._softmax.default: (Dense(0),),  # SoftMax.cu, host_softmax
    aten._log_softmax.default: (Dense(0),),
    aten._softmax_backward_data.default: (Dense(0, layout="order"), Dense(1)),  # SoftMax.cu: the product of both, in the order of the first
    aten._log_softmax_backward_data.default: (Dense(0), Dense(1)),
    aten.embedding_dense_backward.default: (Dense(0, 0),),  # Embedding.cu, embedding_dense_backward_cuda
    aten._embedding_bag_backward.default: (Dense(0, 0),),  # EmbeddingBag.cu
    aten.roll.default: (Dense(0, 0),),  # TensorTransformations.cu, roll_cuda
    aten.cumsum.default: (Dense(0),),  # ScanKernels.cpp
    aten.max.default: (Dense(0),),  # aten/src/ATen/native/ReduceAllOps.cpp
    aten.min.default: (Dense(0),),
    aten.max_pool2d_with_indices.default: (Dense(0, layout="image"),),  # DilatedMaxPool2d.cu
    aten.max_pool2d_with_indices_backward.default: (Dense(0, layout="image"), Dense(1, layout="image")),
    aten.avg_pool2d.default: (Dense(0, layout="image"),),  # AveragePool2d.cu
    aten.avg_pool2d_backward.default: (Dense(1, layout="image"), Dense(0, layout="image")),
    aten.upsample_nearest2d_backward.default: (Dense(0, layout="image"),),  # UpSampleNearest2d.cu
    aten.upsample_bilinear2d_backward.default: (Dense(0, layout="image"),),  # UpSampleBilinear2d.cu
    aten.upsample_bicubic2d_backward.default: (Dense(0),),  # UpSampleBicubic2d.cu
    # transformers/cuda/attention_backward.cu: the gradient, and for flash attention the output
    aten._scaled_dot_product_flash_attention_backward.default: (Dense(0, 0, "heads"), Dense(4, 0, "heads")),
    aten._scaled_dot_product_efficient_attention_backward.default: (Dense(0, 0, "heads"),),
}


def copies(func: Any, args: Any) -> tuple[Buffer, ...]:
    """The copy of every operand that does not lie as the kernel reads it."""
    return tuple(
        Buffer(tensor_bytes(args[operand.argument]), before=operand.before)
        for operand in DENSE.get(func, ())
        if not _lies(args[operand.argument], operand.layout)
    )


def _lies(tensor: torch.Tensor, layout: str) -> bool:
    if layout == "order":
        strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
        return strides == sorted(strides, reverse=True)
    if layout == "heads":
        return tensor.transpose(1, 2).is_contiguous()
    if layout == "image":
        return tensor.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(tensor))
    return tensor.is_contiguous()
