# SPDX-License-Identifier: Apache-2.0
"""Memory inside convolutions: copies in the layout they compute in, and cuDNN's workspaces, as cuDNN 9.19 reports its plans.

PyTorch takes the first plan (aten/src/ATen/native/cudnn/Conv_v8.cpp); where the choice depends on unpublished heuristics, the workspace has an
excess. What a card takes of it is another question, answered by kind in `hardware/workspaces.toml`. Images, sequences (which PyTorch runs as
images one row high) and volumes follow the same rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bsmodel.recording.cuda_like.buffers import HALVES, Buffer, Kernel, partial_sums, rounded, tensor_bytes
from bsmodel.recording.cuda_like.shapes import conv_format

_FEW_CHANNELS = 4  # of an image, for which there are kernels of their own


@dataclass(frozen=True)
class _Workspace:
    """Bytes, how much larger they may be, and a formula of `bsmodel.tape.workspaces` with its parameters for what comes on top."""

    size_bytes: int = 0
    excess_bytes: int = 0
    formula: str = ""
    parameters: tuple[int, ...] = ()

    def buffers(self, kind: str, before: int | None = None) -> tuple[Buffer, ...]:
        """The buffer it is, taken before that output and freed at once, if any may be taken."""
        if not (self.size_bytes or self.excess_bytes or self.formula):
            return ()
        return (Buffer(self.size_bytes, self.formula, self.parameters, before=before, brief=True, kind=kind, excess_bytes=self.excess_bytes),)


def _kind(tensor: torch.Tensor, weight: torch.Tensor, groups: int, direction: str, capability: tuple[int, int]) -> str:
    """What a workspace is called, by what decides whether a card takes it (`bsmodel.hardware.KINDS`)."""
    layout = "channels-last" if conv_format(tensor, weight) is torch.channels_last else "contiguous"
    shape = "dense" if groups == 1 else "grouped"
    if depthwise(tensor, weight, groups):
        shape = "depthwise"
    elif pointwise(weight):
        shape = "pointwise"
    elif tensor.size(1) <= _FEW_CHANNELS and not _swapped(tensor):
        shape = "first-layer"
    return f"{layout} {_arithmetic(tensor, capability)} {shape} {direction}"


def _arithmetic(tensor: torch.Tensor, capability: tuple[int, int]) -> str:
    return "half" if tensor.dtype in HALVES else "tf32" if tensor_core(tensor, capability) else "fp32"


def depthwise(tensor: torch.Tensor, weight: torch.Tensor, groups: int) -> bool:
    """Whether a convolution gives every channel filters of its own."""
    return groups > 1 and groups == tensor.size(1) and weight.size(0) % groups == 0


def tensor_core(tensor: torch.Tensor, capability: tuple[int, int]) -> bool:
    """Whether cuDNN convolves this tensor on tensor cores: half precision, and float32 as TF32 from Ampere on."""
    return tensor.dtype in HALVES or capability >= (8, 0)


def native_depthwise(tensor: torch.Tensor, weight: torch.Tensor, groups: int, stride: Any) -> bool:
    """PyTorch's own depthwise kernel, which takes no workspace: contiguous tensors, but for common filters over many float16 channels.

    Source: aten/src/ATen/native/Convolution.cpp, use_cudnn_depthwise and check_cudnn_depthwise_workload_with_filter, for batches above 1.
    """
    if not depthwise(tensor, weight, groups) or conv_format(tensor, weight) is torch.channels_last:
        return False
    channels, sides, width = tensor.size(1), set(weight.shape[2:]), tensor.size(-1)
    if tensor.dtype is not torch.float16 or tensor.dim() > 4 or channels < 32 or len(set(stride)) > 1:
        return True
    if tensor.dim() == 3:
        return stride[0] != 1
    many = channels >= 512 or (channels >= 256 and width >= 28)
    return not (len(sides) == 1 and sides <= {1, 3, 5} and width >= 7 and (stride[0] == 1 or (stride[0] == 2 and many and sides != {1})))


def pointwise(weight: torch.Tensor) -> bool:
    return math.prod(weight.shape[2:]) == 1


def is_matmul(tensor: torch.Tensor, weight: torch.Tensor, stride: Any) -> bool:
    """Whether a pointwise convolution of contiguous images is one matmul per image: rows of pixels aligned to 16 bytes, none skipped."""
    return pointwise(weight) and set(stride) == {1} and math.prod(tensor.shape[2:]) * tensor.element_size() % 16 == 0


def _swapped(tensor: torch.Tensor) -> bool:
    """Whether samples stand where channels do: the gradient of a filter gradient convolves transposed images (Convolution.cpp, double backward)."""
    return min(tensor.size(0), tensor.size(1)) > 1 and tensor.stride(0) < tensor.stride(1)


def _padded(tensor: torch.Tensor) -> int:
    """Bytes with the channel dimension padded: tensor cores want aligned channels, and have kernels for four of float16.

    Samples that stand there are counted as they are, which is exact for batches of a multiple of 8.
    """
    channels = tensor.size(1)
    if _swapped(tensor):
        return tensor_bytes(tensor)
    alignment = 4 if tensor.dtype is torch.float32 or (tensor.dtype is torch.float16 and channels <= 4) else 8
    return tensor_bytes(tensor) // channels * rounded(channels, alignment)


def _padding(tensor: torch.Tensor, weight: torch.Tensor, output: int) -> int:
    """Bytes of a channels-last image in half precision whose channels are padded, and of the weights with it: the input, else the output."""
    if tensor.dtype not in HALVES:
        return 0
    if _padded(tensor) != tensor_bytes(tensor):
        return _padded(tensor) + _padded(weight)
    rows = weight.size(0)
    return (output + tensor_bytes(weight)) // rows * rounded(rows, 8) if rows % 8 else 0


def _layout_copies(layout: torch.memory_format, *tensors: torch.Tensor, before: int | None = None) -> tuple[Buffer, ...]:
    """Copies of the operands that are not in the layout cuDNN computes in; they live as long as the operator."""
    return tuple(Buffer(tensor_bytes(t), before=before) for t in tensors if not t.is_contiguous(memory_format=layout))


def _output_bytes(tensor: torch.Tensor, weight: torch.Tensor, args: Any) -> int:
    stride, padding, dilation, extra = (list(args[i]) * (tensor.dim() - 2) if len(args[i]) == 1 else list(args[i]) for i in (3, 4, 5, 7))
    each = list(zip(tensor.shape[2:], weight.shape[2:], stride, padding, dilation, extra, strict=True))
    if args[6]:
        channels, sides = weight.size(1) * args[8], [(size - 1) * s - 2 * p + d * (k - 1) + more + 1 for size, k, s, p, d, more in each]
    else:
        channels, sides = weight.size(0), [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d, _ in each]
    return int(tensor.size(0) * channels * math.prod(sides) * tensor.element_size())


# -- forward ---------------------------------------------------------------------------------------------------------------------------


def forward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Layout copies, and the workspace of one convolution."""
    tensor, weight, stride, groups = args[0], args[1], args[3], args[8]
    layout = conv_format(tensor, weight)
    copies = (*_layout_copies(layout, tensor, before=0), *_layout_copies(layout, weight))
    if native_depthwise(tensor, weight, groups, stride) or not tensor_core(tensor, capability):
        return Kernel(copies)
    output = _output_bytes(tensor, weight, args)
    if depthwise(tensor, weight, groups):
        workspace = _depthwise_forward(tensor, weight, stride, output, capability)
    elif pointwise(weight):
        workspace = _pointwise_forward(tensor, weight, stride, output)
    else:
        workspace = _dense_forward(tensor, weight, stride, output, args[6], capability)
    return Kernel((*copies, *workspace.buffers(_kind(tensor, weight, groups, "forward", capability))))


