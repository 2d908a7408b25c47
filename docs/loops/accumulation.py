# SPDX-License-Identifier: Apache-2.0
"""Gradient accumulation by hand: one call is one optimizer step with all its micro-batches; only the last one would synchronise."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Classifier(nn.Module):
    def __init__(self, vocabulary, width, layers):
        super().__init__()
        block = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True)
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids))[:, 0])

    def no_sync(self):
        return contextlib.nullcontext()  # what DistributedDataParallel has


def workload(vocabulary=30522, width=512, layers=6, length=256, micro_batches=4):
    def step(model, optimizer, batches):
        total = torch.zeros((), device="cuda")
        for i, (ids, labels) in enumerate(batches):
            last = i + 1 == len(batches)
            with contextlib.nullcontext() if last else model.no_sync():
                loss = F.cross_entropy(model(ids.to("cuda")), labels.to("cuda")) / len(batches)
                loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def batches(size):
        return [(torch.zeros(size, length, dtype=torch.long), torch.zeros(size, dtype=torch.long)) for _ in range(micro_batches)]

    return bsmodel.Workload(lambda: Classifier(vocabulary, width, layers), batches, step=step, name="accumulation")
