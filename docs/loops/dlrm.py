# SPDX-License-Identifier: Apache-2.0
"""DLRM: bags of embeddings with sparse gradients, which plain SGD adds to the rows they are of; Adagrad for the dense layers."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel

ROWS = (1_000_000, 500_000, 100_000, 50_000, 10_000, 10_000, 1_000, 100)


def layers(*widths):
    return nn.Sequential(*(layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())))


class Dlrm(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum", sparse=True) for n in rows)
        self.bottom = layers(13, 512, 256, width)
        pairs = (len(rows) + 1) * len(rows) // 2
        self.top = nn.Sequential(layers(width + pairs, 512, 256), nn.Linear(256, 1))
        self.register_buffer("upper", torch.triu_indices(len(rows) + 1, len(rows) + 1, 1), persistent=False)

    def forward(self, dense, bags):
        x = self.bottom(dense)
        every = torch.stack([x, *(table(bag) for table, bag in zip(self.tables, bags, strict=True))], 1)
        products = torch.bmm(every, every.transpose(1, 2))[:, self.upper[0], self.upper[1]]
        return self.top(torch.cat([x, products], 1)).squeeze(1)


class Optimizers:
    def __init__(self, model):
        self.sparse = torch.optim.SGD(model.tables.parameters(), lr=0.1)
        self.dense = torch.optim.Adagrad([*model.bottom.parameters(), *model.top.parameters()], lr=0.01)


def step(model, optimizers, batch):
    dense, clicked, *bags = (part.to("cuda") for part in batch)
    loss = F.binary_cross_entropy_with_logits(model(dense, bags), clicked)
    model.zero_grad()
    loss.backward()
    optimizers.sparse.step()
    optimizers.dense.step()


def workload(rows=ROWS, width=64, per_bag=10):
    def batch(size):
        bags = [torch.randint(0, n, (size, per_bag)) for n in rows]
        return torch.randn(size, 13), torch.zeros(size), *bags

    return bsmodel.Workload(lambda: Dlrm(rows, width), batch, setup=Optimizers, step=step, name="dlrm")
