# SPDX-License-Identifier: Apache-2.0
"""What an operator does on the device: the matrix products it computes and the bytes it moves.

One row per operator that is more than "read the inputs, write the outputs"; each names where the passes over memory come from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bsmodel.recording.cuda_like import flash
from bsmodel.recording.cuda_like.buffers import Kernel, tensor_bytes
from bsmodel.recording.cuda_like.convolutions import depthwise, is_matmul, native_depthwise, tensor_core
from bsmodel.recording.cuda_like.shapes import conv_format, is_channels_last, is_view

aten = torch.ops.aten
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8", torch.float8_e5m2: "fp8"}


@dataclass(frozen=True)
class Work:
    """One operator: `products` of `m x k` by `k x n` matrices in `groups`, the bytes it reads and writes, and the kernels it launches."""

    kind: str  # a key of `bsmodel.timing.KINDS`
    dtype: str
    moved_bytes: int
    products: tuple[tuple[int, int, int, int], ...] = ()  # groups, m, n, k
    launches: int = 1
    beside_bytes: int = 0  # that kernels of their own move before and after a convolution: other layouts, biases
    beside_launches: int = 0


def moved_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's distinct elements: a dimension that is only expanded costs nothing."""
    strides = tensor.stride()
    if 0 not in strides:
        return tensor_bytes(tensor)
    sizes = [size for size, stride in zip(tensor.size(), strides, strict=True) if stride or not size]
    return math.prod(sizes) * tensor.element_size()


def _sum(values: Sequence[Any]) -> int:
    return sum(moved_bytes(value) for value in values if isinstance(value, torch.Tensor) and value.is_meta)


# -- operators without a kernel ---------------------------------------------------------------------------------------------------------

_FREE = ("aten::_unsafe_view", "aten::empty", "aten::new_empty", "aten::lift", "aten::_reshape_alias", "aten::set_", "aten::resize", "aten::_local_scalar")
_WRITE_ONLY = ("aten::zero_", "aten::fill_", "aten::copy_", "aten::normal_", "aten::uniform_", "aten::bernoulli_", "aten::random_")


@functools.cache
def _launches_nothing(func: Any) -> bool:
    return is_view(func) or func._schema.name.startswith(_FREE)


# -- matrix products --------------------------------------------------------------------------------------------------------------------


def _matmul(args: Any, outputs: Any) -> tuple[tuple[int, int, int, int], ...]:
    left, right = args[-2:]
    groups = left.size(0) if left.dim() == 3 else 1
    return ((groups, left.size(-2), right.size(-1), left.size(-1)),)


def _first_two(args: Any, outputs: Any) -> tuple[tuple[int, int, int, int], ...]:
    """Scaled or grouped matrices; all groups as one product: together they have these rows, however they are shared out."""
    left, right = args[:2]
    return ((1, left.size(-2), right.size(-1), left.size(-1)),)


