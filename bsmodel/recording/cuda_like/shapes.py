# SPDX-License-Identifier: Apache-2.0
"""Outputs of operators whose CUDA implementation lays them out, or stores them, otherwise than torch's shape functions say.

The norms are here for another reason: torch's own shape functions for them go through a dozen operations each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.recording.cuda_like import fourier
from bsmodel.recording.cuda_like.pretence import META

aten = torch.ops.aten
_LAST_FIRST = (aten.native_dropout.default, aten._ctc_loss.default, aten._cudnn_ctc_loss.default, aten._cudnn_ctc_loss.Tensor)


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether an image tensor is stored channels-last, and not contiguous as well."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def conv_format(tensor: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    """The layout cuDNN computes in: channels-last if input or weight is (aten/src/ATen/native/ConvUtils.h)."""
    return torch.channels_last if is_channels_last(tensor) or is_channels_last(weight) else torch.contiguous_format


def _convolution(func: Any, args: Any, kwargs: Any) -> Any:
    output = func(*args, **kwargs)
    return torch.empty_like(output, memory_format=conv_format(args[0], args[1]))


def _convolution_backward(func: Any, args: Any, kwargs: Any) -> Any:
    gradient, tensor, weight, bias_sizes, mask = args[0], args[1], args[2], args[3], args[10]
    layout = conv_format(tensor, weight)
    images = torch.empty_like(tensor, memory_format=layout) if mask[0] else None
    filters = torch.empty_like(weight, memory_format=layout) if mask[1] else None
    return images, filters, gradient.new_empty(bias_sizes) if mask[2] else None


def _layer_norm(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, shape = args[0], args[1]
    statistics = (*tensor.shape[: tensor.dim() - len(shape)], *(1 for _ in shape))
    dtype = torch.float64 if tensor.dtype is torch.float64 else torch.float32
    output = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return output, tensor.new_empty(statistics, dtype=dtype), tensor.new_empty(statistics, dtype=dtype)


def _layer_norm_backward(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, weight, bias, mask = args[1], args[5], args[6], args[7]
    return (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if mask[0] else None,
        torch.empty_like(weight) if mask[1] and weight is not None else None,
        torch.empty_like(bias) if mask[2] and bias is not None else None,
    )


def _group_norm(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, batch, groups = args[0], args[3], args[6]
    return torch.empty_like(tensor, memory_format=torch.contiguous_format), tensor.new_empty((batch, groups)), tensor.new_empty((batch, groups))


def _group_norm_backward(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, weight, channels, mask = args[1], args[4], args[6], args[9]
    like = tensor if weight is None else weight
    return (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if mask[0] else None,
        like.new_empty((channels,)) if mask[1] else None,
        like.new_empty((channels,)) if mask[2] else None,
    )


def _batch_norm(func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    channels = tensor.new_empty((tensor.size(1),), dtype=torch.float32)
    output = torch.empty_like(tensor)
    if func is aten.cudnn_batch_norm.default:
        return output, channels, torch.empty_like(channels), tensor.new_empty((0,), dtype=torch.uint8)
    return output, channels, torch.empty_like(channels)


def _batch_norm_backward(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, weight = (args[0], args[2]) if func is aten.cudnn_batch_norm_backward.default else (args[1], args[2])
    native = func is aten.native_batch_norm_backward.default
    mask = args[9] if native else (True, True, True)
    like = tensor if weight is None else weight
    wanted = mask[1] and weight is not None
    layout = torch.contiguous_format if native and not args[7] else torch.preserve_format  # by fixed statistics: elementwise, into a new tensor
    return (
        torch.empty_like(tensor, memory_format=layout) if mask[0] else None,
        like.new_empty((tensor.size(1),)) if wanted else None,
        like.new_empty((tensor.size(1),)) if wanted and mask[2] else None,
    )


def _softmax(func: Any, args: Any, kwargs: Any) -> Any:
    """Contiguous whatever the operands are (aten/src/ATen/native/SoftMax.cpp)."""
    backward = func in (aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
    dtype = args[3] if backward else torch.float32 if args[2] else args[0].dtype
    return torch.empty_like(args[0], dtype=dtype, memory_format=torch.contiguous_format)


def _elementwise_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """Reduced in a second kernel: the scalar result keeps the storage of the elementwise one (aten/src/ATen/native/Loss.cpp)."""
    reduction = args[2] if len(args) > 2 else kwargs.get("reduction", 1)
    if reduction == 0:
        return func(*args, **kwargs)
    elements = args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape))
    return elements.as_strided((), ())


def _binary_cross_entropy(func: Any, args: Any, kwargs: Any) -> Any:
    """Reduced in a second kernel and copied back: the scalar result keeps the storage of the elementwise one (aten/src/ATen/native/cuda/Loss.cu)."""
    reduction = args[3] if len(args) > 3 else kwargs.get("reduction", 1)
    return torch.empty_like(args[0]) if reduction == 0 else torch.empty_like(args[0]).as_strided((), ())


def _log_sigmoid(func: Any, args: Any, kwargs: Any) -> Any:
    """The buffer that backward reads is for the host only (aten/src/ATen/native/cuda/ActivationLogSigmoidKernel.cu)."""
    return torch.empty_like(args[0]), args[0].new_empty((0,))


def _ctc_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """A loss for each sample, and the probabilities of every prefix, twice as many as the longest label and one (aten/src/ATen/native/cuda/LossCTC.cu)."""
    scores, lengths = args[0], args[3]
    batch = scores.size(1)
    return scores.new_empty(batch), scores.new_empty((batch, scores.size(0), 2 * max(lengths, default=0) + 1))


def _ctc_loss_backward(func: Any, args: Any, kwargs: Any) -> Any:
    return torch.empty_like(args[1], memory_format=torch.contiguous_format)


def _cudnn_ctc_loss(func: Any, args: Any, kwargs: Any) -> Any:
    """A loss for each sample, and the gradient of the scores, which forward makes (aten/src/ATen/native/cudnn/LossCTC.cpp)."""
    return args[0].new_empty(args[0].size(1)), torch.empty_like(args[0], memory_format=torch.contiguous_format)


def _foreach(func: Any, args: Any, kwargs: Any) -> Any:
    """One like each input, or nothing in place. Torch's own shape functions go tensor by tensor, slowly."""
    return [torch.empty_like(tensor) for tensor in args[0]] if func._schema.returns else None


