# SPDX-License-Identifier: Apache-2.0
"""A classifier of sequences, and how it is trained."""

import torch
from torch import nn

import bsmodel


class Block(nn.Module):
    """Twice as wide inside, added to its input."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, tokens):
        return tokens + self.down(nn.functional.gelu(self.up(self.norm(tokens))))


class Classifier(nn.Module):
    """Four blocks and a head."""

    def __init__(self, width: int = 128, inner: int = 256, classes: int = 10):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, inner) for _ in range(4)))
        self.head = nn.Linear(width, classes)

    def forward(self, tokens):
        return self.head(self.blocks(tokens).mean(1))


def batch(size):
    """Samples of 64 vectors with a class each."""
    return torch.zeros(size, 64, 128), torch.zeros(size, dtype=torch.long)


def loss(model, batch):
    """Cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


training = bsmodel.Workload(model=Classifier, batch=batch, loss=loss, name="classifier")
