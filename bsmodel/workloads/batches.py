# SPDX-License-Identifier: Apache-2.0
"""Batches on the host, and the losses that go with them; all of them can be pickled, as a process pool must."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.units import format_bytes

Batches = Callable[[int], dict[str, Any]]
Shape = tuple[int, ...]
Field = tuple[Shape, str] | Callable[[int], Any]  # the shape of a sample and a dtype, or "ones" of int64; or what gives it for so many samples
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


def batch_of(**fields: Field) -> Batches:
    """Batches of named tensors: zeros, ones, or what a function of the size gives; an `attention_mask` of zeros masks the last."""
    return functools.partial(_named, fields)


def _named(fields: dict[str, Field], size: int) -> dict[str, Any]:
    batch = {name: field(size) if callable(field) else _filled(size, *field) for name, field in fields.items()}
    if "attention_mask" in fields and not callable(fields["attention_mask"]):
        batch["attention_mask"][..., :-1] = 1
    return batch


def _filled(size: int, shape: Shape, dtype: str) -> Any:
    return zeros(size, *shape, dtype="long") + 1 if dtype == "ones" else zeros(size, *shape, dtype=dtype)


def repeated(shape: Shape, values: list[Any] | None, axis: int, size: int) -> Any:
    """What belongs to one sample, of this shape, `size` times along an axis: ones, or integers where their values are given."""
    import torch

    if values is not None:
        return torch.cat([torch.tensor(values).reshape(shape)] * size, dim=axis)
    whole = list(shape)
    whole[axis] *= size
    return torch.ones((1,) * len(whole)).expand(whole)  # one value for all, so that it is known: images of zeros are padding to some models


def ones(shape: Shape, size: int) -> Any:
    """A mask of (size, *shape), int64, that masks nothing."""
    return zeros(size, *shape, dtype="long") + 1


def framed(image: tuple[int, int], size: int) -> Any:
    """Which pixels of (size, height, width) are the image's, int64: all but the last column, in the memory of one, for there are many."""
    mask = ones(image, 1)
    mask[..., -1] = 0
    return mask.expand(size, *image)


def with_placeholders(length: int, word: int, placeholders: Shape, size: int) -> Any:
    """Token ids of (size, length): one word over and over, but for the placeholders, which come second."""
    import torch

    ids = torch.full((size, length), word, dtype=torch.long)
    ids[:, 1 : 1 + len(placeholders)] = torch.tensor(placeholders)
    return ids


def separated(length: int, separator: int, places: Sequence[int], size: int) -> Any:
    """Token ids of (size, length): zeros, and the token that separates texts, or ends them, at these places."""
    ids = zeros(size, length, dtype="long")
    ids[:, list(places)] = separator
    return ids


def class_labels(count: int, classes: int, size: int) -> list[Any]:
    """The classes of `count` objects in each of `size` images, int64 of (count,): one after the other."""
    import torch

    return [torch.arange(count) % classes for _ in range(size)]


def mask_labels(count: int, image: tuple[int, int], dtype: str, size: int) -> list[Any]:
    """Which pixels belong to which of `count` objects, (count, height, width): each has a strip of the image, from left to right."""
    import torch

    height, width = image
    owner = torch.arange(width) * count // width
    mask = zeros(count, height, width, dtype=dtype)
    mask += (owner == torch.arange(count)[:, None])[:, None, :]
    return [mask.clone() for _ in range(size)]


def objects(count: int, classes: int, masks: tuple[int, int] | None, size: int) -> list[dict[str, Any]]:
    """What is to be found in each of `size` images: the `class_labels` of `count` objects, their `boxes` (count, 4) by centre and extent as
    parts of the image, and their `masks` of (count, height, width) where there are any."""
    import torch

    left = (torch.arange(count) + 0.5) / count
    boxes = torch.stack([left, torch.full_like(left, 0.5), torch.full_like(left, 1 / count), torch.full_like(left, 0.9)], dim=-1)
    found = [{"class_labels": labels, "boxes": boxes.clone()} for labels in class_labels(count, classes, size)]
    if masks is not None:
        for target, mask in zip(found, mask_labels(count, masks, "uint8", size)):
            target["masks"] = mask
    return found


def image_batch(image_size: int, channels: int = 3) -> Batches:
    """Batches of images and class labels, as `pixel_values` and `labels`."""
    return batch_of(pixel_values=((channels, image_size, image_size), "float32"), labels=((), "long"))


def token_batch(seq_len: int, labels: str = "tokens", padded: bool = False) -> Batches:
    """Batches of token ids; `labels` is "tokens" (one label each) or "class" (one a sample); `padded` adds an attention mask with padding."""
    mask: dict[str, Field] = {"attention_mask": ((seq_len,), "long")} if padded else {}
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


def flow_loss(model: Any, batch: Any) -> Any:
    """Mean squared error of the velocity from latents to noise, which flow matching learns (Lipman 2022, arXiv 2210.02747), of a diffusers transformer."""
    import torch

    latents = batch["hidden_states"]
    noise = torch.randn_like(latents)
    outputs = model(**{**batch, "hidden_states": 0.5 * latents + 0.5 * noise}).sample
    return torch.nn.functional.mse_loss(outputs.float(), (noise - latents).float()), outputs


def positions(shape: Shape, size: int) -> Any:
    """Positions of tokens in an image or a text, float32 of this shape: the same for all samples."""
    import torch

    return torch.zeros(shape)


def dit_loss(model: Any, batch: Any) -> Any:
    """Mean squared error of a diffusers DiT; the channels of a learned variance are left out."""
    import torch

    noise = torch.randn_like(batch["hidden_states"])
    outputs = model(**{**batch, "hidden_states": noise}).sample
    return torch.nn.functional.mse_loss(outputs[:, : noise.size(1)].float(), noise.float()), outputs
