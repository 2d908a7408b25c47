# SPDX-License-Identifier: Apache-2.0
"""Batches on the host, and the losses that go with them; all of them can be pickled, as a process pool must."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.units import format_bytes

Batches = Callable[[int], dict[str, Any]]
Shape = tuple[int, ...]
_LARGEST_SAMPLE_BYTES = 256 << 20  # of one host tensor: batches of up to five samples are made to record


def zeros(size: int, *shape: int, dtype: str = "float32") -> Any:
    """A host tensor of `size` samples of this shape, zeros all. Raises `InvalidInputError` where a sample is above 256 MiB."""
    import torch

    kind = getattr(torch, dtype)
    sample_bytes = math.prod(shape) * kind.itemsize
    if sample_bytes > _LARGEST_SAMPLE_BYTES:
        sizes, most = "x".join(map(str, shape)), format_bytes(_LARGEST_SAMPLE_BYTES)
        raise InvalidInputError(f"one sample of {sizes} {dtype} takes {format_bytes(sample_bytes)} on the host; expected at most {most}")
    return torch.zeros(size, *shape, dtype=kind)


def batch_of(**tensors: tuple[Shape, str]) -> Batches:
    """Batches of named tensors of zeros, each given as the shape of a sample and a dtype, or of int64 "ones"; an `attention_mask` masks the last."""
    return functools.partial(_named, tensors)


def _named(tensors: dict[str, tuple[Shape, str]], size: int) -> dict[str, Any]:
    batch = {name: zeros(size, *shape, dtype="long" if dtype == "ones" else dtype) for name, (shape, dtype) in tensors.items()}
    for name, (_, dtype) in tensors.items():
        if dtype == "ones":
            batch[name] += 1
    if "attention_mask" in batch:
        batch["attention_mask"][..., :-1] = 1
    return batch


def image_batch(image_size: int, channels: int = 3) -> Batches:
    """Batches of images and class labels, as `pixel_values` and `labels`."""
    return batch_of(pixel_values=((channels, image_size, image_size), "float32"), labels=((), "long"))


def token_batch(seq_len: int, labels: str = "tokens", padded: bool = False) -> Batches:
    """Batches of token ids; `labels` is "tokens" (one label each) or "class" (one a sample); `padded` adds an attention mask with padding."""
    mask: dict[str, tuple[Shape, str]] = {"attention_mask": ((seq_len,), "long")} if padded else {}
    return batch_of(input_ids=((seq_len,), "long"), **mask, labels=((seq_len,) if labels == "tokens" else (), "long"))


def unet_batch(latent_size: int, channels: int, context: tuple[int, int]) -> Batches:
    """Batches of a diffusers UNet: latents, timesteps, and a context of (positions, width)."""
    return batch_of(sample=((channels, latent_size, latent_size), "float32"), timestep=((), "long"), encoder_hidden_states=(context, "float32"))


def dit_batch(latent_size: int, channels: int) -> Batches:
    """Batches of a diffusers DiT: latents, timesteps and classes."""
    return batch_of(hidden_states=((channels, latent_size, latent_size), "float32"), timestep=((), "long"), class_labels=((), "long"))


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
    """Mean squared error between predicted and true noise, of a diffusers UNet."""
    import torch

    noise = torch.randn_like(batch["sample"])
    added = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}  # of Stable Diffusion XL
    given = {name: value for name, value in batch.items() if name not in added}
    outputs = model(**{**given, "sample": noise}, **({"added_cond_kwargs": added} if added else {})).sample
    return torch.nn.functional.mse_loss(outputs.float(), noise.float()), outputs


def dit_loss(model: Any, batch: Any) -> Any:
    """Mean squared error of a diffusers DiT; the channels of a learned variance are left out."""
    import torch

    noise = torch.randn_like(batch["hidden_states"])
    outputs = model(**{**batch, "hidden_states": noise}).sample
    return torch.nn.functional.mse_loss(outputs[:, : noise.size(1)].float(), noise.float()), outputs
