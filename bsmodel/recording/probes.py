# SPDX-License-Identifier: Apache-2.0
"""Single convolutions that show which workspaces a card's library takes: one or two shapes for every kind of `bsmodel.hardware.KINDS`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bsmodel.hardware import Gpu
from bsmodel.recording.cuda_like import convolutions
from bsmodel.tape import buffer_bytes

aten = torch.ops.aten
DIRECTIONS = ("forward", "input gradient", "filter gradient")
_MASKS = ([True, False, False], [False, True, False])  # of the gradients of input, filters and bias
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
_BATCH = 32
# filters, channels, groups, width of the filters, side of the images, stride: layers of ResNet-50, RegNet, MobileNetV2 and ConvNeXt
_SHAPES = (
    (64, 64, 1, 3, 56, 1),
    (512, 512, 1, 3, 14, 1),
    (64, 3, 1, 7, 224, 2),
    (96, 96, 6, 3, 28, 1),
    (256, 64, 1, 1, 56, 1),
    (64, 256, 1, 1, 56, 1),
    (144, 24, 1, 1, 27, 1),
    (96, 96, 96, 7, 56, 1),
    (144, 144, 144, 3, 56, 2),
)


@dataclass(frozen=True)
class Probe:
    """One convolution: how its tensors lie, what they are of, and its shape."""

    layout: str
    dtype: str
    shape: tuple[int, int, int, int, int, int]

    @property
    def name(self) -> str:
        """A name that no other probe has."""
        filters, channels, groups, width, side, stride = self.shape
        return f"{self.layout} {self.dtype} {_BATCH}x{channels}x{side}x{side} to {filters}, {width}x{width}, stride {stride}, groups {groups}"

    def operands(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and filters without data."""
        filters, channels, groups, width, side, _ = self.shape
        sizes = ((_BATCH, channels, side, side), (filters, channels // groups, width, width))
        form, dtype = _LAYOUTS[self.layout], getattr(torch, self.dtype)
        images, weights = (torch.empty(size, dtype=dtype, device=device, memory_format=form) for size in sizes)
        return images, weights

    @property
    def rest(self) -> tuple[Any, ...]:
        """Bias, stride, padding, dilation, whether transposed, output padding and groups, as `aten.convolution` wants them."""
        _, _, groups, width, _, stride = self.shape
        return None, [stride] * 2, [width // 2] * 2, [1, 1], False, [0, 0], groups

    def calls(self, device: str) -> dict[str, Callable[[], Any]]:
        """The three kernels, each to be called on tensors that are there already."""
        images, weights = self.operands(device)
        gradient = aten.convolution(images, weights, *self.rest).contiguous(memory_format=_LAYOUTS[self.layout])
        backward = functools.partial(aten.convolution_backward, gradient, images, weights, [0], *self.rest[1:])
        kernels = (functools.partial(aten.convolution, images, weights, *self.rest), *(functools.partial(backward, mask) for mask in _MASKS))
        return dict(zip(DIRECTIONS, kernels, strict=True))


def probes() -> tuple[Probe, ...]:
    """What is tried on a card."""
    return tuple(Probe(layout, dtype, shape) for layout in _LAYOUTS for dtype in ("float16", "float32") for shape in _SHAPES)


def wanted(probe: Probe, gpu: Gpu) -> dict[str, tuple[dict[str, int], int]]:
    """By direction the bytes of every kind of workspace that may be taken, and what else the operator takes besides its output."""
    images, weights = probe.operands("meta")
    gradient = aten.convolution(images, weights, *probe.rest).contiguous(memory_format=_LAYOUTS[probe.layout])
    kernels = {"forward": convolutions.forward((images, weights, *probe.rest), gpu.capability)}
    for direction, mask in zip(DIRECTIONS[1:], _MASKS, strict=True):
        kernels[direction] = convolutions.backward((gradient, images, weights, [0], *probe.rest[1:], mask), gpu.capability)
    found: dict[str, tuple[dict[str, int], int]] = {}
    for direction, kernel in kernels.items():
        sizes: dict[str, int] = {}
        for buffer in kernel.buffers:
            sizes[buffer.kind] = sizes.get(buffer.kind, 0) + buffer.size_bytes + buffer_bytes(buffer.formula, buffer.parameters, gpu)
        others = sizes.pop("", 0)
        found[direction] = ({kind: size for kind, size in sizes.items() if size}, others)
    return found
