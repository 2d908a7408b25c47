# SPDX-License-Identifier: Apache-2.0
"""Tensors around others: recorded by what is inside, and by the operators that they say they are made of."""

import pytest
import torch
from torch import nn

import bsmodel
from tests.models import SGD, cross_entropy, images, workload


class Eighths(torch.Tensor):
    """A matrix in 8 bits with a scale for each row, which multiplies once it is whole again."""

    @staticmethod
    def __new__(cls, codes, scales):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scales.dtype, device=codes.device)

    def __init__(self, codes, scales):
        self.codes, self.scales = codes, scales

    def __tensor_flatten__(self):
        return ["codes", "scales"], None

    @staticmethod
    def __tensor_unflatten__(inside, context, size, stride):
        return Eighths(**inside)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first = args[0]
        if func is torch.ops.aten.detach.default:
            return Eighths(first.codes, first.scales)
        if func is torch.ops.aten.t.default:
            return first.whole().t().contiguous()
        raise NotImplementedError(str(func))

    def whole(self):
        return self.codes.to(self.scales.dtype) * self.scales


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(Eighths(torch.zeros(128, 768, dtype=torch.int8), torch.zeros(128, 1)), requires_grad=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        assert self.weight.is_cuda and Eighths(self.weight.codes, self.weight.scales).device == x.device
        return self.head(x.flatten(1) @ self.weight.t())


@pytest.fixture(scope="module")
def packed(a100):
    return bsmodel.trace(workload(Packed, images, cross_entropy, "packed"), SGD, a100)


def test_what_is_inside_is_on_the_device_and_counted(packed):
    init = [number for number in packed.blocks["init"] if number >= 0]
    sizes = {category: sorted(int(packed.fixed_bytes[i]) for i in init if packed.categories[i] == category) for category in ("packed weight", "parameter")}

    assert sizes == {"packed weight": [128 * 4, 128 * 768], "parameter": [10 * 4, 10 * 128 * 4]}
    assert packed.parameter_count == 128 * 768 + 10 * 128 + 10
    assert packed.trained_parameter_count == 10 * 128 + 10


def test_what_it_is_made_of_is_recorded_operator_by_operator(packed):
    """A copy in float32, the product with the scales, and this once more in rows: `contiguous`, which PyTorch makes of `clone`."""
    forward = [name for name, phase, size in zip(packed.operators, packed.phases, packed.fixed_bytes, strict=True) if size == 128 * 768 * 4]

    assert forward[:3] == ["aten._to_copy.default", "aten.mul.Tensor", "aten.clone.default"]
