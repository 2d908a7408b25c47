# SPDX-License-Identifier: Apache-2.0
"""A small convolutional network on scikit-learn's digits: what the trial in the README runs, in half a minute on a laptop.

bsmodel trial benchmarks/digits.py:workload --effective-batches 16:256 --micro-batch 8 --steps 1500 --seeds 3 \\
    --target-loss 0.3 --split 0.2 --warmup 0 --out runs/digits
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from bsmodel import Training, Workload


def model() -> nn.Module:
    """Two convolutions and a linear layer: 9,930 parameters."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as they would be."""
    return torch.zeros(size, 1, 8, 8), torch.zeros(size, dtype=torch.long)


def loss(network: nn.Module, images_and_labels: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy."""
    images, labels = images_and_labels
    return nn.functional.cross_entropy(network(images), labels)


def data() -> torch.utils.data.Dataset[tuple[torch.Tensor, ...]]:
    """All 1,797 images with their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.utils.data.TensorDataset(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))


workload = Workload(model, batch, loss, name="digits", training=Training(optimizer="sgd"), base_lr=0.05, base_batch=32, data=data)
