# SPDX-License-Identifier: Apache-2.0
"""A variational autoencoder with torch.distributions, whose arguments are checked as they are by default."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

import bsmodel


class Vae(nn.Module):
    def __init__(self, width, latent):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU(), nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(4 * width * 8 * 8, 2 * latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, 4 * width * 8 * 8), nn.Unflatten(1, (4 * width, 8, 8)), nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, images):
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        posterior = Normal(mean, torch.exp(0.5 * log_variance))
        return self.decoder(posterior.rsample()), posterior


def workload(width=64, latent=256, beta=1.0):
    def loss(model, images):
        rebuilt, posterior = model(images)
        prior = Normal(torch.zeros_like(posterior.loc), torch.ones_like(posterior.scale))
        return F.mse_loss(rebuilt, images, reduction="sum") / len(images) + beta * kl_divergence(posterior, prior).sum(1).mean()

    return bsmodel.Workload(lambda: Vae(width, latent), lambda size: torch.rand(size, 3, 64, 64), loss, training=bsmodel.Training(optimizer="adam"), name="vae")
