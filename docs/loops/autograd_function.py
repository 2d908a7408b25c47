# SPDX-License-Identifier: Apache-2.0
"""An autograd.Function of one's own: a swish that keeps its input only, and a quantiser with a straight-through gradient."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return gradient * (gate * (1 + x * (1 - gate)))


class Quantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits):
        scale = x.abs().amax() / (2 ** (bits - 1) - 1)
        return (x / scale).round() * scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return Swish.apply(F.linear(x, Quantised.apply(self.linear.weight, 8), self.linear.bias))


def workload(width=2048, depth=8, inputs=3072):
    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), *(Layer(width) for _ in range(depth)), nn.Linear(width, 10))

    return bsmodel.Workload(
        model=model,
        batch=lambda size: (torch.randn(size, 3, 32, 32), torch.zeros(size, dtype=torch.long)),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        training=bsmodel.Training(optimizer="sgd-momentum"),
        name="autograd-function",
    )
