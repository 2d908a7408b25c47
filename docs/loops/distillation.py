# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: a frozen teacher under no_grad, a student, and a loss of both."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


def encoder(width, layers, vocabulary):
    block = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Embedding(vocabulary, width), nn.TransformerEncoder(block, layers, enable_nested_tensor=False), nn.Linear(width, vocabulary))


class Pair(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.teacher = encoder(768, 12, vocabulary).requires_grad_(False)
        self.student = encoder(384, 6, vocabulary)

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self


def workload(vocabulary=32000, length=128, temperature=2.0, alpha=0.5):
    def loss(model, batch):
        ids, labels = batch
        with torch.no_grad():
            wanted = model.teacher(ids)
        logits = model.student(ids)
        soft = F.kl_div(F.log_softmax(logits / temperature, -1), F.softmax(wanted / temperature, -1), reduction="batchmean") * temperature**2
        hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return alpha * soft + (1 - alpha) * hard

    return bsmodel.Workload(
        model=lambda: Pair(vocabulary),
        batch=lambda size: torch.zeros(2, size, length, dtype=torch.long).unbind(),
        loss=loss,
        training=bsmodel.Training(precision="bf16-mixed", gradient_clipping=1.0),
        name="distillation",
    )
