# SPDX-License-Identifier: Apache-2.0
"""Averages of the weights: torch.optim.swa_utils.AveragedModel beside the model, updated after every step."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import bsmodel


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])

    def forward(self, x):
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        return F.relu(x + self.norms[1](self.second(y)))


class Loop:
    def __init__(self, model):
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 1000)
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))


def step(model, loop, batch):
    images, labels = (part.to("cuda", non_blocking=True) for part in batch)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    loop.optimizer.zero_grad()
    loss.backward()
    loop.optimizer.step()
    loop.scheduler.step()
    loop.averaged.update_parameters(model)


def workload(channels=256, blocks=8, classes=100):
    def model():
        stem = nn.Conv2d(3, channels, 3, padding=1)
        return nn.Sequential(stem, *(Residual(channels) for _ in range(blocks)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    return bsmodel.Workload(model, lambda size: (torch.randn(size, 3, 32, 32), torch.zeros(size, dtype=torch.long)), setup=Loop, step=step, name="ema")
