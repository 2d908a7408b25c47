# SPDX-License-Identifier: Apache-2.0
"""WGAN-GP: several critic steps with a gradient penalty (a double backward), then one of the generator."""

import torch
from torch import nn

import bsmodel


def generator(latent, width):
    return nn.Sequential(
        nn.Linear(latent, 4 * 4 * 4 * width),
        nn.Unflatten(1, (4 * width, 4, 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
        nn.Tanh(),
    )


def critic(width):
    layers, channels = [], 3
    for factor in (1, 2, 4):
        layers += [nn.Conv2d(channels, factor * width, 5, 2, 2), nn.LeakyReLU(0.2)]
        channels = factor * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 4 * 4, 1))


def gradient_penalty(net, real, fake):
    alpha = torch.rand(len(real), 1, 1, 1, device=real.device)
    mixed = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
    scores = net(mixed)
    (gradient,) = torch.autograd.grad(scores, mixed, torch.ones_like(scores), create_graph=True, retain_graph=True)
    return ((gradient.flatten(1).norm(2, dim=1) - 1) ** 2).mean()


def workload(latent=128, width=128, critic_steps=5, weight=10.0):
    def step(nets, opt, images):
        real = images.cuda(non_blocking=True)
        for _ in range(critic_steps):
            with torch.no_grad():
                fake = nets["g"](torch.randn(real.size(0), latent, device="cuda"))
            loss = nets["d"](fake).mean() - nets["d"](real).mean() + weight * gradient_penalty(nets["d"], real, fake)
            opt["d"].zero_grad(set_to_none=True)
            loss.backward()
            opt["d"].step()
        loss = -nets["d"](nets["g"](torch.randn(real.size(0), latent, device="cuda"))).mean()
        opt["g"].zero_grad(set_to_none=True)
        loss.backward()
        opt["g"].step()

    return bsmodel.Workload(
        model=lambda: nn.ModuleDict({"g": generator(latent, width), "d": critic(width)}),
        batch=lambda size: torch.randn(size, 3, 32, 32),
        setup=lambda nets: {name: torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.0, 0.9)) for name, net in nets.items()},
        step=step,
        name="wgan-gp",
    )