def _convolution(args: Any, outputs: Any) -> tuple[tuple[int, int, int, int], ...]:
    """As an implicit matrix product over output pixels."""
    tensor, weight, groups = args[0], args[1], args[8]
    pixels = (tensor if args[6] else outputs[0]).numel() // (tensor if args[6] else outputs[0]).size(1)
    channels = tensor.size(1) if args[6] else weight.size(0)
    return ((groups, pixels, channels // groups, weight.numel() // channels),)


def _convolution_backward(args: Any, outputs: Any) -> tuple[tuple[int, int, int, int], ...]:
    """The gradient of the input over input pixels, that of the weight over weights; as many multiply-adds each as forward."""
    gradient, tensor, weight, transposed, groups, mask = args[0], args[1], args[2], args[7], args[9], args[10]
    inner, outer = (gradient, tensor) if transposed else (tensor, gradient)
    channels = weight.size(0) // groups
    per_filter = weight.numel() // weight.size(0)
    out_pixels, in_pixels = outer.numel() // outer.size(1), inner.numel() // inner.size(1)
    found = []
    if mask[0]:
        total = out_pixels * channels * per_filter
        rows = in_pixels if not transposed else out_pixels
        columns = tensor.size(1) // groups
        found.append((groups, rows, columns, max(1, total // max(1, rows * columns))))
    if mask[1]:
        found.append((groups, channels, per_filter, out_pixels))
    return tuple(found)


def _converted(func: Any, args: Any, outputs: Sequence[torch.Tensor], capability: tuple[int, int]) -> int:
    """Bytes moved to bring operands to channels-last and the result back: tensor cores compute in that layout only.

    Source: NVIDIA, Convolutional Layers User's Guide, tensor layouts: the conversion is automatic; each operand is read and written once more.
    Pointwise convolutions of aligned rows are matrix products as they lie, but that of the filters where its partial sums, one for each image,
    are larger than what it would convert (cuDNN 9.19 plans; in a kernel table of ResNet-50 on an A100 16 of 36 keep partial sums). Of cuDNN's
    depthwise kernels for contiguous float16 those count that convert on every card: for the gradient of the filters, and of the input of wide ones.
    """
    forward = func is aten.convolution.default
    tensor, weight, groups, stride = (args[0], args[1], args[8], args[3]) if forward else (args[1], args[2], args[9], args[4])
    if conv_format(tensor, weight) is torch.channels_last or not tensor_core(tensor, capability):
        return 0
    result = outputs[0] if forward else args[0]
    passes = [True] if forward else list(args[10][:2])
    if depthwise(tensor, weight, groups):
        own = forward or native_depthwise(tensor, weight, groups, stride)
        passes = [] if own else [passes[0] and weight.size(-1) > 3, passes[1]]
    elif is_matmul(tensor, weight, stride):
        passes = [] if forward else [passes[1] and 4 * tensor.size(0) * weight.numel() > _sum([tensor, result])]
    return 2 * _sum([tensor, weight, result]) * sum(passes)


def _bias(func: Any, args: Any, outputs: Sequence[torch.Tensor]) -> int:
    """Bytes moved for a bias that is added to the output of cuDNN in place, and for its gradient, a sum (aten/src/ATen/native/Convolution.cpp)."""
    if func is aten.convolution.default:
        added = args[2] is not None and not native_depthwise(args[0], args[1], args[8], args[3])
        return 2 * moved_bytes(outputs[0]) if added else 0
    return moved_bytes(args[0]) if args[10][2] else 0


def _convolution_work(func: Any, args: Any, outputs: Sequence[torch.Tensor], work: Work, capability: tuple[int, int]) -> Work:
    """An implicit matrix product, with what runs beside it; depthwise kernels multiply on the float32 units, and those have Winograd's for 3 x 3."""
    forward = func is aten.convolution.default
    tensor, weight, groups, stride = (args[0], args[1], args[8], args[3]) if forward else (args[1], args[2], args[9], args[4])
    products = _convolution(args, outputs) if forward else _convolution_backward(args, outputs)
    converted, bias = _converted(func, args, outputs, capability), _bias(func, args, outputs)
    beside_launches = (3 * len(products) if converted else 0) + bool(bias)
    work = replace(work, launches=max(1, len(products)), beside_bytes=converted + bias, beside_launches=beside_launches)
    if depthwise(tensor, weight, groups):
        return _depthwise_work(tensor, weight, groups, stride, products, work)
    plain = set(args[3 if forward else 4]) == {1} and set(args[5 if forward else 6]) == {1} and groups == 1
    winograd = plain and tuple(weight.shape[2:]) == (3, 3) and not tensor_core(tensor, capability)
    kind = "winograd convolution" if winograd else "convolution" if groups == 1 else _grouped_kind(tensor, weight, groups, capability)
    return replace(work, kind=kind, products=products)


def _grouped_kind(tensor: torch.Tensor, weight: torch.Tensor, groups: int, capability: tuple[int, int]) -> str:
    """Channels-last, cuDNN packs narrow groups of a power of two channels into one block; else each has blocks of its own.

    Contiguous ones of up to 16 channels take smaller tiles (timm, results/benchmark-infer-amp-nchw-pt113 to -pt291, RegNetX-002, -004, -008).
    """
    channels = weight.size(0) // groups
    if conv_format(tensor, weight) is torch.channels_last and tensor_core(tensor, capability) and channels in (4, 8, 16, 32):
        return "narrow grouped convolution"
    return "grouped convolution" if channels > 16 else "convolution"


# Sides of the filters for which cuDNN has depthwise kernels channels-last: 7 x 7 runs at 0.1 to 0.6 of the float32 rate, 9 x 9 at 0.01 (timm,
# results/benchmark-infer-amp-nhwc-pt113 to -pt240 and -dynamo-pt240 to -pt291, convmixer; n = 7 and 14).
_DEPTHWISE_SIDE = 7


def _depthwise_work(tensor: torch.Tensor, weight: torch.Tensor, groups: int, stride: Any, products: Any, work: Work) -> Work:
    """A tap for each of a filter's weights and each output pixel; where cuDNN has no kernel, groups of one channel, each in a tile of its own."""
    channels_last = conv_format(tensor, weight) is torch.channels_last
    if channels_last and max(weight.shape[2:]) > _DEPTHWISE_SIDE:
        return replace(work, kind="grouped convolution", products=products)
    taps = weight.numel() // weight.size(0)
    multiplied = products[0][0] * products[0][1] * products[0][2] * products[0][3]
    kind = "native depthwise convolution" if native_depthwise(tensor, weight, groups, stride) else "depthwise convolution"
    return replace(work, kind=kind, products=((weight.size(0), multiplied // weight.numel(), taps, 1),) * len(products))


def _attention(func: Any, args: Any, causal: bool) -> tuple[int, int, int, int]:
    """Both products of an attention as one, of width `d_key + d_value`; a causal mask leaves out half the keys."""
    if func in _LENGTHS_FIRST:
        (groups, rows, columns), (_, keys, _), (_, _, width) = flash.heads_first(func, args)
    else:
        query, key, value = args[1:4] if func._schema.name.endswith("backward") else args[0:3]
        groups, rows, columns, keys, width = math.prod(query.shape[:-2]), query.size(-2), query.size(-1), key.size(-2), value.size(-1)
    return (groups, rows, (keys + 1) // 2 if causal else keys, columns + width)


_CAUSAL = {  # where the arguments say so
    aten._scaled_dot_product_flash_attention.default: 4,
    aten._scaled_dot_product_efficient_attention.default: 6,
    aten._scaled_dot_product_cudnn_attention.default: 6,
    aten._scaled_dot_product_flash_attention_backward.default: 11,
    aten._scaled_dot_product_efficient_attention_backward.default: 11,
    aten._scaled_dot_product_cudnn_attention_backward.default: 14,
    flash.FORWARD: 8,
    flash.BACKWARD: 11,
    flash.FORWARD3: 6,
    flash.BACKWARD3: 9,
}
_LENGTHS_FIRST = (flash.FORWARD, flash.BACKWARD, flash.FORWARD3, flash.BACKWARD3)


def _attention_work(func: Any, args: Any, work: Work) -> Work:
    """Backward computes five products where forward computes two: scores again, and the gradients of scores, query, key and value."""
    backend = next(name for name in ("flash", "efficient", "cudnn") if name in func._schema.name)
    backward = func._schema.name.endswith("backward")
    position = _CAUSAL[func]
    causal = bool(args[position]) if len(args) > position and isinstance(args[position], bool) else False
    groups, m, n, k = _attention(func, args, causal)
    kind = f"{backend} attention backward" if backward else f"{backend} attention"
    return replace(work, kind=kind, products=((groups, m, n, k * 5 // 2 if backward else k),), launches=3 if backward else 1)


# -- passes over memory -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Passes:
    """How often a kernel goes over its large input (or another argument) beyond once, and in how many launches."""

    kind: str = "elementwise"
    argument: int = 0
    again: int = 0
    launches: int = 1


_PASSES: dict[Any, _Passes] = {
    # mean and variance first, then the normalised values (cuDNN's persistent kernels keep small images on chip: not counted on)
    aten.cudnn_batch_norm.default: _Passes("norm", 0, 1),
    aten.native_batch_norm.default: _Passes("norm", 0, 1, 2),
    # two sums over input and gradient, then the input's gradient
    aten.cudnn_batch_norm_backward.default: _Passes("norm", 0, 2),
    aten.native_batch_norm_backward.default: _Passes("norm", 0, 2, 2),
    aten.native_layer_norm.default: _Passes("norm"),  # a row stays on chip
    # one kernel for the input's gradient, one more pass for those of weight and bias (aten/src/ATen/native/cuda/layer_norm_kernel.cu)
    aten.native_layer_norm_backward.default: _Passes("norm", 0, 2, 2),
    aten.native_group_norm.default: _Passes("norm", 0, 1, 3),
    aten.native_group_norm_backward.default: _Passes("norm", 0, 2, 4),
    aten._softmax.default: _Passes("norm"),
    aten._log_softmax.default: _Passes("norm"),
    aten._safe_softmax.default: _Passes("norm", 0, 2, 4),
    aten._softmax_backward_data.default: _Passes("norm", 0, 2, 2),
    aten._log_softmax_backward_data.default: _Passes("norm"),
    aten.embedding_dense_backward.default: _Passes("elementwise", 0, 2, 8),  # sort, segments, sums
}
# Batch norms, which have a thread block for each channel of a contiguous input, and the position of that.
_BATCH_NORMS = {
    aten.cudnn_batch_norm.default: 0,
    aten.native_batch_norm.default: 0,
    aten.cudnn_batch_norm_backward.default: 0,
    aten.native_batch_norm_backward.default: 1,
}
_GATHERS = (aten.embedding.default, aten.index_select.default, aten.gather.default)
_PRODUCTS: dict[Any, tuple[str, Callable[[Any, Any], tuple[tuple[int, int, int, int], ...]]]] = {
    aten.mm.default: ("matmul", _matmul),
    aten.addmm.default: ("matmul", _matmul),
    aten.bmm.default: ("matmul", _matmul),
    aten.baddbmm.default: ("matmul", _matmul),
    aten.addbmm.default: ("matmul", _matmul),
    aten._grouped_mm.default: ("matmul", _first_two),
    aten._scaled_mm.default: ("matmul", _first_two),
}
_CHUNK_ELEMENTS, _TENSORS_A_LAUNCH = 65_536 * 320, 64  # aten/src/ATen/native/cuda/MultiTensorApply.cuh: blocks and tensors one launch takes


def work_of(func: Any, args: Any, given: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], kernel: Kernel, capability: tuple[int, int]) -> Work | None:
    """What one operator does on a device of this capability, or None where it launches nothing (views, allocations).

    `given`: the tensors among its arguments, lists opened; `outputs`: its device tensors; `kernel`: buffers inside, each written and read once.
    """
    if _launches_nothing(func):
        return None
    if func._schema.name.startswith(("aten::_foreach", "aten::_fused", "aten::_amp_foreach")):
        return _over_lists(func, args, given, outputs)
    dtype = _NAMES.get(next((tensor.dtype for tensor in (*given, *outputs) if tensor.is_floating_point()), None), "fp32")  # type: ignore[arg-type]
    work = Work("elementwise", dtype, _read(func, args, given, outputs) + _sum(outputs))
    inner = replace(work, moved_bytes=work.moved_bytes + 2 * sum(buffer.size_bytes for buffer in kernel.buffers))
    if func in (aten.convolution.default, aten.convolution_backward.default):
        work = work if _converted(func, args, outputs, capability) else inner
        return _convolution_work(func, args, outputs, work, capability)
    work = inner
    if func in _CAUSAL:
        return _attention_work(func, args, work)
    if func in _PRODUCTS:
        kind, products = _PRODUCTS[func]
        return replace(work, kind=kind, products=products(args, outputs))
    passes = _PASSES.get(func)
    if passes is None:
        return work
    moved = work.moved_bytes + passes.again * moved_bytes(args[passes.argument])
    if func in _BATCH_NORMS and not is_channels_last(args[_BATCH_NORMS[func]]):
        kind = "contiguous batch norm backward" if func._schema.name.endswith("backward") else "contiguous batch norm"
        return replace(work, kind=kind, products=((args[_BATCH_NORMS[func]].size(1), 0, 0, 0),), moved_bytes=moved, launches=passes.launches)
    return replace(work, kind=passes.kind, moved_bytes=moved, launches=passes.launches)


def _read(func: Any, args: Any, given: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> int:
    if func in _GATHERS:
        return _sum(outputs) + _sum(given[1:])
    if func._schema.name.startswith(_WRITE_ONLY):
        return _sum(given[1:])
    return _sum(given)


def _over_lists(func: Any, args: Any, given: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> Work:
    """An operation over lists of tensors: every list read, the changed ones written, as many launches as blocks and tensors need."""
    changed = [args[i] for i, argument in enumerate(func._schema.arguments[: len(args)]) if argument.alias_info and argument.alias_info.is_write]
    written = sum(_sum(value if isinstance(value, (list, tuple)) else [value]) for value in changed) + _sum(outputs)
    first = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
    launches = max(1, -(-len(first) // _TENSORS_A_LAUNCH), -(-sum(t.numel() for t in first) // _CHUNK_ELEMENTS))
    dtype = _NAMES.get(given[0].dtype, "fp32") if given else "fp32"
    return Work("elementwise", dtype, _sum(given) + written, launches=launches)
