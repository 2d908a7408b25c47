# SPDX-License-Identifier: Apache-2.0
"""NeRF: a batch of rays, coarse and fine samples along them, the network asked in chunks."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel


def encoded(x, frequencies):
    angles = x[..., None] * 2.0 ** torch.arange(frequencies, device=x.device)
    return torch.cat([x, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)


class Field(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(63 if i == 0 else width, width) for i in range(5))
        self.second = nn.ModuleList(nn.Linear(width + 63 if i == 0 else width, width) for i in range(3))
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.color = nn.Sequential(nn.Linear(width + 27, width // 2), nn.ReLU(), nn.Linear(width // 2, 3), nn.Sigmoid())

    def forward(self, points, directions):
        given = x = encoded(points, 10)
        for layer in self.first:
            x = F.relu(layer(x))
        x = torch.cat([given, x], -1)
        for layer in self.second:
            x = F.relu(layer(x))
        return torch.cat([self.color(torch.cat([self.feature(x), encoded(directions, 4)], -1)), self.density(x)], -1)


def render(field, origins, directions, depths, chunk):
    points = origins[:, None] + directions[:, None] * depths[..., None]
    flat, toward = points.flatten(0, 1), directions[:, None].expand_as(points).flatten(0, 1)
    raw = torch.cat([field(p, d) for p, d in zip(flat.split(chunk), toward.split(chunk), strict=True)]).view(*depths.shape, 4)
    gaps = F.pad(depths.diff(dim=1), (0, 1), value=1e10)
    alpha = 1 - torch.exp(-F.relu(raw[..., 3]) * gaps)
    clear = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], 1), 1)[:, :-1]
    weights = alpha * clear
    return (weights[..., None] * raw[..., :3]).sum(1), weights


def workload(coarse=64, fine=128, chunk=None):
    def step(model, optimizer, rays):
        origins, directions, colors = (part.to("cuda") for part in rays)
        size = chunk or len(origins) * (coarse + fine)
        depths = torch.linspace(2.0, 6.0, coarse, device="cuda").expand(len(origins), coarse)
        depths = depths + torch.rand_like(depths) * 4.0 / coarse
        first, weights = render(model["coarse"], origins, directions, depths, size)
        cumulated = torch.cumsum(weights.detach() + 1e-5, 1)
        drawn = torch.rand(len(origins), fine, device="cuda") * cumulated[:, -1:]
        more = depths.gather(1, torch.searchsorted(cumulated, drawn).clamp(max=coarse - 1))
        second, _ = render(model["fine"], origins, directions, torch.cat([depths, more], 1).sort(1).values, size)
        loss = F.mse_loss(first, colors) + F.mse_loss(second, colors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def rays(size):
        return torch.randn(size, 3), F.normalize(torch.randn(size, 3), dim=1), torch.rand(size, 3)

    fields = lambda: nn.ModuleDict({"coarse": Field(), "fine": Field()})  # noqa: E731
    return bsmodel.Workload(fields, rays, step=step, training=bsmodel.Training(optimizer="adam"), name="nerf")
