# SPDX-License-Identifier: Apache-2.0
"""A physics-informed network: derivatives of the output by the inputs stand in the loss (Burgers' equation)."""

import math

import torch
from torch import nn

import bsmodel


def derivative(output, by):
    return torch.autograd.grad(output, by, torch.ones_like(output), create_graph=True)[0]


def workload(width=256, depth=8, boundary=256):
    def model():
        layers = [layer for i in range(depth) for layer in (nn.Linear(2 if i == 0 else width, width), nn.Tanh())]
        return nn.Sequential(*layers, nn.Linear(width, 1))

    def loss(net, batch):
        points, edge, wanted = batch
        x, t = points[:, :1].requires_grad_(True), points[:, 1:].requires_grad_(True)
        u = net(torch.cat([x, t], 1))
        u_t, u_x = derivative(u, t), derivative(u, x)
        residual = u_t + u * u_x - 0.01 / math.pi * derivative(u_x, x)
        return residual.pow(2).mean() + (net(edge) - wanted).pow(2).mean()

    def batch(size):
        return torch.rand(size, 2), torch.rand(boundary, 2), torch.zeros(boundary, 1)

    return bsmodel.Workload(model, batch, loss, training=bsmodel.Training(optimizer="adam"), name="pinn")