def _masked_fill(func: Any, args: Any, kwargs: Any) -> Any:
    """A value may be a scalar on the host, which torch's shape function allows for tensors that say they are on CUDA alone."""
    tensor, mask, value = args
    return func(tensor, mask, value if value.is_meta else torch.empty((), dtype=value.dtype, device="meta"))


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Any:
    """Products of groups of rows with a matrix each; rows of the result begin at multiples of 16 bytes.

    On CUDA from compute capability 8.0 on for float32 and both halves, where torch's shape function allows bfloat16 alone. What is allocated does
    not depend on how many rows a group has. Source: aten/src/ATen/native/GroupedMMUtils.h, create_grouped_gemm_output_tensor.
    """
    left, right, offsets = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs")
    for matrix in (left, right):
        leading = matrix.stride(-2) if matrix.stride(-1) == 1 else matrix.stride(-1)
        if leading * matrix.element_size() % 16:
            raise RuntimeError(f"grouped_mm wants rows that begin at multiples of 16 bytes, not of {leading * matrix.element_size()}")
    dtype = (args[4] if len(args) > 4 else kwargs.get("out_dtype")) or left.dtype
    rows, columns = left.size(-2), right.size(-1)
    width = -(-columns * dtype.itemsize // 16) * 16 // dtype.itemsize
    if left.dim() != right.dim():
        return torch.empty_strided((rows, columns), (width, 1), dtype=dtype, device="meta")
    groups = offsets.size(0) if left.dim() == 2 else left.size(0)
    return torch.empty_strided((groups, rows, columns), (rows * width, width, 1), dtype=dtype, device="meta")


def _scaled_mm(func: Any, args: Any, kwargs: Any) -> Any:
    """Sums of multiples of 16 only: the gradient of a weight sums over all rows of a batch (aten/src/ATen/native/cuda/ScaledBlas.cpp)."""
    if args[0].size(1) % 16:
        raise InvalidInputError(f"float8 products sum over multiples of 16 rows, and a batch has {args[0].size(1)}: give samples of a multiple of 16 tokens")
    return func(*args, **kwargs)


SHAPES: dict[Any, Callable[[Any, Any, Any], Any]] = {
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm_backward.default: _batch_norm_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax,
    aten._log_softmax_backward_data.default: _softmax,
    aten.mse_loss.default: _elementwise_loss,
    aten.smooth_l1_loss.default: _elementwise_loss,
    aten.binary_cross_entropy.default: _binary_cross_entropy,
    aten.log_sigmoid_forward.default: _log_sigmoid,
    aten._grouped_mm.default: _grouped_mm,
    aten._scaled_mm.default: _scaled_mm,
    aten.masked_fill.Tensor: _masked_fill,
    aten.masked_fill_.Tensor: _masked_fill,
    aten._ctc_loss.default: _ctc_loss,
    aten._ctc_loss_backward.default: _ctc_loss_backward,
    fourier.REAL_TO_COMPLEX: fourier.outputs,
    fourier.COMPLEX: fourier.outputs,
    fourier.COMPLEX_TO_REAL: fourier.outputs,
    aten._cudnn_ctc_loss.default: _cudnn_ctc_loss,
    aten._cudnn_ctc_loss.Tensor: _cudnn_ctc_loss,
}
_REDUCING = ("aten::_foreach_norm", "aten::_foreach_powsum", "aten::_foreach_max")


def outputs(func: Any, args: Any, kwargs: Any) -> Any:
    """What `func` returns on CUDA, without data."""
    name = func._schema.name
    if name.startswith("aten::_foreach_") and name not in _REDUCING:
        return _foreach(func, args, kwargs)
    rule = SHAPES.get(func)
    return func(*args, **kwargs) if rule is None else rule(func, args, kwargs)


# -- the same question again -----------------------------------------------------------------------------------------------------------


_CONSTANTS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.layout, torch.device, torch.memory_format))


