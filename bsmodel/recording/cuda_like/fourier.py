# SPDX-License-Identifier: Apache-2.0
"""Fourier transforms by cuFFT: how results lie, and which copies of the input are made (aten/src/ATen/native/cuda/SpectralOps.cpp, _exec_fft).

The transformed dimensions come last and all others are one: where they cannot be that as they lie, the input is copied. Not counted: the
workspaces of cuFFT's plans, for whose sizes nobody publishes a rule.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from bsmodel.recording.cuda_like.buffers import Buffer, Kernel, tensor_bytes

aten = torch.ops.aten
REAL_TO_COMPLEX, COMPLEX, COMPLEX_TO_REAL = aten._fft_r2c.default, aten._fft_c2c.default, aten._fft_c2r.default
_COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}


def _order(tensor: torch.Tensor, dimensions: list[int]) -> tuple[list[int], list[int]]:
    """Dimensions that are not transformed, the slowest first, and those that are."""
    transformed = [dimension % tensor.dim() for dimension in dimensions]
    others = [dimension for dimension in range(tensor.dim()) if dimension not in transformed]
    return sorted(others, key=tensor.stride, reverse=True), transformed


def outputs(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    """The result, stored as one batch of contiguous signals."""
    tensor, dimensions = args[0], args[1]
    sizes, dtype, last = list(tensor.shape), tensor.dtype, dimensions[-1]
    if func is REAL_TO_COMPLEX:
        dtype = _COMPLEX[dtype]
        sizes[last] = sizes[last] // 2 + 1 if args[3] else sizes[last]
    elif func is COMPLEX_TO_REAL:
        dtype = next(real for real, complex_ in _COMPLEX.items() if complex_ is dtype)
        sizes[last] = args[3]
    others, transformed = _order(tensor, dimensions)
    order = [*others, *transformed]
    stored = torch.empty([sizes[dimension] for dimension in order], dtype=dtype, device=tensor.device)
    return stored.permute([order.index(dimension) for dimension in range(tensor.dim())])


def kernel(args: Any, capability: tuple[int, int]) -> Kernel:
    """A copy of the input where what is not transformed is no single dimension as it lies."""
    tensor = args[0]
    others = [dimension for dimension in _order(tensor, args[1])[0] if tensor.size(dimension) > 1]
    single = all(tensor.stride(slow) == tensor.size(fast) * tensor.stride(fast) for slow, fast in pairwise(others))
    return Kernel(() if single else (Buffer(tensor_bytes(tensor)),))


def kernel_to_real(args: Any, capability: tuple[int, int]) -> Kernel:
    """The same, and a copy before, since cuFFT overwrites what it transforms to real numbers."""
    contiguous = torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")
    return Kernel((Buffer(tensor_bytes(args[0])), *kernel((contiguous, args[1]), capability).buffers))