def _dense_forward(tensor: torch.Tensor, weight: torch.Tensor, stride: Any, output: int, transposed: bool, capability: tuple[int, int]) -> _Workspace:
    """Tensor-core kernels compute channels-last and convert operands in a workspace where the tensors are not.

    In the contiguous layout half precision converts input, weight and output, float32 (TF32) input and weight; channels-last half
    precision only pads; TF32 also rounds operands before Hopper. Before Hopper, up to four channels of float16 are padded for the kernels
    of a first layer alone (7 x 7, stride 2).
    """
    first_layer = tuple(weight.shape[2:]) == (7, 7) and set(stride) == {2}
    as_they_are = tensor.dtype is torch.float16 and tensor.size(1) <= 4 and not _swapped(tensor) and not first_layer and capability < (9, 0)
    operands = tensor_bytes(tensor) + tensor_bytes(weight) if as_they_are else _padded(tensor) + _padded(weight)
    if conv_format(tensor, weight) is torch.channels_last:
        if as_they_are:
            return _Workspace()
        converted = _padding(tensor, weight, output) if tensor.dtype in HALVES else operands if capability < (9, 0) else 0
        return _Workspace(0 if transposed else converted)
    likely = operands + (output if tensor.dtype in HALVES else 0)
    return _Workspace(likely, operands + output - likely)


