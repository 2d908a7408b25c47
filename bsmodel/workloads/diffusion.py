# SPDX-License-Identifier: Apache-2.0
"""Workloads from a `config.json` of diffusers: networks that take noise away."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.training import Training
from bsmodel.units import shown, whole
from bsmodel.workloads.batches import Shape, batch_of, denoising_loss, dit_loss
from bsmodel.workloads.fields import UNKNOWN, require_sizes, zeros_among
from bsmodel.workloads.libraries import diffusers_model, library
from bsmodel.workloads.workload import Workload

_CONTEXT = 77  # tokens that CLIP's text encoder gives; diffusers examples/text_to_image
_PIXELS_A_LATENT = 8  # of the autoencoders of Stable Diffusion and DiT
Tensors = dict[str, tuple[Shape, str]]


def _side(fields: dict[str, Any], where: str, image_size: int | None, pixels: int, divisor: int) -> int:
    """Height and width of what the network sees: as the configuration says, or of an image that the autoencoder made smaller by `pixels`."""
    if image_size is None:
        return whole(f"{where}: sample_size", fields["sample_size"])
    if image_size % (pixels * divisor):
        nearest = max(1, round(image_size / (pixels * divisor))) * pixels * divisor
        raise InvalidInputError(f"image-size {image_size} does not divide by {pixels * divisor}, as {fields['_class_name']} needs; nearest: {nearest}")
    return image_size // pixels


def _unet(fields: dict[str, Any], where: str, image_size: int | None) -> tuple[Tensors, tuple[str, ...]]:
    side, channels = _side(fields, where, image_size, _PIXELS_A_LATENT, 2 ** (len(fields["block_out_channels"]) - 1)), fields["in_channels"]
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if fields[name] is not None:
            raise InvalidInputError(f"{where}: {name} is {shown(fields[name])}, which no batch is known for; write a Workload in a Python file")
    context = whole(f"{where}: cross_attention_dim", fields["cross_attention_dim"])
    tensors: Tensors = {
        "sample": ((channels, side, side), "float32"),
        "timestep": ((), "long"),
        "encoder_hidden_states": ((_CONTEXT, context), "float32"),
    }
    remarks = (f"latents of {side} x {side} and contexts of {_CONTEXT} tokens",)
    if fields["addition_embed_type"] is None:
        return tensors, remarks
    if fields["addition_embed_type"] != "text_time":
        raise InvalidInputError(f"{where}: addition_embed_type is {shown(fields['addition_embed_type'])}; expected 'text_time' or null")
    width = fields["projection_class_embeddings_input_dim"] - 6 * fields["addition_time_embed_dim"]  # six numbers tell size and cut of an image
    return {**tensors, "text_embeds": ((width,), "float32"), "time_ids": ((6,), "float32")}, remarks


def _plain_unet(fields: dict[str, Any], where: str, image_size: int | None) -> tuple[Tensors, tuple[str, ...]]:
    for name in ("class_embed_type", "num_class_embeds"):
        if fields[name] is not None:
            raise InvalidInputError(f"{where}: {name} is {shown(fields[name])}, which no batch is known for; write a Workload in a Python file")
    side = _side(fields, where, image_size, 1, 2 ** (len(fields["block_out_channels"]) - 1))
    return {"sample": ((fields["in_channels"], side, side), "float32"), "timestep": ((), "long")}, (f"samples of {side} x {side}, as the network sees them",)


def _dit(fields: dict[str, Any], where: str, image_size: int | None) -> tuple[Tensors, tuple[str, ...]]:
    side = _side(fields, where, image_size, _PIXELS_A_LATENT, fields["patch_size"])
    shape = (fields["in_channels"], side, side)
    return {"hidden_states": (shape, "float32"), "timestep": ((), "long"), "class_labels": ((), "long")}, (f"latents of {side} x {side}",)


_NETWORKS: dict[str, tuple[Callable[[dict[str, Any], str, int | None], tuple[Tensors, tuple[str, ...]]], Callable[[Any, Any], Any]]] = {
    "UNet2DConditionModel": (_unet, denoising_loss),
    "UNet2DModel": (_plain_unet, denoising_loss),
    "DiTTransformer2DModel": (_dit, dit_loss),
}


def workload(fields: dict[str, Any], where: str, image_size: int | None = None) -> Workload:
    """The workload of a network that takes noise away, from the fields of its configuration.

    Raises `UnknownNameError` for a class diffusers does not have, `InvalidInputError` for one that is no such network, or fields it cannot have.
    """
    name, diffusers = fields["_class_name"], library("diffusers")
    if name not in _NETWORKS:
        if not hasattr(diffusers, name):
            raise UnknownNameError("diffusers class", name, _NETWORKS)
        known = ", ".join(_NETWORKS)
        kind = "" if hasattr(getattr(diffusers, name), "named_parameters") else ", which is no network"
        raise InvalidInputError(f"{where} is of {name}{kind}; expected one of {known}, or write a Workload in a Python file and give FILE.py:NAME")
    defaults = {name: given.default for name, given in inspect.signature(getattr(diffusers, name).__init__).parameters.items() if name != "self"}
    require_sizes(fields, lambda field: defaults.get(field, UNKNOWN), where)
    given = {**defaults, **{field: value for field, value in fields.items() if field in defaults}}
    given["sample_size"] = 64 if given["sample_size"] is None else given["sample_size"]
    make, loss = _NETWORKS[name]
    tensors, remarks = make({"_class_name": name, **given}, where, image_size)
    sized = {**fields, "sample_size": tensors[next(iter(tensors))][0][-1]}
    model = diffusers_model(name, f", from {where}{zeros_among(fields, lambda field: defaults.get(field, UNKNOWN))}", **sized)
    return Workload(model, batch_of(**tensors), loss, training=Training(precision="fp16-mixed", optimizer="adamw"), remarks=remarks)
