# SPDX-License-Identifier: Apache-2.0
"""Memory that CUDA kernels take inside an operator, beyond what they return.

A recording sees the outputs of an operator only. What its CUDA implementation allocates besides (library workspaces, staging
buffers, copies in another layout) is written here, one function per operator, each naming its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Buffer:
    """A buffer inside a kernel: a number of bytes, and a formula of `bsmodel.workspaces` for what is no line in the batch.

    `before` is the number of the output it precedes (by default it follows them all); `brief` ones are freed at once, others with the
    operator's end.
    """

    size_bytes: int = 0
    formula: str = ""
    parameters: tuple[int, ...] = ()
    before: int | None = None
    brief: bool = False


@dataclass(frozen=True)
class Handle:
    """A library handle with a workspace that is allocated at first use in a thread and kept."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Kernel:
    """What one operator allocates on CUDA besides its outputs."""

    buffers: tuple[Buffer, ...] = ()
    handles: tuple[Handle, ...] = ()


_PLAIN = Kernel()


def cublas_handle(capability: tuple[int, int]) -> Handle:
    """cuBLAS' workspace per handle and stream: 32 MiB on Hopper, 8.125 MiB elsewhere (aten/src/ATen/cuda/CublasHandlePool.cpp)."""
    return Handle("cuBLAS workspace", 4096 * 8 * 1024 if capability[0] == 9 else 4096 * 2 * 1024 + 16 * 8 * 1024)


def _gemm(args: Any, capability: tuple[int, int]) -> Kernel:
    return Kernel(handles=(cublas_handle(capability),))


# -- reductions and embeddings ---------------------------------------------------------------------------------------------------------


def _reduction(args: Any, capability: tuple[int, int]) -> Kernel:
    """Sums split over thread blocks stage partial results in global memory (aten/src/ATen/native/cuda/Reduce.cuh)."""
    tensor = args[0]
    given = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
    dimensions = {d % tensor.dim() for d in given} if given else set(range(tensor.dim()))
    inputs = math.prod(tensor.size(d) for d in dimensions)
    outputs = tensor.numel() // max(1, inputs)
    wide = [d for d in range(tensor.dim()) if tensor.size(d) > 1]
    if not wide or inputs < 2:
        return _PLAIN
    fastest = min(wide, key=tensor.stride)
    along_rows = fastest not in dimensions
    vector = next(v for v in (4, 2, 1) if tensor.size(fastest) % v == 0) if along_rows and tensor.stride(fastest) == 1 else 1
    return Kernel((Buffer(formula="reduction", parameters=(outputs, inputs, int(along_rows), vector), brief=True),))


def _embedding_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """More than 3072 indices are sorted first (aten/src/ATen/native/cuda/Embedding.cu)."""
    gradient, indices, rows = args[:3]
    parameters = (indices.numel(), rows, gradient.size(-1))
    return Kernel((Buffer(formula="embedding indices", parameters=parameters, before=0), Buffer(formula="embedding partials", parameters=parameters)))


