# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: whole blocks are skipped by a coin on the host, so that a step takes less than all of them."""

import random

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Block(nn.Module):
    def __init__(self, width, drop):
        super().__init__()
        self.drop = drop
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        if self.training and random.random() < self.drop:
            return x
        return x + self.mlp(self.norm(x))


def workload(width=768, depth=12, drop=0.2, length=196):
    def model():
        blocks = [Block(width, drop * i / (depth - 1)) for i in range(depth)]
        return nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, 1000))

    return bsmodel.Workload(
        model=model,
        batch=lambda size: (torch.randn(size, length, width), torch.zeros(size, dtype=torch.long)),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]).mean(1), batch[1]),
        training=bsmodel.Training(precision="bf16-mixed"),
        name="stochastic-depth",
    )
