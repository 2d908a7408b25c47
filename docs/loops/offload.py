# SPDX-License-Identifier: Apache-2.0
"""Activations kept on the host until backward: torch.autograd.graph.save_on_cpu around the blocks."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import save_on_cpu

import bsmodel


class Model(nn.Module):
    def __init__(self, vocabulary, width, layers):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True, norm_first=True) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.embed(ids)
        with save_on_cpu(pin_memory=True):
            for block in self.blocks:
                x = block(x)
        return self.head(x)


def workload(vocabulary=32000, width=1024, layers=12, length=512):
    def loss(model, batch):
        ids, labels = batch
        return F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())

    return bsmodel.Workload(
        model=lambda: Model(vocabulary, width, layers),
        batch=lambda size: torch.zeros(2, size, length, dtype=torch.long).unbind(),
        loss=loss,
        training=bsmodel.Training(precision="bf16-mixed"),
        name="offload",
        tokens_per_sample=length,
    )
