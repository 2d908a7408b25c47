# SPDX-License-Identifier: Apache-2.0
"""Distances between the rows of two matrices: which kernel CUDA takes, and what it makes on the way (aten/src/ATen/native/Distance.cpp)."""

from __future__ import annotations

from typing import Any

import torch

from bsmodel.recording.cuda_like import autocast
from bsmodel.recording.cuda_like.buffers import Buffer, Kernel

aten = torch.ops.aten
FEW_ROWS = 25  # of both matrices, up to which `cdist` has a kernel of its own by default
UNCOUNTED = f"the buffer of the kernel that cdist has for up to {FEW_ROWS} rows; recorded as the matrix product that it takes for more"


def cdist(first: torch.Tensor, second: torch.Tensor, p: float = 2.0, compute_mode: int | None = None) -> Any:
    """By a matrix product where there are many rows: rows of two matrices are the samples of a batch, and those few that are recorded stand for many."""
    if autocast.is_active():
        first, second = (autocast.cached_cast(tensor, torch.float32) for tensor in (first, second))
    if autocast.on_device(first) and first.dim() == second.dim() == 2 and p == 2 and not compute_mode:
        compute_mode = 1
    return autocast.redispatch(aten.cdist, first, second, p, compute_mode)


def _euclidean(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """`|x|^2 - 2 x y + |y|^2` as one product of matrices with two columns more."""
    ends = [_norm_and_one(tensor) for tensor in (first, second)]
    left = torch.cat([first.mul(-2), *ends.pop(0)], -1)
    right = torch.cat([second, *reversed(ends.pop())], -1)
    return left.matmul(right.mT).clamp_min_(0).sqrt_()


def _norm_and_one(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norm = tensor.pow(2).sum(-1, keepdim=True)
    return norm, torch.ones_like(norm, memory_format=torch.contiguous_format)


COMPOSITES = {aten._euclidean_dist.default: _euclidean}  # below autograd, of operators that a dispatch mode would not see


def cdist_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """The gradient of every distance, summed afterwards (aten/src/ATen/native/cuda/DistanceKernel.cu)."""
    return _summed(args[1], args[2].size(-2))


def pdist_backward(args: Any, capability: tuple[int, int]) -> Kernel:
    """The same, of every row with every other (aten/src/ATen/native/cuda/DistanceKernel.cu)."""
    return _summed(args[1], args[1].size(0) - 1)


def _summed(tensor: torch.Tensor, others: int) -> Kernel:
    """As many tensors as there are others, and what their sum stages."""
    sums = (tensor.numel(), others, 1, tensor.size(-1))
    return Kernel((Buffer(others * tensor.numel() * tensor.element_size()), Buffer(formula="reduction", parameters=sums, brief=True)))