def _pointwise_forward(tensor: torch.Tensor, weight: torch.Tensor, stride: Any, output: int) -> _Workspace:
    """Converts only rows of pixels that are not aligned, where channels get no more; channels-last it may pad."""
    if conv_format(tensor, weight) is torch.channels_last:
        return _Workspace(0, _padding(tensor, weight, output))
    both = tensor_bytes(tensor) + output
    converts = not is_matmul(tensor, weight, stride) and (set(stride) != {1} or weight.size(0) <= tensor.size(1))
    return _Workspace(both, 0) if converts else _Workspace(0, both)


def _depthwise_forward(tensor: torch.Tensor, weight: torch.Tensor, stride: Any, output: int, capability: tuple[int, int]) -> _Workspace:
    both = tensor_bytes(tensor) + output
    if conv_format(tensor, weight) is torch.channels_last:
        large = max(weight.shape[2:]) >= 5 and (capability >= (9, 0) or set(stride) != {1})
        return _Workspace(0, 4 * both if large and _widens(tensor, weight, capability) else 0)
    if tensor.dim() == 3:
        return _Workspace()
    everything = both + _padded(weight)
    return _Workspace(formula="depthwise copies", parameters=(everything, 0, weight.size(-1))) if set(stride) == {1} else _Workspace(0, everything)


def _widens(tensor: torch.Tensor, weight: torch.Tensor, capability: tuple[int, int]) -> bool:
    """Whether cuDNN may compute a channels-last depthwise convolution on contiguous float32 copies: it has few kernels for these."""
    size = max(weight.shape[2:])
    return size > 5 or tensor.dtype is torch.bfloat16 or (size == 5 and capability < (8, 0))


# -- backward --------------------------------------------------------------------------------------------------------------------------


def backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """Layout copies, and workspaces of the two gradients, each after its output and freed at once."""
    gradient, tensor, weight, stride, transposed, groups, mask = args[0], args[1], args[2], args[4], args[7], args[9], args[10]
    layout = conv_format(tensor, weight)
    copies = _layout_copies(layout, gradient, tensor, weight, before=0)
    bias = partial_sums(gradient, (0, *range(2, gradient.dim()))) if mask[2] else ()
    last = 2 if mask[0] else 1
    winograd = _winograd(args, capability, last) if mask[1] else ()
    if native_depthwise(tensor, weight, groups, stride) or not tensor_core(tensor, capability):
        return Kernel((*copies, *winograd, *bias))
    if depthwise(tensor, weight, groups):
        data, filters = _depthwise_backward(gradient, tensor, weight, stride, capability)
    elif pointwise(weight):
        data, filters = _pointwise_backward(gradient, tensor, weight, stride, groups, capability)
    else:
        data, filters = _dense_backward(gradient, tensor, weight, transposed, capability)
    data_buffers = data.buffers(_kind(tensor, weight, groups, "input gradient", capability), before=1) if mask[0] else ()
    filter_buffers = filters.buffers(_kind(tensor, weight, groups, "filter gradient", capability), before=last) if mask[1] else ()
    return Kernel((*copies, *data_buffers, *winograd, *filter_buffers, *bias))


