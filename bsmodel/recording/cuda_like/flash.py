# SPDX-License-Identifier: Apache-2.0
"""The packages `flash_attn` (FlashAttention-2) and `flash_attn_interface` (FlashAttention-3) as programs call them, whether installed or not.

FlashAttention-2 is the family of kernels that PyTorch has as `aten._flash_attention_forward`: it keeps and allocates the same. Version 3 has an
operator here. Source: Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py, csrc/flash_attn/flash_api.cpp, hopper/flash_api.cpp.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

from bsmodel.recording.cuda_like.buffers import HALVES, Buffer, Kernel, rounded

aten = torch.ops.aten
_library = torch.library.Library("bsmodel", "DEF")
_ROWS = "Tensor q, Tensor k, Tensor v{}, int sequences, int max_q, int max_k, bool causal"  # sequences: 0 where all are of one length
_library.define(f"flash3_attention({_ROWS.format('')}) -> (Tensor, Tensor)")
_library.define(f"flash3_attention_backward(Tensor gradient, {_ROWS.format(', Tensor output, Tensor sums')}) -> (Tensor, Tensor, Tensor)")


def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequences: int, max_q: int, max_k: int, causal: bool) -> Any:
    sums = (q.size(1), q.size(0)) if sequences else (q.size(0), q.size(2), q.size(1))
    return torch.empty((*q.shape[:-1], v.size(-1)), dtype=q.dtype, device=q.device), q.new_empty(sums, dtype=torch.float32)


def _backward(gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


_library.impl("flash3_attention", _forward, "Meta")
_library.impl("flash3_attention_backward", _backward, "Meta")
FORWARD3, BACKWARD3 = torch.ops.bsmodel.flash3_attention.default, torch.ops.bsmodel.flash3_attention_backward.default
FORWARD, BACKWARD = aten._flash_attention_forward.default, aten._flash_attention_backward.default


def head_size(head: int) -> int:
    """Columns that FlashAttention-2 accumulates query gradients in."""
    return rounded(head, 32) if head <= 192 else 256


def backward2(args: Any, capability: tuple[int, int]) -> Kernel:
    """Row sums, float32 query gradients, and expanded key and value gradients where heads are shared.

    Source: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd and mha_varlen_bwd.
    """
    query, key, offsets = args[1], args[2], args[6]
    heads, head = query.shape[-2:]
    rows = query.size(0) * rounded(query.size(1), 128) if query.dim() == 4 else query.size(0) + 128 * (offsets.numel() - 1)
    buffers = [Buffer(rows * heads * 4), Buffer(rows * heads * head_size(head) * 4)]
    if key.size(-2) != heads:
        buffers += [Buffer(key.numel() // key.size(-2) * heads * key.element_size())] * 2
    return Kernel(tuple(buffers))


def backward3(args: Any, capability: tuple[int, int]) -> Kernel:
    """Row sums twice, float32 query gradients, and float32 key and value gradients where heads are shared.

    Sequences of several lengths are padded together; the last rounding, of less than a block of rows, is taken at its most.
    Source: hopper/flash_api.cpp, mha_bwd.
    """
    query, key, sequences, causal = args[1], args[2], args[6], args[9]
    heads, head = query.shape[-2:]
    wide = next(size for size in (64, 96, 128, 192, 256) if head <= size)
    rows, columns = _blocks3(wide, causal, capability)

    def padded(tensor: torch.Tensor, block: int) -> int:
        return tensor.size(0) * rounded(tensor.size(1), block) if not sequences else tensor.size(0) + sequences * block + block - 1

    queries = padded(query, rows) * heads
    buffers = [Buffer(queries * 4), Buffer(queries * 4), Buffer(queries * wide * 4)]
    if key.size(-2) != heads:
        buffers += [Buffer(padded(key, columns) * key.size(-2) * wide * 4)] * 2
    return Kernel(tuple(buffers))


def _blocks3(wide: int, causal: bool, capability: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the blocks that backward computes in."""
    if capability >= (9, 0):
        rows = 128 if wide <= 64 else 64 if wide <= 96 or wide > 128 or causal else 80
        return rows, 128 if wide <= 128 else 96 if wide <= 192 else 80
    if capability in ((8, 6), (8, 9)):
        return 64 if wide <= 192 else 32, 128 if wide <= 96 else 96 if wide <= 128 else 64
    return 128 if wide <= 64 else 64, 128 if wide <= 128 else 80 if wide <= 192 else 64


