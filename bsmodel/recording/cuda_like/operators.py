# SPDX-License-Identifier: Apache-2.0
"""Composite operators that PyTorch decomposes otherwise on CUDA than elsewhere: dropout, linear, attention, norms, distances."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from bsmodel.recording.cuda_like import autocast, distances
from bsmodel.recording.cuda_like.attention import Attention, attend
from bsmodel.recording.cuda_like.flash import refuse_flex

aten = torch.ops.aten
_capability: tuple[int, int] = (8, 0)


def set_capability(capability: tuple[int, int]) -> None:
    """Say which compute capability the pretended device has; attention depends on it."""
    global _capability
    _capability = capability


def _dropout(tensor: torch.Tensor, p: float, train: bool) -> Any:
    """`native_dropout`, which keeps a boolean mask (aten/src/ATen/native/Dropout.cpp, is_fused_kernel_acceptable)."""
    if autocast.on_device(tensor) and train and 0 < p < 1 and tensor.numel():
        return autocast.redispatch(aten.native_dropout, tensor, p, train)[0]
    return autocast.redispatch(aten.dropout, tensor, p, train)


def _linear(tensor: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """A bias is added in place where the input cannot be one matrix with it; on `meta` PyTorch never does so (aten/src/ATen/native/Linear.cpp)."""
    tensor, weight, bias = autocast.cast_lower((tensor, weight, bias))
    if bias is None or not autocast.on_device(tensor) or tensor.dim() == 2 or (tensor.dim() > 2 and tensor.is_contiguous()):
        return autocast.redispatch(aten.linear, tensor, weight, bias)
    with torch._C._ExcludeDispatchKeyGuard(autocast.KEYS):
        return torch.matmul(tensor, weight.t()).add_(bias)


def _mish_backward(gradient: torch.Tensor, tensor: torch.Tensor) -> Any:
    """One kernel on CUDA, a dozen elsewhere; that of silu has the same operands (aten/src/ATen/native/native_functions.yaml)."""
    return autocast.redispatch(aten.silu_backward if autocast.on_device(tensor) else aten.mish_backward, gradient, tensor)


def _scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if not autocast.on_device(query):
        return autocast.redispatch(aten.scaled_dot_product_attention, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    query, key, value, attn_mask = autocast.cast_lower((query, key, value, attn_mask))
    return attend(Attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, _capability))


def _batch_norm(
    tensor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """cuDNN's batch norm where it is eligible, else the native one (aten/src/ATen/native/Normalization.cpp)."""
    if autocast.on_device(tensor) and cudnn_enabled and _cudnn_normalizes(tensor, weight, bias, running_mean, running_var, training):
        dense = tensor.contiguous(memory_format=torch._prims_common.suggest_memory_format(tensor))
        return autocast.redispatch(aten.cudnn_batch_norm, dense, weight, bias, running_mean, running_var, training, momentum, eps)[0]
    if autocast.on_device(tensor):
        return autocast.redispatch(aten.native_batch_norm, tensor, weight, bias, running_mean, running_var, training, momentum, eps)[0]
    return autocast.redispatch(aten.batch_norm, tensor, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)


def _cudnn_normalizes(
    tensor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
) -> bool:
    """Whether cuDNN takes it; any epsilon does, its CUDNN_BN_MIN_EPSILON is 0."""
    largest = {True: {2: 131070}, False: {2: 262136}}[training].get(tensor.dim(), 880801 if training else 65535)
    running = (running_mean is not None) + (running_var is not None)
    return (
        tensor.dtype is not torch.float64
        and tensor.dtype is not torch.bfloat16
        and weight is not None
        and weight.dtype is not torch.float16
        and bias is not None
        and (running == 2 or (running == 0 and training))
        and tensor.size(0) <= largest
    )