def _winograd(args: Any, capability: tuple[int, int], before: int) -> tuple[Buffer, ...]:
    """What cards take for the weight gradient of 3 x 3 filters of contiguous float32, by Winograd's F(4 x 4) with its transforms in memory.

    `36 * 4 * (C K + (C + K) N ceil(H / 4) ceil(W / 4))` bytes for C channels and K filters: 36 products for every tile of 4 x 4 pixels of the
    transformed input and gradient, and for the filters. Of up to 64 channels or filters (narrow) cards tell otherwise.
    Source: Lavin and Gray 2015 for the tiles; published peaks of segmentation networks on V100 cards (`benchmarks/cards.jsonl`, mmseg).
    """
    gradient, tensor, weight, stride, dilation, transposed, groups = args[0], args[1], args[2], args[4], args[6], args[7], args[9]
    plain = tuple(weight.shape[2:]) == (3, 3) and {*stride, *dilation} == {1} and groups == 1 and not transposed
    if not plain or tensor.dtype is not torch.float32 or conv_format(tensor, weight) is torch.channels_last:
        return ()
    filters, channels = weight.shape[:2]
    tiles = gradient.size(0) * math.prod(-(-side // 4) for side in gradient.shape[2:])
    size_bytes = 36 * 4 * (channels * filters + (channels + filters) * tiles)
    name = "winograd" if min(channels, filters) > 64 else "narrow-winograd"
    return _Workspace(size_bytes).buffers(f"contiguous {_arithmetic(tensor, capability)} {name} filter gradient", before)


def _summed(size_bytes: int, gradient: torch.Tensor, weight: torch.Tensor, capability: tuple[int, int], excess_bytes: int = 0) -> _Workspace:
    """The workspace of a weight gradient: before Hopper with float32 partial sums, of (rows, columns) over so many pixels."""
    if capability >= (9, 0):
        return _Workspace(size_bytes, excess_bytes)
    shape = (weight.size(0), weight.numel() // weight.size(0), gradient.numel() // gradient.size(1))
    return _Workspace(size_bytes, excess_bytes, "filter gradient", shape)


def _dense_backward(
    gradient: torch.Tensor, tensor: torch.Tensor, weight: torch.Tensor, transposed: bool, capability: tuple[int, int]
) -> tuple[_Workspace, _Workspace]:
    operands = _padded(tensor) + _padded(weight)
    if conv_format(tensor, weight) is not torch.channels_last:
        everything = operands + tensor_bytes(gradient)
        return _Workspace(everything), _summed(everything, gradient, weight, capability)
    if tensor.dtype in HALVES:
        padding = 0 if transposed else _padding(tensor, weight, tensor_bytes(gradient))
        return _Workspace(padding), _summed(padding, gradient, weight, capability)
    if capability >= (9, 0) or transposed:
        return _Workspace(), _summed(0, gradient, weight, capability)
    data, filters = tensor_bytes(gradient) + tensor_bytes(weight), tensor_bytes(tensor) + tensor_bytes(gradient)
    return _Workspace(data), _summed(filters, gradient, weight, capability)


def _pointwise_backward(
    gradient: torch.Tensor, tensor: torch.Tensor, weight: torch.Tensor, stride: Any, groups: int, capability: tuple[int, int]
) -> tuple[_Workspace, _Workspace]:
    """float32 partial sums, one for each image, where they are smaller than both operands, which are converted otherwise; so are those of volumes,
    and of rows of pixels that are not aligned.

    Of 648 shapes on four cards the planner adds up partial sums for 86 to 99 % where they are less than a quarter of the operands, and for 5 to
    53 % where they are larger.
    """
    if conv_format(tensor, weight) is torch.channels_last:
        padding = _Workspace(0, _padding(tensor, weight, tensor_bytes(gradient)))
        return padding, padding
    pair = tensor_bytes(tensor) + tensor_bytes(gradient)
    everything = _padded(tensor) + _padded(weight) + tensor_bytes(gradient)
    aligned = is_matmul(tensor, weight, stride)
    if aligned and tensor.dim() < 5:
        filters = 0 if groups > 1 else min(4 * tensor.size(0) * weight.numel(), pair)
        return _Workspace(0, everything), _Workspace(filters, pair - filters)
    data = pair if not aligned and (set(stride) != {1} or weight.size(0) >= tensor.size(1)) else 0
    return _Workspace(data, everything - data), _summed(pair, gradient, weight, capability, everything - pair)


def _depthwise_backward(
    gradient: torch.Tensor, tensor: torch.Tensor, weight: torch.Tensor, stride: Any, capability: tuple[int, int]
) -> tuple[_Workspace, _Workspace]:
    pair = tensor_bytes(tensor) + tensor_bytes(gradient)
    if conv_format(tensor, weight) is torch.channels_last:
        if not _widens(tensor, weight, capability):
            return _Workspace(), _Workspace()
        size = max(weight.shape[2:])
        likely = 4 * pair if size > 5 or (set(stride) == {1} and capability >= (9, 0)) else 0
        return _Workspace(0, 4 * pair if size >= 5 and capability >= (9, 0) else 0), _Workspace(likely, 4 * pair - likely)
    if tensor.dim() == 3:
        return _Workspace(), _Workspace(4 * pair if capability >= (9, 0) else 0)
    everything = _padded(tensor) + _padded(weight) + tensor_bytes(gradient)
    if set(stride) != {1}:
        return _Workspace(0, everything), _Workspace(0, everything)
    data, filters = (_Workspace(formula="depthwise copies", parameters=(everything, gradient_of, weight.size(-1))) for gradient_of in (1, 2))
    return data, filters
