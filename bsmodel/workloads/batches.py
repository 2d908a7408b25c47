# SPDX-License-Identifier: Apache-2.0
"""Batches on the host, and the losses that go with them; all of them can be pickled, as a process pool must."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Batches = Callable[[int], dict[str, Any]]


def image_batch(image_size: int, channels: int = 3) -> Batches:
    """Batches of images and class labels, as `pixel_values` and `labels`."""
    return functools.partial(_images, image_size, channels)


def _images(image_size: int, channels: int, size: int) -> dict[str, Any]:
    import torch

    return {"pixel_values": torch.zeros(size, channels, image_size, image_size), "labels": torch.zeros(size, dtype=torch.long)}


def token_batch(seq_len: int, labels: str = "tokens", padded: bool = False) -> Batches:
    """Batches of token ids; `labels` is "tokens" (one label each) or "class" (one a sample); `padded` adds an attention mask with padding."""
    return functools.partial(_tokens, seq_len, labels, padded)


def _tokens(seq_len: int, labels: str, padded: bool, size: int) -> dict[str, Any]:
    import torch

    batch = {"input_ids": torch.zeros(size, seq_len, dtype=torch.long)}
    if padded:
        batch["attention_mask"] = torch.ones(size, seq_len, dtype=torch.long)
        batch["attention_mask"][:, -1] = 0
    batch["labels"] = torch.zeros((size, seq_len) if labels == "tokens" else (size,), dtype=torch.long)
    return batch


def unet_batch(latent_size: int, channels: int, context: tuple[int, int]) -> Batches:
    """Batches of a diffusers UNet: latents, timesteps, and a context of (positions, width)."""
    return functools.partial(_latents, latent_size, channels, context)


def _latents(latent_size: int, channels: int, context: tuple[int, int], size: int) -> dict[str, Any]:
    import torch

    return {
        "sample": torch.zeros(size, channels, latent_size, latent_size),
        "timestep": torch.zeros(size, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(size, *context),
    }


def dit_batch(latent_size: int, channels: int) -> Batches:
    """Batches of a diffusers DiT: latents, timesteps and classes."""
    return functools.partial(_classed_latents, latent_size, channels)


def _classed_latents(latent_size: int, channels: int, size: int) -> dict[str, Any]:
    import torch

    return {
        "hidden_states": torch.zeros(size, channels, latent_size, latent_size),
        "timestep": torch.zeros(size, dtype=torch.long),
        "class_labels": torch.zeros(size, dtype=torch.long),
    }


def own_loss(model: Any, batch: Any) -> Any:
    """The loss a transformers model computes when it is given labels."""
    outputs = model(**batch)
    return outputs.loss, outputs


def classification_loss(model: Any, batch: Any) -> Any:
    """Cross entropy of a plain image classifier."""
    import torch

    outputs = model(batch["pixel_values"])
    return torch.nn.functional.cross_entropy(outputs, batch["labels"]), outputs


def denoising_loss(model: Any, batch: Any) -> Any:
    """Mean squared error between predicted and true noise, of a diffusers UNet or DiT."""
    import torch

    noise = torch.randn_like(batch["sample"])
    outputs = model(**{**batch, "sample": noise}).sample
    return torch.nn.functional.mse_loss(outputs.float(), noise.float()), outputs


def dit_loss(model: Any, batch: Any) -> Any:
    """Mean squared error of a diffusers DiT; the channels of a learned variance are left out."""
    import torch

    noise = torch.randn_like(batch["hidden_states"])
    outputs = model(**{**batch, "hidden_states": noise}).sample
    return torch.nn.functional.mse_loss(outputs[:, : noise.size(1)].float(), noise.float()), outputs
