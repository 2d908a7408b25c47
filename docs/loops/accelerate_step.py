# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's accelerate: prepare once, accumulate, clip and step through the Accelerator."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

import bsmodel


class Classifier(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        block = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True, norm_first=True)
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1000)

    def forward(self, images):
        return self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class Loop:
    def __init__(self, model, micro_batches):
        self.accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=micro_batches)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)


def step(_, loop, micro_batches):
    """One optimizer step: every micro-batch of it."""
    for images, labels in micro_batches:
        with loop.accelerator.accumulate(loop.model):
            loss = F.cross_entropy(loop.model(images.to("cuda")), labels.to("cuda"))
            loop.accelerator.backward(loss)
            if loop.accelerator.sync_gradients:
                loop.accelerator.clip_grad_norm_(loop.model.parameters(), 1.0)
            loop.optimizer.step()
            loop.scheduler.step()
            loop.optimizer.zero_grad()


def workload(width=384, layers=12, micro_batches=2):
    def batches(size):
        return [(torch.randn(size, 3, 224, 224), torch.zeros(size, dtype=torch.long)) for _ in range(micro_batches)]

    return bsmodel.Workload(lambda: Classifier(width, layers), batches, setup=lambda model: Loop(model, micro_batches), step=step, name="accelerate")
