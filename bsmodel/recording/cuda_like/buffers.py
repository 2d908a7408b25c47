# SPDX-License-Identifier: Apache-2.0
"""What a kernel allocates besides its outputs, as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Buffer:
    """A buffer inside a kernel: a number of bytes, and a formula of `bsmodel.tape.workspaces` for what is no polynomial in the batch.

    `before` is the number of the output it precedes (by default it follows them all); `brief` ones are freed at once, others with the
    operator's end. Where a library sizes the buffer by rules nobody publishes, `kind` names what it is (`bsmodel.hardware.KINDS`), and it may be
    as much as `excess_bytes` larger, or not there at all.
    """

    size_bytes: int = 0
    formula: str = ""
    parameters: tuple[int, ...] = ()
    before: int | None = None
    brief: bool = False
    kind: str = ""
    excess_bytes: int = 0


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


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of all elements."""
    return tensor.numel() * tensor.element_size()


def rounded(size: int, multiple: int) -> int:
    """`size` up to the next multiple."""
    return -(-size // multiple) * multiple


def partial_sums(tensor: torch.Tensor, dimensions: Sequence[int], formula: str = "reduction") -> tuple[Buffer, ...]:
    """What a sum over these dimensions stages in global memory, if it is split over thread blocks (aten/src/ATen/native/cuda/Reduce.cuh)."""
    summed = {dimension % tensor.dim() for dimension in dimensions}
    inputs = math.prod(tensor.size(dimension) for dimension in summed)
    wide = [dimension for dimension in range(tensor.dim()) if tensor.size(dimension) > 1]
    if not wide or inputs < 2:
        return ()
    fastest = min(wide, key=tensor.stride)
    along_rows = fastest not in summed
    size, strides = tensor.size(fastest), [tensor.stride(dimension) for dimension in wide if dimension != fastest]
    aligned = math.gcd(4, tensor.storage_offset(), *strides)  # of a slice of wider rows (get_output_vec_size)
    side_by_side = size if aligned % math.gcd(4, size) == 0 else aligned
    dense = side_by_side if along_rows and tensor.stride(fastest) == 1 else 1
    return (Buffer(formula=formula, parameters=(tensor.numel() // inputs, inputs, int(along_rows), dense), brief=True),)