def signature(value: Any) -> Any:
    """All that an operator's outputs depend on, or None where that takes more than a look at its arguments (a tensor on the host)."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.stride()) if value.is_meta else None
    if isinstance(value, (list, tuple)):
        kinds = tuple(map(type, value))
        if _CONSTANTS.issuperset(kinds):
            return kinds, tuple(value)
        parts = tuple([(kind, part) if kind in _CONSTANTS else signature(part) for kind, part in zip(kinds, value)])
        return None if None in parts else parts
    if isinstance(value, dict):
        return signature(tuple(value.items()))
    return (type(value), value) if isinstance(value, Hashable) else None


_LAYOUTS: dict[Any, Any] = {}
_MOST_LAYOUTS = 50_000  # of some hundred bytes each; a process that records for days begins anew


def known(func: Any, signature: Any) -> Any:
    """The layout that an earlier recording found for these arguments, or None."""
    return None if signature is None else _LAYOUTS.get((func, signature))


def remember(func: Any, signature: Any, layout: Any) -> None:
    """Keep a layout for later recordings: on another GPU, with another recipe, at other batches."""
    if len(_LAYOUTS) >= _MOST_LAYOUTS:
        _LAYOUTS.clear()
    if layout is not None:
        _LAYOUTS[func, signature] = layout


def layout(func: Any, args: Any, kwargs: Any, output: Any) -> Any:
    """Sizes, strides and dtype of each output, or None where one shares memory with an argument or does not fill its own."""
    if not _makes_new_tensors(func) or _storages(output) & _storages((args, kwargs)):  # _unsafe_view does not declare that it is a view
        return None
    return _layout(output)


def made(layout: Any) -> Any:
    """Outputs of the layout that `layout` told."""
    if not layout:
        return None
    if isinstance(layout[0], torch.Size):
        return torch.empty_strided(layout[0], layout[1], dtype=layout[2], device=META)
    return tuple(map(made, layout))


@functools.cache
def is_view(func: Any) -> bool:
    """Whether all that an operator returns is another view of an argument."""
    returns = func._schema.returns
    return bool(returns) and all(value.alias_info is not None and not value.alias_info.is_write for value in returns)


@functools.cache
def _makes_new_tensors(func: Any) -> bool:
    """Whether every output is a tensor that shares no memory with an argument, as far as the operator declares."""
    schema = func._schema
    names = {str(value.type) for value in schema.returns}
    return names == {"Tensor"} and not any(value.alias_info for value in (*schema.arguments, *schema.returns))


def _storages(value: Any) -> set[int]:
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage()._cdata}
    if isinstance(value, (list, tuple)):
        return set().union(*map(_storages, value))
    return _storages(tuple(value.values())) if isinstance(value, dict) else set()


def _layout(output: Any) -> Any:
    if output is None:
        return ()
    if isinstance(output, tuple):
        parts = tuple(map(_layout, output))
        return None if None in parts else parts
    last = sum((size - 1) * stride for size, stride in zip(output.shape, output.stride(), strict=True))
    filled = output.untyped_storage().nbytes() == ((last + 1) * output.element_size() if output.numel() else 0)
    return (output.shape, output.stride(), output.dtype) if filled else None


def tensors_in(values: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of an operator in order, lists and tuples of them opened."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found


def on_device(func: Any, output: Any) -> list[torch.Tensor]:
    """Device tensors among the outputs in the order CUDA allocates them: dropout makes its mask first, the CTC loss its prefixes or gradient."""
    tensors = [tensor for tensor in tensors_in((output,)) if tensor.is_meta]
    return tensors[::-1] if func in _LAST_FIRST else tensors
