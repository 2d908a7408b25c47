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

from bsmodel.cuda_like.shapes import conv_format

aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Buffer:
    """A buffer inside a kernel: a number of bytes, and a formula of `bsmodel.workspaces` for what is no line in the batch.

    `before` is the number of the output it precedes (by default it follows them all); `brief` ones are freed at once, others with the
    operator's end. Where a library sizes the buffer by rules nobody publishes, it may be as much as `excess_bytes` larger, or not there at all;
    None elsewhere.
    """

    size_bytes: int = 0
    formula: str = ""
    parameters: tuple[int, ...] = ()
    before: int | None = None
    brief: bool = False
    excess_bytes: int | None = None


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


NO_BUFFERS = Kernel()


def cublas_handle(capability: tuple[int, int]) -> Handle:
    """cuBLAS' workspace per handle and stream: 32 MiB on Hopper, 8.125 MiB elsewhere (aten/src/ATen/cuda/CublasHandlePool.cpp)."""
    return Handle("cuBLAS workspace", 4096 * 8 * 1024 if capability[0] == 9 else 4096 * 2 * 1024 + 16 * 8 * 1024)


LT_HANDLE = Handle("cuBLASLt workspace", 1 << 20)  # aten/src/ATen/cuda/CUDABlas.cpp, gemm_and_bias; 1 MiB by default


def _gemm(args: Any, capability: tuple[int, int]) -> Kernel:
    return Kernel(handles=(cublas_handle(capability),))


def _addmm(args: Any, capability: tuple[int, int]) -> Kernel:
    """A matmul with a vector bias goes to cuBLASLt, which fuses the addition (aten/src/ATen/native/cuda/Blas.cpp)."""
    fused = (LT_HANDLE,) if args[0].dim() == 1 and args[0].is_contiguous() else ()
    return Kernel(handles=(cublas_handle(capability), *fused))


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
        return NO_BUFFERS
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


def _efficient_blocks(head: int, half: bool, capability: tuple[int, int]) -> tuple[int, int, bool]:
    """Rows and columns of the blocks that query gradients accumulate in, and whether key gradients need memory too."""
    large = capability in ((8, 0), (9, 0), (10, 0))
    if not half:
        return (128 if large and head > 64 else 64), 64, False
    if head <= 64:
        return 64, 64, False
    if large and head <= 128:
        return 128, 128, False
    return (64, 64, True) if not large and capability >= (8, 0) and 96 < head <= 128 else (128, 64, head > (96 if capability >= (8, 0) else 128))