def heads_first(func: Any, args: Any) -> list[tuple[int, int, int]]:
    """Sizes (groups, rows, columns) of query, key and value; sequences of several lengths count as if all had as many keys as the longest."""
    operands = args[1:4] if func in (BACKWARD, BACKWARD3) else args[0:3]
    keys = {FORWARD: 6, BACKWARD: 9, FORWARD3: 5, BACKWARD3: 8}[func]
    query = operands[0]
    if query.dim() == 4:
        return [(tensor.size(0) * query.size(2), tensor.size(1), tensor.size(3)) for tensor in operands]
    return [(query.size(1), query.size(0), query.size(2)), *((query.size(1), args[keys], tensor.size(2)) for tensor in operands[1:])]


# -- what programs call ----------------------------------------------------------------------------------------------------------------


def _require(version: int, query: torch.Tensor, deterministic: bool, probabilities: bool) -> None:
    """Raises `RuntimeError` for what the package refuses, and `NotImplementedError` for what is not recorded."""
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0) or (version == 3 and capability > (9, 0)):
        wanted = "compute capability 8.0 or above" if version == 2 else "compute capability 8.0 to 9.0"
        raise RuntimeError(f"FlashAttention-{version} runs on GPUs of {wanted}, this one has {capability[0]}.{capability[1]}; take attention sdpa")
    if query.dtype not in HALVES:
        raise RuntimeError(f"FlashAttention-{version} takes float16 and bfloat16, not {str(query.dtype).removeprefix('torch.')}")
    if query.size(-1) > 256:
        raise RuntimeError(f"FlashAttention-{version} takes heads of up to 256, not {query.size(-1)}")
    if deterministic or probabilities:
        what = "deterministic=True, whose buffers are no line in the batch," if deterministic else "return_attn_probs=True"
        raise RuntimeError(f"FlashAttention-{version} with {what} is not recorded; leave it out")


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _padded(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, -tensor.size(-1) % 8)) if tensor.size(-1) % 8 else tensor


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of (batch, length, heads, head size), FlashAttention-2."""
    _require(2, q, deterministic, return_attn_probs)
    q, k, v = (_padded(_dense(tensor)) for tensor in (q, k, v))
    return aten._flash_attention_forward(q, k, v, None, None, q.size(1), k.size(1), dropout_p, causal, False)[0][..., : v.size(-1)]


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> Any:
    """Attention of sequences one after another, (tokens, heads, head size), FlashAttention-2."""
    _require(2, q, deterministic, return_attn_probs)
    q, k, v = (_padded(_dense(tensor)) for tensor in (q, k, v))
    longest = int(max_seqlen_q), int(max_seqlen_k)
    return aten._flash_attention_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, *longest, dropout_p, causal, False)[0][..., : v.size(-1)]


class _Attention3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *sizes: Any) -> torch.Tensor:
        output, sums = FORWARD3(q, k, v, *sizes)
        ctx.save_for_backward(q, k, v, output, sums)
        ctx.sizes = sizes
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return (*BACKWARD3(_dense(gradient), *ctx.saved_tensors, *ctx.sizes), None, None, None, None)


def _flash3_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of (batch, length, heads, head size), FlashAttention-3."""
    _require(3, q, deterministic, return_attn_probs)
    return _Attention3.apply(*(map(_dense, (q, k, v))), 0, q.size(1), k.size(1), causal)