class _FusedRmsNorm(torch.autograd.Function):
    """What the fused kernel keeps for backward: input, weight and one float32 statistic per row.

    A copy and a product stand for the kernels: they read and write as much.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, shape: list[int], weight: torch.Tensor | None) -> Any:
        output = tensor.contiguous().clone()
        statistics = tensor.new_empty((*tensor.shape[: tensor.dim() - len(shape)], *(1 for _ in shape)), dtype=torch.float32)
        ctx.save_for_backward(tensor, weight, statistics)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        tensor, weight, _ = ctx.saved_tensors
        result = tensor.contiguous() * gradient.contiguous()
        return result, None, None if weight is None else torch.empty_like(weight)


def _softmax(name: str) -> Callable[..., Any]:
    """softmax and log_softmax of float16 to float32 in one kernel (aten/src/ATen/native/SoftMax.cpp); else a cast comes first."""
    composite, fused = (aten.softmax.int, aten._softmax) if name == "softmax.int" else (aten.log_softmax.int, aten._log_softmax)

    def kernel(tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
        if autocast.is_active() and dtype is None and autocast.on_device(tensor) and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32):
            dtype = torch.float32
        if autocast.on_device(tensor) and tensor.dtype is torch.float16 and dtype is torch.float32:
            return autocast.redispatch(fused, tensor, dim, True)
        return autocast.redispatch(composite, tensor, dim, dtype)

    return kernel


def _rms_norm(tensor: torch.Tensor, normalized_shape: list[int], weight: torch.Tensor | None = None, eps: float | None = None) -> Any:
    """One fused kernel on CUDA where input and weight agree in dtype (aten/src/ATen/native/layer_norm.cpp)."""
    if autocast.is_active() and autocast.CASTS_RMS_NORM:
        tensor, weight = (autocast.cached_cast(value, torch.float32) for value in (tensor, weight))
    if autocast.on_device(tensor) and (weight is None or weight.dtype is tensor.dtype):
        with torch._C._ExcludeDispatchKeyGuard(autocast.KEYS):
            return _FusedRmsNorm.apply(tensor, normalized_shape, weight)
    return autocast.redispatch(aten.rms_norm, tensor, normalized_shape, weight, eps)


def _ctc_loss(
    scores: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> Any:
    """Lengths go to the host first, which a dispatch mode would leave out (aten/src/ATen/native/LossCTC.cpp)."""
    scores = autocast.cached_cast(scores, torch.float32) if autocast.is_active() else scores
    if not autocast.on_device(scores):
        return autocast.redispatch(aten.ctc_loss.Tensor, scores, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
    given, wanted = (length.to("cpu").tolist() for length in (input_lengths, target_lengths))
    if not _cudnn_takes(scores, targets, given, wanted, blank):
        return autocast.redispatch(aten.ctc_loss.IntList, scores, targets, given, wanted, blank, reduction, zero_infinity)
    if input_lengths.dtype is target_lengths.dtype is torch.int32:
        losses = autocast.redispatch(aten._cudnn_ctc_loss.Tensor, scores, targets, input_lengths, target_lengths, blank, False, zero_infinity)[0]
        return _reduced(losses, target_lengths, reduction)
    if not autocast.on_device(targets) and set(given) == {scores.size(0)}:
        losses = autocast.redispatch(aten._cudnn_ctc_loss.default, scores, targets, given, wanted, blank, False, zero_infinity)[0]
        return _reduced(losses, target_lengths, reduction)
    return autocast.redispatch(aten.ctc_loss.IntList, scores, targets, given, wanted, blank, reduction, zero_infinity)


def _cudnn_takes(scores: torch.Tensor, targets: torch.Tensor, given: list[int], wanted: list[int], blank: int) -> bool:
    """What both of cuDNN's interfaces for the CTC loss ask: short labels as int32, one after another (aten/src/ATen/native/cudnn/LossCTC.cpp)."""
    labels = targets.dtype is torch.int32 and targets.dim() == 1 and blank == 0
    short = all(label < 256 and label <= frames for frames, label in zip(given, wanted, strict=False))
    return torch.backends.cudnn.enabled and labels and short and scores.dim() == 3 and scores.dtype is torch.float32


def _reduced(losses: torch.Tensor, lengths: torch.Tensor, reduction: int) -> torch.Tensor:
    """The loss of each sample, their mean over the lengths of their labels, or their sum (aten/src/ATen/native/LossCTC.cpp, ctc_loss_impl)."""
    if reduction == 1:
        return (losses / lengths.to(losses).clamp_min(1)).mean()
    return losses.sum() if reduction == 2 else losses


@functools.cache
def register_all() -> None:
    """Register autocast's rules and this module's operators, once per process."""
    special: dict[str, Callable[..., Any]] = {
        "dropout": _dropout,
        "linear": _linear,
        "mish_backward": _mish_backward,
        "scaled_dot_product_attention": _scaled_dot_product_attention,
        "batch_norm": _batch_norm,
        "rms_norm": _rms_norm,
        "softmax.int": _softmax("softmax.int"),
        "log_softmax.int": _softmax("log_softmax.int"),
        "ctc_loss.Tensor": _ctc_loss,
        "cdist": distances.cdist,
    }
    autocast.register_all(elsewhere=tuple(special))
    for name, kernel in special.items():
        autocast.register(name, kernel)
    torch.ops.higher_order.flex_attention.py_impl(autocast.KEY)(refuse_flex)
