# SPDX-License-Identifier: Apache-2.0
"""Workloads whose losses compare the samples of a batch with one another, small enough that the pairs are what counts."""

import torch
from torch import nn
from torch.nn import functional as F

TEXT = {"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
AUDIO = {
    **{"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 32},
    **{"window_size": 4, "patch_size": 4, "patch_stride": [4, 4], "num_hidden_layers": 2, "projection_dim": 16},
}


def _clip():
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=VISION, projection_dim=32))


def _siglip():
    from transformers import SiglipConfig, SiglipModel

    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))


def _clap():
    from transformers import ClapConfig, ClapModel

    return ClapModel(ClapConfig(text_config={**TEXT, "max_position_embeddings": 40, "projection_dim": 16}, audio_config=AUDIO, projection_dim=16))


def _pictures(size):
    return {"input_ids": torch.ones(size, 8, dtype=torch.long), "pixel_values": torch.zeros(size, 3, 32, 32)}


def _sounds(size):
    return {"input_ids": torch.ones(size, 8, dtype=torch.long), "input_features": torch.zeros(size, 1, 64, 16)}


def _own(model, batch):
    return model(**batch, return_loss=True).loss


def _encoder():
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))


def _labelled(size):
    return {"x": torch.zeros(size, 16), "labels": torch.arange(size) // 2}


def _two(size):
    return {"x": torch.zeros(size, 16), "y": torch.zeros(size, 16)}


def _embedded(model, batch):
    return F.normalize(torch.cat([model(batch["x"]), model(batch["y"])]), dim=-1)


def simclr(model, batch):
    """NT-Xent with the diagonal left out by a mask (Chen 2020)."""
    z = _embedded(model, batch)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = (z @ z.T / 0.1).masked_fill(itself, -1e9)
    return F.cross_entropy(scores, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def triplet(model, batch):
    """Hardest positive and negative of every sample by `cdist` (Hermans 2017)."""
    z, labels = model(batch["x"]), batch["labels"]
    distances = torch.cdist(z, z)
    same = labels[:, None] == labels[None, :]
    positive = (distances * same).amax(1)
    negative = (distances + 1e6 * same).amin(1)
    return F.relu(positive - negative + 0.2).mean()


def supervised(model, batch):
    """Supervised contrastive loss (Khosla 2020)."""
    z, labels = F.normalize(model(batch["x"]), dim=-1), batch["labels"]
    others = 1 - torch.eye(len(z), device=z.device)
    same = (labels[:, None] == labels[None, :]).float() * others
    scores = z @ z.T / 0.1
    scores = scores - scores.amax(1, keepdim=True).detach()
    logs = scores - (scores.exp() * others).sum(1, keepdim=True).log()
    return -((same * logs).sum(1) / same.sum(1).clamp(min=1)).mean()


def discrepancy(model, batch):
    """Maximum mean discrepancy with two Gaussian kernels (Gretton 2012)."""
    z = torch.cat([model(batch["x"]), model(batch["y"])])
    half, squares = len(z) // 2, torch.cdist(z, z).pow(2)
    kernel = sum(torch.exp(-squares / width) for width in (1.0, 4.0))
    return kernel[:half, :half].mean() + kernel[half:, half:].mean() - 2 * kernel[:half, half:].mean()


def uniformity(model, batch):
    """Of the embeddings on the sphere, by `pdist` (Wang 2020)."""
    return torch.pdist(F.normalize(model(batch["x"]), dim=-1)).pow(2).mul(-2).exp().mean().log()


def negatives(model, batch):
    """Answers of the other questions in the batch as negatives (Karpukhin 2020)."""
    z, w = model(batch["x"]), model(batch["y"])
    return F.cross_entropy(z @ w.T, torch.arange(len(z), device=z.device))


PAIR_LOSSES = {
    "clip": (_clip, _pictures, _own),
    "siglip": (_siglip, _pictures, _own),
    "clap": (_clap, _sounds, _own),
    "simclr": (_encoder, _two, simclr),
    "triplet": (_encoder, _labelled, triplet),
    "supervised": (_encoder, _labelled, supervised),
    "discrepancy": (_encoder, _two, discrepancy),
    "uniformity": (_encoder, _labelled, uniformity),
    "negatives": (_encoder, _two, negatives),
}
