# SPDX-License-Identifier: Apache-2.0
"""Which fused attention CUDA picks, and how its inputs are prepared.

Source: aten/src/ATen/native/transformers/attention.cpp and transformers/cuda/sdp_utils.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bsmodel.recording.cuda_like.buffers import HALVES

aten = torch.ops.aten


@dataclass(frozen=True)
class Attention:
    """One call of `scaled_dot_product_attention` on a device of compute capability `capability`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    causal: bool
    scale: float | None
    gqa: bool
    capability: tuple[int, int]

    @property
    def needs_grad(self) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (self.query, self.key, self.value))


def choose(call: Attention) -> str:
    """Name the backend PyTorch takes: cudnn first on Hopper and data-centre Blackwell, then flash, efficient, math."""
    prefers_cudnn = call.capability in ((9, 0), (10, 0))
    order = ("cudnn", "flash", "efficient") if prefers_cudnn else ("flash", "efficient", "cudnn")
    allowed = {"cudnn": _cudnn_applies, "flash": _flash_applies, "efficient": _efficient_applies}
    enabled = {
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    }
    return next((name for name in order[: 3 if prefers_cudnn else 2] if enabled[name]() and allowed[name](call)), "math")


def _shapes_apply(call: Attention) -> bool:
    tensors = (call.query, call.key, call.value)
    return (
        all(t.dim() == 4 for t in tensors)
        and all(t.dtype == call.query.dtype for t in tensors)
        and len({t.size(0) for t in tensors}) == 1
        and call.query.size(2) > 0
        and call.key.size(2) > 0
        and _last_dimension_is_dense(call)
    )


def _last_dimension_is_dense(call: Attention) -> bool:
    mask_dense = call.mask is None or call.mask.stride(-1) == 1 or call.mask.size(-1) == 1
    return mask_dense and all(t.stride(-1) == 1 for t in (call.query, call.key, call.value))


def _heads_apply(call: Attention, gqa_supported: bool) -> bool:
    heads = [t.size(1) for t in (call.query, call.key, call.value)]
    if call.gqa and gqa_supported:
        return heads[1] == heads[2] and heads[0] % heads[1] == 0
    return len(set(heads)) == 1


def _half_applies(call: Attention) -> bool:
    return call.query.dtype in (HALVES if call.capability >= (8, 0) else (torch.float16,))


def _flash_applies(call: Attention) -> bool:
    head = call.query.size(-1)
    same_heads = head == call.key.size(-1) == call.value.size(-1)
    square = not call.causal or call.query.size(2) == call.key.size(2)
    narrow = call.capability in ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1)) and call.needs_grad
    head_applies = head <= 256 and (not narrow or head <= 192 or (call.dropout == 0 and head > 224))
    return (
        call.capability >= (8, 0)
        and call.mask is None
        and call.query.dtype in HALVES
        and _shapes_apply(call)
        and _heads_apply(call, gqa_supported=True)
        and same_heads
        and square
        and head_applies
    )


def _efficient_applies(call: Attention) -> bool:
    half = call.query.dtype in HALVES
    tensor_cores = call.capability >= (8, 0) or (call.capability >= (7, 0) and half)
    alignment = 4 if call.capability >= (8, 0) else 1
    if tensor_cores:
        alignment = max(alignment, 8 if half else 4)
    dtypes = (torch.float16, torch.float32, torch.bfloat16) if call.capability >= (8, 0) else (torch.float16, torch.float32)
    return (
        call.query.dtype in dtypes
        and _shapes_apply(call)
        and _heads_apply(call, gqa_supported=False)
        and call.query.size(-1) == call.key.size(-1)
        and call.query.size(-1) % alignment == 0
        and call.value.size(-1) % alignment == 0
    )


def _cudnn_applies(call: Attention) -> bool:
    heads = (call.query.size(-1), call.value.size(-1))
    return (
        call.capability >= (8, 0)
        and not (call.mask is not None and call.mask.requires_grad)
        and _half_applies(call)
        and _shapes_apply(call)
        and _heads_apply(call, gqa_supported=True)
        and all(head <= (256 if call.capability == (9, 0) else 128) and head % 8 == 0 for head in heads)
        and call.key.size(2) != 1
        and not (call.dropout and call.query.size(2) == 1)
    )


def attend(call: Attention) -> Any:
    """Run the call as the chosen backend does, inputs prepared as CUDA prepares them."""
    return {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient, "math": _math}[choose(call)](call)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None or mask.dtype is not torch.bool:
        return mask
    zero, lowest = (torch.full((), value, dtype=dtype, device=mask.device) for value in (0.0, -math.inf))
    return torch.where(mask, zero, lowest)


def _pad_last(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -tensor.size(-1) % multiple
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _cudnn(call: Attention) -> Any:
    mask = _additive(call.mask, call.query.dtype)
    if mask is not None:
        mask = mask.expand(call.query.size(0), call.query.size(1), call.query.size(2), call.key.size(2))
    return aten._scaled_dot_product_cudnn_attention(
        call.query, call.key, call.value, mask, call.needs_grad, call.dropout, call.causal, False, scale=call.scale
    )[0]


def _flash(call: Attention) -> Any:
    head = call.query.size(-1)
    scale = call.scale if call.scale is not None else 1 / math.sqrt(head)
    query, key, value = (_pad_last(t, 8) for t in (call.query, call.key, call.value))
    output = aten._scaled_dot_product_flash_attention(query, key, value, call.dropout, call.causal, False, scale=scale)[0]
    return output if query.size(-1) == head else output[..., :head]


def _efficient(call: Attention) -> Any:
    mask = _additive(call.mask, call.query.dtype)
    if mask is not None:
        if any(stride % 8 for stride in mask.stride()[:-1]) or mask.stride(-1) != 1 or mask.size(-1) % 8:
            mask = _pad_last(mask, 8)[..., : call.key.size(2)]
        mask = mask.expand(call.query.size(0), call.query.size(1), call.query.size(2), call.key.size(2))
    return aten._scaled_dot_product_efficient_attention(call.query, call.key, call.value, mask, call.needs_grad, call.dropout, call.causal, scale=call.scale)[0]


def _math(call: Attention) -> Any:
    was_enabled = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", False)
    try:
        return aten._scaled_dot_product_attention_math(
            call.query,
            call.key,
            call.value,
            _additive(call.mask, call.query.dtype),
            call.dropout,
            call.causal,
            None,
            scale=call.scale,
            enable_gqa=call.gqa,
        )[0]
    finally:
        torch.set_autocast_enabled("cuda", was_enabled)
