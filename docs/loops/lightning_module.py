# SPDX-License-Identifier: Apache-2.0
"""A LightningModule: its own training_step and configure_optimizers, called as the Trainer's automatic optimization calls them."""

import torch
import torch.nn.functional as F
from torch import nn

import bsmodel

try:
    from lightning import LightningModule
except ImportError:  # the loop below needs its methods only

    class LightningModule(nn.Module):
        def log(self, name, value, **options):
            pass


class Autoencoder(LightningModule):
    def __init__(self, width=1024, latent=64):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(28 * 28, width), nn.ReLU(), nn.Linear(width, latent))
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 28 * 28))

    def training_step(self, batch, batch_idx):
        images, _ = batch
        flat = images.flatten(1)
        loss = F.mse_loss(self.decoder(self.encoder(flat)), flat)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10)}


def step(module, configured, batch):
    """One batch of automatic optimization: the closure is run by the optimizer, gradients are zeroed first."""
    optimizer, images = configured["optimizer"], [part.to("cuda") for part in batch]

    def closure():
        loss = module.training_step(images, 0)
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)


def workload(width=1024, latent=64):
    return bsmodel.Workload(
        model=lambda: Autoencoder(width, latent),
        batch=lambda size: (torch.randn(size, 1, 28, 28), torch.zeros(size, dtype=torch.long)),
        setup=lambda module: module.configure_optimizers(),
        step=step,
        name="lightning-module",
    )
