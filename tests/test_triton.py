# SPDX-License-Identifier: Apache-2.0
"""Kernels that Triton compiles are launched without a device: what they write into is recorded, what they do is not, and named."""

import pytest
import torch

import bsmodel
from bsmodel import Workload

triton = pytest.importorskip("triton")


def test_a_kernel_of_triton_is_recorded_by_what_it_writes_into(a100):
    import triton.language as tl

    @triton.jit
    def doubled(source, target, count, block: tl.constexpr):
        places = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(target + places, 2 * tl.load(source + places, mask=places < count), mask=places < count)

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = torch.empty_like(x)
            doubled[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), block=1024)
            return y

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    def workload(function):
        return Workload(lambda: torch.nn.Linear(64, 256), lambda size: torch.zeros(size, 64), lambda model, x: function(model(x)).mean())

    plain, compiled = (bsmodel.trace(workload(function), gpu=a100) for function in (lambda y: y * 2.0, Doubled.apply))
    assert (plain.per_sample_bytes == compiled.per_sample_bytes).all() and (plain.fixed_bytes == compiled.fixed_bytes).all()
    assert any("Triton" in what for what in compiled.uncounted) and not any("Triton" in what for what in plain.uncounted)
