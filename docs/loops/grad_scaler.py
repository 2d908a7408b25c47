# SPDX-License-Identifier: Apache-2.0
"""Loss scaling by hand with the older names: torch.cuda.amp.GradScaler and torch.cuda.amp.autocast."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Loop:
    def __init__(self, model):
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.scaler = torch.cuda.amp.GradScaler()


def step(model, loop, batch):
    images = batch[0].cuda(non_blocking=True)
    labels = batch[1].cuda(non_blocking=True)
    loop.optimizer.zero_grad()
    with torch.cuda.amp.autocast():
        loss = F.cross_entropy(model(images), labels)
    loop.scaler.scale(loss).backward()
    loop.scaler.unscale_(loop.optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    return loss.item()


def vgg(width):
    layers, channels = [], 3
    for factor in (1, 2, 4, 8):
        for _ in range(2):
            layers += [nn.Conv2d(channels, factor * width, 3, padding=1), nn.BatchNorm2d(factor * width), nn.ReLU(inplace=True)]
            channels = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels, 1000))


def workload(width=64, side=224):
    def batch(size):
        return torch.randn(size, 3, side, side), torch.zeros(size, dtype=torch.long)

    return bsmodel.Workload(lambda: vgg(width), batch, setup=Loop, step=step, name="grad-scaler")