def _safe_softmax(args: Any, capability: tuple[int, int]) -> Kernel:
    """Rows that are masked out entirely are found by a comparison as large as the scores (aten/src/ATen/native/SoftMax.cpp)."""
    scores = args[0]
    return Kernel((Buffer(scores.numel()), Buffer(scores.numel() // max(1, scores.size(-1)))))


# -- attention -------------------------------------------------------------------------------------------------------------------------


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _flash_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Row sums, float32 query gradients, and expanded key and value gradients where heads are shared.

    Source: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd.
    """
    query, key = args[1], args[2]
    batch, heads, length, head = query.shape
    rows = batch * heads * _rounded(length, 128)
    buffers = [Buffer(rows * 4), Buffer(rows * _rounded(head, 32) * 4)]
    if key.size(1) != heads:
        buffers += [Buffer(batch * key.size(2) * heads * head * query.element_size())] * 2
    return Kernel(tuple(buffers))


def _efficient_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Row sums (through a float32 product where inputs are float32) and the accumulator of query gradients.

    Source: aten/src/ATen/native/transformers/cuda/attention_backward.cu and mem_eff_attention/kernel_backward.h, gradient workspaces.
    """
    query = args[1]
    batch, heads, length, head = query.shape
    delta = Buffer(batch * heads * length * 4)
    product = (Buffer(query.numel() * 4, brief=True),) if query.dtype is torch.float32 else ()
    blocks = _rounded(length, 128) // 128
    workspace = batch * heads * blocks * (128 * _rounded(head, 64) * 4 + 32)
    return Kernel((*product, delta, Buffer(workspace)))


def _cudnn_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """cuDNN's workspace: float32 query gradients, row sums, and expanded key and value gradients where heads are shared.

    Measured as the library's own plan reports it (cuDNN 9.19); aten/src/ATen/native/cudnn/MHA.cpp allocates it.
    """
    query, key = args[1], args[2]
    batch, heads, length, head = query.shape
    shared = 2 * batch * key.size(2) * heads * head * query.element_size() if key.size(1) != heads else 0
    return Kernel((Buffer(batch * heads * length * (head + 1) * 4 + shared + 256),))


# -- convolutions ----------------------------------------------------------------------------------------------------------------------


def _is_channels_last(tensor: torch.Tensor) -> bool:
    if tensor.dim() != 4:
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _pointwise(weight: torch.Tensor) -> bool:
    return math.prod(weight.shape[2:]) == 1


def _depthwise(tensor: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    return groups > 1 and groups == tensor.size(1) and weight.size(0) % groups == 0


def _native_depthwise(tensor: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    """PyTorch's own depthwise kernel, which takes no workspace: all but half precision (aten/src/ATen/native/Convolution.cpp)."""
    return _depthwise(tensor, weight, groups) and tensor.dtype not in _HALVES and not _is_channels_last(tensor)


def _padded(tensor: torch.Tensor, channels: int) -> int:
    """Bytes with the channel dimension padded to four: tensor cores need aligned channels."""
    return tensor.numel() * tensor.element_size() // channels * _rounded(channels, 4)


def _conv_operands(tensor: torch.Tensor, weight: torch.Tensor) -> tuple[int, int]:
    return _padded(tensor, tensor.size(1)), _padded(weight, weight.size(1))


def _convolution(args: Any, capability: tuple[int, int]) -> Kernel:
    """cuDNN's tensor-core kernels are channels-last: they convert operands in a workspace where the tensors are not.

    Half precision converts input, weight and output; float32 (TF32) input and weight, in either layout. Pointwise and native depthwise
    kernels take none. Volta and Turing compute float32 without tensor cores and convert nothing.
    """
    tensor, weight, transposed, groups = args[0], args[1], args[6], args[8]
    output = _output_bytes(tensor, weight, args)
    inputs, weights = _conv_operands(tensor, weight)
    if _native_depthwise(tensor, weight, groups) or _pointwise(weight) or transposed:
        return _PLAIN
    if tensor.dtype in _HALVES:
        exact = inputs == tensor.numel() * tensor.element_size()
        return _PLAIN if _is_channels_last(tensor) and exact else Kernel((Buffer(inputs + weights + (0 if _is_channels_last(tensor) else output)),))
    return _PLAIN if capability < (8, 0) else Kernel((Buffer(inputs + weights),))


def _output_bytes(tensor: torch.Tensor, weight: torch.Tensor, args: Any) -> int:
    stride, padding, dilation = (list(values) * (tensor.dim() - 2) if len(values) == 1 else list(values) for values in (args[3], args[4], args[5]))
    sides = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(tensor.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)]
    return int(tensor.size(0) * weight.size(0) * math.prod(sides) * tensor.element_size())


def _convolution_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Workspaces of the two gradients, one after the other; see `_convolution`. Weight gradients also split their sum."""
    gradient, tensor, weight, mask, groups = args[0], args[1], args[2], args[10], args[9]
    if _native_depthwise(tensor, weight, groups) or args[7]:
        return _PLAIN
    copy = _gradient_copy(gradient, tensor)
    if _pointwise(weight):
        return Kernel(copy)
    inputs, weights = _conv_operands(tensor, weight)
    outputs = gradient.numel() * gradient.element_size()
    last, half = _is_channels_last(tensor), tensor.dtype in _HALVES
    if half:
        data, filters = (0, 0) if last else (inputs + weights + outputs, inputs + weights + outputs)
    elif capability < (8, 0):
        data, filters = 0, 0
    else:
        data, filters = (outputs + weights if last else inputs + outputs + weights), inputs + outputs + weights
    splits = not _depthwise(tensor, weight, groups) and (half or capability >= (8, 0))
    shape = (weight.size(0), weight.numel() // weight.size(0)) if splits else (0, 0)
    buffers = [Buffer(data, before=1, brief=True)] if mask[0] else []
    last_buffer = Buffer(filters, "filter gradient", shape, brief=True)
    return Kernel((*copy, *buffers, last_buffer) if mask[1] else (*copy, *buffers))


def _gradient_copy(gradient: torch.Tensor, tensor: torch.Tensor) -> tuple[Buffer, ...]:
    """The gradient is made contiguous in the layout of the convolution first (aten/src/ATen/native/Convolution.cpp)."""
    wanted = torch.channels_last if _is_channels_last(tensor) else torch.contiguous_format
    if gradient.dim() == 4 and gradient.is_contiguous(memory_format=wanted):
        return ()
    return () if gradient.is_contiguous() else (Buffer(gradient.numel() * gradient.element_size(), before=0),)


KERNELS: dict[Any, Callable[[Any, tuple[int, int]], Kernel]] = {
    aten.mm.default: _gemm,
    aten.addmm.default: _gemm,
    aten.bmm.default: _gemm,
    aten.baddbmm.default: _gemm,
    aten.addbmm.default: _gemm,
    aten.sum.dim_IntList: _reduction,
    aten.mean.dim: _reduction,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten._safe_softmax.default: _safe_softmax,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}


def kernel_of(func: Any, args: Any, capability: tuple[int, int]) -> Kernel:
    """Look up what `func` allocates inside CUDA's implementation; operators without a row allocate only their outputs."""
    rule = KERNELS.get(func)
    return _PLAIN if rule is None else rule(args, capability)