def _efficient_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Row sums (through a float32 product where inputs are float32) and the accumulators of query, and wide key, gradients.

    Source: aten/src/ATen/native/transformers/cuda/attention_backward.cu and mem_eff_attention/kernel_backward.h, workspace_size.
    """
    query, key, value = args[1], args[2], args[3]
    batch, heads, length, head = query.shape
    wide = max(head, value.size(-1))
    rows, columns, keys = _efficient_blocks(wide, query.dtype in _HALVES, capability)
    per_head = _rounded(length, rows) // rows * (_rounded(head, columns) // columns) * (16 + 4 * rows * columns)
    if keys:
        per_head += columns * 4 * (_rounded(head, rows) + _rounded(value.size(-1), rows)) * (_rounded(key.size(2), columns) // columns)
    delta = batch * heads * length * 4
    product = (Buffer(query.numel() * 4, brief=True),) if query.dtype is torch.float32 else ()
    return Kernel((*product, Buffer(delta), Buffer(batch * heads * per_head)))


def _cudnn_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """cuDNN's workspace: float32 query gradients, row sums, and expanded key and value gradients where heads are shared.

    Measured as the library's own plan reports it (cuDNN 9.19); aten/src/ATen/native/cudnn/MHA.cpp allocates it.
    """
    query, key = args[1], args[2]
    batch, heads, length, head = query.shape
    shared = 2 * batch * key.size(2) * heads * head * query.element_size() if key.size(1) != heads else 0
    return Kernel((Buffer(batch * heads * length * (head + 1) * 4 + shared + 256),))


# -- convolutions ----------------------------------------------------------------------------------------------------------------------


def _pointwise(weight: torch.Tensor) -> bool:
    return math.prod(weight.shape[2:]) == 1


def depthwise(tensor: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    """Whether a convolution gives every channel filters of its own."""
    return groups > 1 and groups == tensor.size(1) and weight.size(0) % groups == 0


def _native_depthwise(tensor: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    """PyTorch's own depthwise kernel, which takes no workspace: all but half precision, in the contiguous layout.

    Source: aten/src/ATen/native/Convolution.cpp, use_cudnn_depthwise.
    """
    if not depthwise(tensor, weight, groups) or conv_format(tensor, weight) is torch.channels_last:
        return False
    half = tensor.dtype in _HALVES and weight.size(2) in (1, 3, 5) and weight.size(2) == weight.size(3) and tensor.size(1) % 32 == 0
    return not half


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_matmul(tensor: torch.Tensor, weight: torch.Tensor, stride: Any) -> bool:
    """Whether a pointwise convolution of contiguous images is one matmul per image: rows of pixels aligned to 16 bytes, none skipped."""
    return _pointwise(weight) and set(stride) == {1} and math.prod(tensor.shape[2:]) * tensor.element_size() % 16 == 0


def _padded(tensor: torch.Tensor) -> int:
    """Bytes with the channel dimension padded: tensor cores want aligned channels."""
    alignment = 8 if tensor.dtype is torch.bfloat16 else 4
    return _bytes(tensor) // tensor.size(1) * _rounded(tensor.size(1), alignment)


def tensor_core(tensor: torch.Tensor, capability: tuple[int, int]) -> bool:
    """Whether cuDNN convolves this tensor on tensor cores: half precision, and float32 as TF32 from Ampere on."""
    return tensor.dtype in _HALVES or capability >= (8, 0)


def _layout_copies(layout: torch.memory_format, *tensors: torch.Tensor, before: int | None = None) -> tuple[Buffer, ...]:
    """Copies of the operands that are not in the layout cuDNN computes in; they live as long as the operator."""
    return tuple(Buffer(_bytes(t), before=before) for t in tensors if t.dim() == 4 and not t.is_contiguous(memory_format=layout))


def _convolution(args: Any, capability: tuple[int, int]) -> Kernel:
    """cuDNN's tensor-core kernels compute channels-last: they convert operands in a workspace where the tensors are not.

    In the contiguous layout half precision converts input, weight and output, float32 (TF32) input and weight; channels-last half
    precision only pads narrow inputs; TF32 also rounds operands before Hopper. Pointwise kernels convert only rows that are not
    aligned, where channels get no more; native depthwise kernels take no workspace, nor does float32 without tensor cores. Where the
    plan depends on unpublished heuristics (the contiguous layout) the excess reaches all three operands. As cuDNN 9.19 reports its
    plans; PyTorch takes the first (aten/src/ATen/native/cudnn/Conv_v8.cpp).
    """
    tensor, weight, transposed, groups = args[0], args[1], args[6], args[8]
    layout = conv_format(tensor, weight)
    copies = (*_layout_copies(layout, tensor, before=0), *_layout_copies(layout, weight))
    last = layout is torch.channels_last
    if _native_depthwise(tensor, weight, groups) or not tensor_core(tensor, capability) or tensor.dim() != 4:
        return Kernel(copies)
    if _pointwise(weight):
        both = _bytes(tensor) + _output_bytes(tensor, weight, args)
        if last:
            return Kernel(copies)
        converts = not _is_matmul(tensor, weight, args[3]) and (set(args[3]) != {1} or weight.size(0) <= weight.size(1))
        return Kernel((*copies, Buffer(both if converts else 0, brief=True, excess_bytes=0 if converts else both)))
    operands = _padded(tensor) + _padded(weight)
    if last and (depthwise(tensor, weight, groups) or transposed):
        return Kernel(copies)
    if tensor.dtype in _HALVES:
        narrow = _padded(tensor) != _bytes(tensor)
        workspace = (operands if narrow else 0) if last else operands + _output_bytes(tensor, weight, args)
    else:
        workspace = 0 if last and capability >= (9, 0) else operands
    excess = 0 if last else operands + _output_bytes(tensor, weight, args) - workspace
    return Kernel((*copies, Buffer(workspace, brief=True, excess_bytes=excess)) if workspace else copies)


def _output_bytes(tensor: torch.Tensor, weight: torch.Tensor, args: Any) -> int:
    stride, padding, dilation, extra = (list(args[i]) * (tensor.dim() - 2) if len(args[i]) == 1 else list(args[i]) for i in (3, 4, 5, 7))
    each = list(zip(tensor.shape[2:], weight.shape[2:], stride, padding, dilation, extra, strict=True))
    if args[6]:
        channels, sides = weight.size(1) * args[8], [(size - 1) * s - 2 * p + d * (k - 1) + more + 1 for size, k, s, p, d, more in each]
    else:
        channels, sides = weight.size(0), [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d, _ in each]
    return int(tensor.size(0) * channels * math.prod(sides) * tensor.element_size())


def _convolution_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Workspaces of the two gradients, each after its output and freed at once; see `_convolution`."""
    gradient, tensor, weight, transposed, groups, mask = args[0], args[1], args[2], args[7], args[9], args[10]
    layout = conv_format(tensor, weight)
    last, pair = layout is torch.channels_last, _bytes(tensor) + _bytes(gradient)
    copies = _layout_copies(layout, gradient, tensor, weight, before=0)
    bias = (_sum_over_rows(gradient),) if mask[2] and last else ()
    if _native_depthwise(tensor, weight, groups) or tensor.dim() != 4 or not tensor_core(tensor, capability):
        return Kernel((*copies, *bias))
    everything = _padded(tensor) + _padded(weight) + _bytes(gradient)
    split = (weight.size(0), weight.numel() // weight.size(0))
    if _pointwise(weight):
        converts = not _is_matmul(tensor, weight, args[4]) and not last
        narrows = set(args[4]) != {1} or weight.size(0) >= weight.size(1)
        partial = 0 if last or groups > 1 else 4 * tensor.size(0) * weight.numel()
        data, filters, split = (pair if narrows else 0, pair, split) if converts else (0, partial, (0, 0))
    elif depthwise(tensor, weight, groups):
        wide = max(weight.shape[2:]) > 5
        data, filters, split = (0, 4 * pair if wide else 0, (0, 0)) if last else (everything, everything, (0, 0))
    elif tensor.dtype in _HALVES:
        narrow = everything - _bytes(gradient) if _padded(tensor) != _bytes(tensor) else 0
        data, filters = (narrow, narrow) if last else (everything, everything)
    elif capability >= (9, 0):
        data, filters, split = (0, 0, (0, 0)) if last else (everything, everything, (0, 0))
    else:
        data, filters = (_bytes(gradient) + _bytes(weight), pair) if last else (everything, everything)
    if transposed and last:
        data, filters = 0, 0
    if capability >= (9, 0):
        split = (0, 0)
    known = last or (_pointwise(weight) and filters != pair)
    excess = (0 if last else everything - data, 0 if known else everything - filters)
    buffers = [Buffer(data, before=1, brief=True, excess_bytes=excess[0])] if mask[0] and data + excess[0] else []
    if mask[1]:
        buffers.append(Buffer(filters, "filter gradient", split, before=2 if mask[0] else 1, brief=True, excess_bytes=excess[1]))
    return Kernel((*copies, *buffers, *bias))


def _sum_over_rows(gradient: torch.Tensor) -> Buffer:
    channels = gradient.size(1)
    vector = next(v for v in (4, 2, 1) if channels % v == 0)
    return Buffer(formula="reduction", parameters=(channels, gradient.numel() // channels, 1, vector), brief=True)


# -- norms, softmax, losses ------------------------------------------------------------------------------------------------------------


def _group_norm(args: Any, capability: tuple[int, int]) -> Kernel:
    """Scale and shift per channel, float32 (aten/src/ATen/native/cuda/group_norm_kernel.cu)."""
    return Kernel((Buffer(4 * args[3] * args[4]), Buffer(4 * args[3] * args[4])))


def _group_norm_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Sums per channel, and three terms per group and channel (aten/src/ATen/native/cuda/group_norm_kernel.cu)."""
    batch, channels, groups = args[5], args[6], args[8]
    return Kernel((*[Buffer(4 * batch * channels)] * 3, *[Buffer(4 * batch * groups)] * 2))


def _softmax_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Gradient times output, made before the kernel runs (aten/src/ATen/native/cuda/SoftMax.cu)."""
    return Kernel((Buffer(_bytes(args[0]), brief=True),))


def _elementwise_loss(args: Any, capability: tuple[int, int]) -> Kernel:
    """The elementwise loss, before it is reduced (aten/src/ATen/native/Loss.cpp)."""
    reduced = len(args) < 3 or args[2] != 0
    return Kernel((Buffer(_bytes(args[0]), brief=True),)) if reduced else NO_BUFFERS


KERNELS: dict[Any, Callable[[Any, tuple[int, int]], Kernel]] = {
    aten.mm.default: _gemm,
    aten.addmm.default: _addmm,
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
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten._softmax_backward_data.default: _softmax_backward,
    aten.mse_loss.default: _elementwise_loss,
    aten.smooth_l1_loss.default: _elementwise_loss,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}


# Memory that an operator takes and nobody publishes a rule for: named in every answer, never silently zero.
UNCOUNTED = {aten.cudnn_batch_norm.default: "workspace and reserve of cuDNN's batch norm"}  # aten/src/ATen/native/cudnn/BatchNorm.cpp


def kernel_of(func: Any, args: Any, capability: tuple[int, int]) -> Kernel:
    """Look up what `func` allocates inside CUDA's implementation; operators without a row allocate only their outputs."""
    rule = KERNELS.get(func)
    return NO_BUFFERS if rule is None else rule(args, capability)
