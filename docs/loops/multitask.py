# SPDX-License-Identifier: Apache-2.0
"""Several tasks on one body: the gradients of each loss apart (retain_graph), the conflicting ones projected (PCGrad)."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        layers, channels = [], 3
        for _ in range(4):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.classes, self.depth, self.normals = nn.Conv2d(width, 13, 1), nn.Conv2d(width, 1, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        x = self.body(x)
        return self.classes(x), self.depth(x), F.normalize(self.normals(x), dim=1)


def step(net, optimizer, batch):
    images, classes, depth, normals = (part.to("cuda") for part in batch)
    outputs = net(images)
    losses = [F.cross_entropy(outputs[0], classes), F.l1_loss(outputs[1], depth), 1 - (outputs[2] * normals).sum(1).mean()]
    shared = list(net.body.parameters())
    gradients = []
    for i, loss in enumerate(losses):
        optimizer.zero_grad()
        loss.backward(retain_graph=i < len(losses) - 1)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in shared]))
    projected = [gradient.clone() for gradient in gradients]
    for i, gradient in enumerate(projected):
        for j, other in enumerate(gradients):
            if i != j:
                gradient -= torch.clamp(gradient @ other, max=0) / (other @ other) * other
    merged = torch.stack(projected).sum(0)
    for parameter, part in zip(shared, merged.split([parameter.numel() for parameter in shared]), strict=True):
        parameter.grad = part.view_as(parameter)
    optimizer.step()


def workload(width=64, height=288, columns=384):
    def batch(size):
        shape = (height, columns)
        return torch.randn(size, 3, *shape), torch.zeros(size, *shape, dtype=torch.long), torch.randn(size, 1, *shape), torch.randn(size, 3, *shape)

    return bsmodel.Workload(lambda: Net(width), batch, step=step, training=bsmodel.Training(optimizer="adam"), name="multitask")
