# SPDX-License-Identifier: Apache-2.0
"""Memory that CUDA kernels take inside an operator, beyond what they return.

A recording sees the outputs of an operator only. What its CUDA implementation allocates besides (library workspaces, staging
buffers, copies in another layout) is written here, one function per operator, each naming its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten


@dataclass(frozen=True)
class Handle:
    """A library handle with a workspace that is allocated at first use and kept."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Kernel:
    """What one operator allocates on CUDA: buffers taken before and after its outputs, and the library handle it needs."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    handle: Handle | None = None
    output: Any = None


_PLAIN = Kernel()


def cublas_handle(capability: tuple[int, int]) -> Handle:
    """cuBLAS' workspace per handle and stream: 32 MiB on Hopper, 8.125 MiB elsewhere (aten/src/ATen/cuda/CublasHandlePool.cpp)."""
    return Handle("cuBLAS workspace", 4096 * 8 * 1024 if capability[0] == 9 else 4096 * 2 * 1024 + 16 * 8 * 1024)


def _gemm(args: Any, kwargs: Any, recorder: Any) -> Kernel:
    return Kernel(handle=cublas_handle(recorder.capability))


KERNELS: dict[Any, Callable[[Any, Any, Any], Kernel]] = {
    aten.mm.default: _gemm,
    aten.addmm.default: _gemm,
    aten.bmm.default: _gemm,
    aten.baddbmm.default: _gemm,
    aten.addbmm.default: _gemm,
}


def kernel_of(func: Any, args: Any, kwargs: Any, recorder: Any) -> Kernel:
    """Look up what `func` allocates inside CUDA's implementation; operators without a row allocate only their outputs."""
    rule = KERNELS.get(func)
    return _PLAIN if rule is None else rule(args, kwargs, recorder)
