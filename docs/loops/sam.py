# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimisation: up the gradient, a second forward and backward there, back, and a step of the base optimizer."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class SAM(torch.optim.Optimizer):
    def __init__(self, parameters, base, rho=0.05, **options):
        super().__init__(parameters, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def climb(self):
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in trained]), p=2)
        for p in trained:
            self.state[p]["before"] = p.data.clone()
            p.add_(p.grad * (0.05 / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["before"]
        self.base.step()
        self.zero_grad()


def step(model, optimizer, batch):
    images, labels = (part.to("cuda") for part in batch)
    F.cross_entropy(model(images), labels).backward()
    optimizer.climb()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def workload(width=64, side=64, classes=200):
    def model():
        layers, channels = [], 3
        for factor in (1, 2, 4, 8):
            layers += [nn.Conv2d(channels, width * factor, 3, 2, 1, bias=False), nn.BatchNorm2d(width * factor), nn.ReLU()]
            channels = width * factor
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    return bsmodel.Workload(
        model=model,
        batch=lambda size: (torch.randn(size, 3, side, side), torch.zeros(size, dtype=torch.long)),
        setup=lambda model: SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9),
        step=step,
        name="sam",
    )
