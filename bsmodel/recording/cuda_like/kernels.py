# SPDX-License-Identifier: Apache-2.0
"""Memory that CUDA kernels take inside an operator, beyond what they return.

A recording sees the outputs of an operator only. What its CUDA implementation allocates besides (library workspaces, staging
buffers, copies in another layout) is written here, one function per operator, each naming its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bsmodel.recording.cuda_like import convolutions, distances, flash, fourier
from bsmodel.recording.cuda_like.buffers import HALVES, NO_BUFFERS, Buffer, Handle, Kernel, partial_sums, rounded, tensor_bytes
from bsmodel.recording.cuda_like.dense import copies
from bsmodel.recording.cuda_like.shapes import is_channels_last

aten = torch.ops.aten


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


def _scaled_mm(args: Any, capability: tuple[int, int]) -> Kernel:
    """A product of float8 goes to cuBLASLt, one with scales of rows and columns to CUTLASS but on Hopper (aten/src/ATen/native/cuda/ScaledBlas.cpp)."""
    return NO_BUFFERS if _by_cutlass(args, capability) else Kernel(handles=(cublas_handle(capability), LT_HANDLE))


def _by_cutlass(args: Any, capability: tuple[int, int]) -> bool:
    return args[2].dim() > 0 and capability[0] != 9


# -- reductions and embeddings ---------------------------------------------------------------------------------------------------------


def _reduction(args: Any, capability: tuple[int, int]) -> Kernel:
    given = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
    return Kernel((*_widened(args, capability).buffers, *partial_sums(args[0], given or range(args[0].dim()))))


def _extreme(args: Any, capability: tuple[int, int]) -> Kernel:
    """The largest and the smallest are kept in the dtype that they are of (aten/src/ATen/native/cuda/ReduceMaxValuesKernel.cu)."""
    given = args[1] if len(args) > 1 else None
    formula = "reduction of halves" if args[0].dtype in HALVES else "reduction"
    return Kernel(partial_sums(args[0], given or range(args[0].dim()), formula))


def _widened(args: Any, capability: tuple[int, int]) -> Kernel:
    """Masks and small integers are made int64 before they are summed (aten/src/ATen/native/ReduceOpsUtils.h, make_reduction_from_out_ty)."""
    narrow = not (args[0].is_floating_point() or args[0].is_complex() or args[0].dtype is torch.int64)
    return Kernel((Buffer(8 * args[0].numel(), brief=True),)) if narrow else NO_BUFFERS


def _embedding_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """More than 3072 indices are sorted first (aten/src/ATen/native/cuda/Embedding.cu)."""
    return _sorted_rows(*args[:3])


def _embedding_bag_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """The same for sums and means of rows (aten/src/ATen/native/cuda/EmbeddingBag.cu)."""
    return NO_BUFFERS if args[8] == 2 else _sorted_rows(args[0], args[1], args[6])


def _sorted_rows(gradient: torch.Tensor, indices: torch.Tensor, rows: int) -> Kernel:
    parameters = (indices.numel(), rows, gradient.size(-1))
    return Kernel((Buffer(formula="embedding indices", parameters=parameters, before=0), Buffer(formula="embedding partials", parameters=parameters)))


def _safe_softmax(args: Any, capability: tuple[int, int]) -> Kernel:
    """Rows that are masked out entirely are found by a comparison as large as the scores (aten/src/ATen/native/SoftMax.cpp)."""
    scores = args[0]
    return Kernel((Buffer(scores.numel()), Buffer(scores.numel() // max(1, scores.size(-1)))))


# -- attention -------------------------------------------------------------------------------------------------------------------------


def _flash_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Row sums, float32 query gradients, and expanded key and value gradients where heads are shared.

    Source: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd.
    """
    query, key = args[1], args[2]
    batch, heads, length, head = query.shape
    rows = batch * heads * rounded(length, 128)
    buffers = [Buffer(rows * 4), Buffer(rows * flash.head_size(head) * 4)]
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
    rows, columns, keys = _efficient_blocks(wide, query.dtype in HALVES, capability)
    per_head = rounded(length, rows) // rows * (rounded(head, columns) // columns) * (16 + 4 * rows * columns)
    if keys:
        per_head += columns * 4 * (rounded(head, rows) + rounded(value.size(-1), rows)) * (rounded(key.size(2), columns) // columns)
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


# -- norms, softmax, losses ------------------------------------------------------------------------------------------------------------


def _group_norm(args: Any, capability: tuple[int, int]) -> Kernel:
    """Scale and shift per channel, float32 (aten/src/ATen/native/cuda/group_norm_kernel.cu)."""
    return Kernel((Buffer(4 * args[3] * args[4]), Buffer(4 * args[3] * args[4])))


def _group_norm_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Sums per channel, and three terms per group and channel (aten/src/ATen/native/cuda/group_norm_kernel.cu)."""
    batch, channels, groups = args[5], args[6], args[8]
    return Kernel((*[Buffer(4 * batch * channels)] * 3, *[Buffer(4 * batch * groups)] * 2))


def _partial_statistics(tensor: torch.Tensor, values: int) -> Kernel:
    """Partial sums of a channels-last image, where its rows are split over thread blocks (aten/src/ATen/native/cuda/Normalization.cuh)."""
    if not is_channels_last(tensor):
        return NO_BUFFERS
    return Kernel((Buffer(formula="batch norm partials", parameters=(tensor.numel() // tensor.size(1), tensor.size(1), values)),))


def _batch_norm(args: Any, capability: tuple[int, int]) -> Kernel:
    return _partial_statistics(args[0], 4) if args[5] else NO_BUFFERS


def _batch_norm_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    return _partial_statistics(args[1], 2) if args[7] else NO_BUFFERS


def _softmax_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Gradient times output, made before the kernel runs (aten/src/ATen/native/cuda/SoftMax.cu)."""
    return Kernel((Buffer(tensor_bytes(args[0]), brief=True),))


def _elementwise_loss(args: Any, capability: tuple[int, int]) -> Kernel:
    """The elementwise loss, before it is reduced (aten/src/ATen/native/Loss.cpp)."""
    reduced = len(args) < 3 or args[2] != 0
    return Kernel((Buffer(tensor_bytes(args[0]), brief=True),)) if reduced else NO_BUFFERS


def _huber_loss(args: Any, capability: tuple[int, int]) -> Kernel:
    """The elementwise loss, made first and gone once it is reduced (aten/src/ATen/native/Loss.cpp)."""
    reduced = len(args) < 3 or args[2] != 0
    return Kernel((Buffer(tensor_bytes(args[0]), before=0),)) if reduced else NO_BUFFERS


def _ctc_loss(args: Any, capability: tuple[int, int]) -> Kernel:
    """Lengths and offsets as int64, brought to the device first (aten/src/ATen/native/cuda/LossCTC.cu)."""
    return Kernel((Buffer(8 * args[0].size(1), before=0),) * 3)


def _ctc_loss_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """The same, and as much again as forward kept of the prefixes; where samples or frames are many, gradients of blanks are sums of their own.

    Source: aten/src/ATen/native/cuda/LossCTC.cu, ctc_loss_backward_gpu_template, is_large; the sums are those of aten.logsumexp.
    """
    (frames, batch, labels), kept = args[1].shape, args[6]
    buffers = (*(Buffer(8 * batch, before=0),) * 3, Buffer(tensor_bytes(kept), before=0))
    if 2 * frames + 24 * batch // 10 + 2 * labels // 10 <= 450:
        return Kernel(buffers)
    rows = batch * frames
    blanks, sums = Buffer(rows * (kept.size(2) // 2 + 1) * kept.element_size()), Buffer(rows * kept.element_size())
    return Kernel((*buffers, blanks, sums, replace(sums, brief=True), blanks, sums))


KERNELS: dict[Any, Callable[[Any, tuple[int, int]], Kernel]] = {
    aten.mm.default: _gemm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _gemm,
    aten.dot.default: _gemm,
    aten.vdot.default: _gemm,
    aten.mv.default: _gemm,
    aten.addmv.default: _gemm,
    aten._grouped_mm.default: _gemm,
    aten._scaled_mm.default: _scaled_mm,
    aten.baddbmm.default: _gemm,
    aten.addbmm.default: _gemm,
    aten.sum.dim_IntList: _reduction,
    aten.sum.default: _widened,
    aten.mean.dim: _reduction,
    aten.amax.default: _extreme,
    aten.amin.default: _extreme,
    aten.max.default: _extreme,
    aten.min.default: _extreme,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten._embedding_bag_backward.default: _embedding_bag_backward,
    aten._safe_softmax.default: _safe_softmax,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    fourier.REAL_TO_COMPLEX: fourier.kernel,
    fourier.COMPLEX: fourier.kernel,
    fourier.COMPLEX_TO_REAL: fourier.kernel_to_real,
    flash.BACKWARD: flash.backward2,
    flash.BACKWARD3: flash.backward3,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten._softmax_backward_data.default: _softmax_backward,
    aten.mse_loss.default: _elementwise_loss,
    aten.smooth_l1_loss.default: _elementwise_loss,
    aten.huber_loss.default: _huber_loss,
    aten._ctc_loss.default: _ctc_loss,
    aten._ctc_loss_backward.default: _ctc_loss_backward,
    aten._cdist_backward.default: distances.cdist_backward,
    aten._pdist_backward.default: distances.pdist_backward,
    aten.convolution.default: convolutions.forward,
    aten.convolution_backward.default: convolutions.backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
}


# Memory that an operator takes and nobody publishes a rule for: named in every answer, never silently zero.
UNCOUNTED = {
    aten.cudnn_batch_norm.default: "workspace and reserve of cuDNN's batch norm",  # aten/src/ATen/native/cudnn/BatchNorm.cpp
    aten._cudnn_ctc_loss.default: "workspace of cuDNN's CTC loss",  # aten/src/ATen/native/cudnn/LossCTC.cpp
    aten._cudnn_ctc_loss.Tensor: "workspace of cuDNN's CTC loss",
    **dict.fromkeys((fourier.REAL_TO_COMPLEX, fourier.COMPLEX, fourier.COMPLEX_TO_REAL), "workspace of cuFFT's plans"),
}
_PARTIAL_TILES = "workspace of CUTLASS' products in float8 by rows, in forward: some 16 MiB for tall matrices"  # RowwiseScaledMM.cu, get_workspace_size


def uncounted(func: Any, args: Any, capability: tuple[int, int]) -> set[str]:
    """What of the memory of an operator is not counted."""
    if func is aten._scaled_mm.default:
        return {_PARTIAL_TILES} if _by_cutlass(args, capability) and capability[0] != 10 else set()
    return {UNCOUNTED[func]} if func in UNCOUNTED else set()


def kernel_of(func: Any, args: Any, capability: tuple[int, int]) -> Kernel:
    """Look up what `func` allocates inside CUDA's implementation; operators without a row allocate only their outputs."""
    rule = KERNELS.get(func)
    kernel = NO_BUFFERS if rule is None else rule(args, capability)
    return replace(kernel, buffers=(*copies(func, args), *kernel.buffers))