def _flash3_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of sequences one after another, (tokens, heads, head size), FlashAttention-3."""
    _require(3, q, deterministic, return_attn_probs)
    return _Attention3.apply(*(map(_dense, (q, k, v))), cu_seqlens_q.numel() - 1, int(max_seqlen_q), int(max_seqlen_k), causal)


class _Taken(torch.autograd.Function):
    """Rows by their numbers; back in backward, each has one place (flash_attn/bert_padding.py)."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = rows.size(0)
        return rows.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _put(gradient, ctx.saved_tensors[0], ctx.rows), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(indices)
        return _put(values, indices, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient[ctx.saved_tensors[0]], None, None


def _put(values: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
    output = torch.zeros(rows, *values.shape[1:], device=values.device, dtype=values.dtype)
    output[indices] = values
    return output


def _unpad_input(hidden_states: torch.Tensor, attention_mask: torch.Tensor, unused_mask: torch.Tensor | None = None) -> Any:
    """Tokens of all sequences without their padding, their places, the offset of each sequence, the longest, and the lengths."""
    mask = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths, used = mask.sum(dim=-1, dtype=torch.int32), attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero(mask.flatten(), as_tuple=False).flatten()
    offsets = torch.nn.functional.pad(torch.cumsum(lengths, dim=0, dtype=torch.int32), (1, 0))
    return _Taken.apply(hidden_states.flatten(0, 1), indices), indices, offsets, lengths.max().item(), used


def _pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """The tokens back in their places, zeros between them."""
    return _Put.apply(hidden_states, indices, batch * seqlen).unflatten(0, (batch, seqlen))


def _not_recorded(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{name} is not recorded; flash_attn_func and flash_attn_varlen_func are")

    return refuse


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__path__ = []
    vars(module).update(contents)
    return module


_REFUSED = ("flash_attn_with_kvcache", "flash_attn_qkvpacked_func", "flash_attn_kvpacked_func", "flash_attn_varlen_qkvpacked_func")
_TWO = {"flash_attn_func": flash_attn_func, "flash_attn_varlen_func": flash_attn_varlen_func, **{name: _not_recorded(name) for name in _REFUSED}}
_THREE = {"flash_attn_func": _flash3_func, "flash_attn_varlen_func": _flash3_varlen_func, **{name: _not_recorded(name) for name in _REFUSED}}
_PADDING = {"pad_input": _pad_input, "unpad_input": _unpad_input, "index_first_axis": _Taken.apply, "index_put_first_axis": _Put.apply}
_MODULES = {
    "flash_attn": _module("flash_attn", __version__="2.8.3", **_TWO),
    "flash_attn.flash_attn_interface": _module("flash_attn.flash_attn_interface", **_TWO),
    "flash_attn.bert_padding": _module("flash_attn.bert_padding", **_PADDING),
    "flash_attn_interface": _module("flash_attn_interface", **_THREE),
}
_LOADED = (
    *("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn"),
    *("_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"),
)


@contextmanager
def pretended() -> Iterator[None]:
    """Within this context both packages can be imported, and transformers finds them, whenever it is imported."""
    with ExitStack() as stack:
        for name, module in _MODULES.items():
            stack.callback(_restore, name, sys.modules.get(name))
            sys.modules[name] = module
        for name, change in _CHANGED.items():
            if name in sys.modules:
                change(sys.modules[name], stack)
        later = _Later(stack)
        sys.meta_path.insert(0, later)
        stack.callback(sys.meta_path.remove, later)
        yield


class _Later(MetaPathFinder):
    """Changes modules of transformers that are imported after the context has begun."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in _CHANGED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            _CHANGED[name](module, self.stack)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


FLEX = (
    "flex_attention is not recorded: compiled it is a kernel that Inductor writes for its masks, by itself it computes every score; "
    "take attention sdpa or flash_attention_2"
)


def refuse_flex(*args: Any, **kwargs: Any) -> Any:
    """Raises `NotImplementedError`: what flex attention allocates is Inductor's choice."""
    raise NotImplementedError(FLEX)


def _restore(name: str, module: ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


def _without_flex(masking: ModuleType, stack: ExitStack) -> None:
    """The masks of flex attention are compiled for a CUDA device before attention itself is."""
    masks = masking.AttentionMaskInterface._global_mapping
    if "flex_attention" in masks:
        stack.callback(masks.update, flex_attention=masks["flex_attention"])
        masks["flex_attention"] = refuse_flex


def _found(utils: ModuleType, stack: ExitStack) -> None:
    """transformers asks for distributions and a CUDA device once, and remembers the answer and the functions."""
    changed = [f"is_flash_attn_{version}_available" for version in (2, 3)]
    stack.callback(vars(utils).update, {name: vars(utils)[name] for name in (*_LOADED, *changed) if name in vars(utils)})
    vars(utils).update(dict.fromkeys(changed, lambda *args, **kwargs: True), _loaded_implementation=None)
    for version in (2, 3):
        rules = getattr(utils, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", {}).get(version, {})
        if rules:
            stack.callback(rules.update, dict(rules))
            rules["general_availability_check"] = lambda *args, **kwargs: True


_CHANGED = {"transformers.modeling_flash_attention_utils": _found, "transformers.masking_utils": _without_flex}
