# SPDX-License-Identifier: Apache-2.0
"""L-BFGS with a closure: full batches, a history of a hundred steps, and as many evaluations as are stated."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


def step(model, optimizer, batch):
    inputs, wanted = (part.to("cuda") for part in batch)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), wanted)
        loss.backward()
        return loss

    return optimizer.step(closure)


def workload(width=512, depth=6, history=10):
    def model():
        layers = [layer for i in range(depth) for layer in (nn.Linear(16 if i == 0 else width, width), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(width, 1))

    return bsmodel.Workload(
        model=model,
        batch=lambda size: (torch.randn(size, 16), torch.randn(size, 1)),
        setup=lambda model: torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=4, history_size=history),
        step=step,
        name="lbfgs",
    )
