# SPDX-License-Identifier: Apache-2.0
"""DCGAN: two networks, two optimizers, the discriminator first."""

import torch
from torch import nn

import bsmodel


def generator(latent, width):
    layers, channels = [], latent
    for factor in (8, 4, 2, 1):
        layers += [nn.ConvTranspose2d(channels, width * factor, 4, 2 if layers else 1, 1 if layers else 0, bias=False)]
        layers += [nn.BatchNorm2d(width * factor), nn.ReLU(True)]
        channels = width * factor
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(width):
    layers = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for factor in (2, 4, 8):
        layers += [nn.Conv2d(width * factor // 2, width * factor, 4, 2, 1, bias=False), nn.BatchNorm2d(width * factor), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, 1, 0, bias=False))


def optimizers(nets):
    return {name: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for name, net in nets.items()}


def workload(latent=100, width=64):
    bce = nn.BCEWithLogitsLoss()

    def step(nets, opt, images):
        real = images.to("cuda")
        ones, zeros = (torch.full((len(real),), value, device="cuda") for value in (1.0, 0.0))
        opt["d"].zero_grad()
        loss_real = bce(nets["d"](real).flatten(), ones)
        loss_real.backward()
        fake = nets["g"](torch.randn(len(real), latent, 1, 1, device="cuda"))
        loss_fake = bce(nets["d"](fake.detach()).flatten(), zeros)
        loss_fake.backward()
        opt["d"].step()
        opt["g"].zero_grad()
        loss_g = bce(nets["d"](fake).flatten(), ones)
        loss_g.backward()
        opt["g"].step()

    return bsmodel.Workload(
        model=lambda: nn.ModuleDict({"g": generator(latent, width), "d": discriminator(width)}),
        batch=lambda size: torch.randn(size, 3, 64, 64),
        setup=optimizers,
        step=step,
        name="gan",
    )
