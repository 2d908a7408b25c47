# SPDX-License-Identifier: Apache-2.0
"""Workloads from a `config.json` of diffusers: networks that take noise away."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.training import Training
from bsmodel.units import shown, whole
from bsmodel.workloads.batches import Field, batch_of, denoising_loss, dit_loss, flow_loss, positions
from bsmodel.workloads.fields import UNKNOWN, require_sizes, zeros_among
from bsmodel.workloads.libraries import diffusers_model, library
from bsmodel.workloads.workload import Workload

_CONTEXT = 77  # tokens that CLIP's text encoder gives; diffusers examples/text_to_image
_FLUX_CONTEXT = 512  # of T5; diffusers examples/dreambooth/train_dreambooth_flux.py
_WAN_CONTEXT, _WAN_FRAMES, _WAN_PIXELS = 512, 81, (480, 832)  # of UMT5; diffusers pipelines/wan/pipeline_wan.py
_PIXELS_A_LATENT = 8  # of the autoencoders of Stable Diffusion and DiT
Tensors = dict[str, Field]


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


def _sd3(fields: dict[str, Any], where: str, image_size: int | None) -> tuple[Tensors, tuple[str, ...]]:
    side = _side(fields, where, image_size, _PIXELS_A_LATENT, fields["patch_size"])
    tensors: Tensors = {
        "hidden_states": ((fields["in_channels"], side, side), "float32"),
        "encoder_hidden_states": ((2 * _CONTEXT, fields["joint_attention_dim"]), "float32"),
        "pooled_projections": ((fields["pooled_projection_dim"],), "float32"),
        "timestep": ((), "float32"),
    }
    return tensors, (f"latents of {side} x {side} and contexts of {2 * _CONTEXT} tokens",)


def _flux(fields: dict[str, Any], where: str, image_size: int | None) -> tuple[Tensors, tuple[str, ...]]:
    pixels = image_size or 1024
    if pixels % (2 * _PIXELS_A_LATENT):
        nearest = max(1, round(pixels / (2 * _PIXELS_A_LATENT))) * 2 * _PIXELS_A_LATENT
        raise InvalidInputError(f"image-size {pixels} does not divide by {2 * _PIXELS_A_LATENT}, as FluxTransformer2DModel needs; nearest: {nearest}")
    count = (pixels // (2 * _PIXELS_A_LATENT)) ** 2
    guided: Tensors = {"guidance": ((), "float32")} if fields["guidance_embeds"] else {}
    tensors: Tensors = {
        "hidden_states": ((count, fields["in_channels"]), "float32"),
        "encoder_hidden_states": ((_FLUX_CONTEXT, fields["joint_attention_dim"]), "float32"),
        "pooled_projections": ((fields["pooled_projection_dim"],), "float32"),
        "timestep": ((), "float32"),
        "img_ids": functools.partial(positions, (count, 3)),
        "txt_ids": functools.partial(positions, (_FLUX_CONTEXT, 3)),
        **guided,
    }
    return tensors, (f"{count:,} patches of latents of an image of {pixels} x {pixels} and contexts of {_FLUX_CONTEXT} tokens",)


def _wan(fields: dict[str, Any], where: str, image_size: int | None) -> tuple[Tensors, tuple[str, ...]]:
    height, width = (image_size, image_size) if image_size else _WAN_PIXELS
    divisor = _PIXELS_A_LATENT * fields["patch_size"][-1]
    if height % divisor:
        nearest = max(1, round(height / divisor)) * divisor
        raise InvalidInputError(f"image-size {height} does not divide by {divisor}, as WanTransformer3DModel needs; nearest: {nearest}")
    shape = (fields["in_channels"], 1 + (_WAN_FRAMES - 1) // 4, height // _PIXELS_A_LATENT, width // _PIXELS_A_LATENT)
    tensors: Tensors = {
        "hidden_states": (shape, "float32"),
        "encoder_hidden_states": ((_WAN_CONTEXT, fields["text_dim"]), "float32"),
        "timestep": ((), "long"),
    }
    return tensors, (f"videos of {_WAN_FRAMES} frames of {height} x {width}, latents of {' x '.join(map(str, shape[1:]))}, contexts of {_WAN_CONTEXT} tokens",)


_NETWORKS: dict[str, tuple[Callable[[dict[str, Any], str, int | None], tuple[Tensors, tuple[str, ...]]], Callable[[Any, Any], Any]]] = {
    "UNet2DConditionModel": (_unet, denoising_loss),
    "UNet2DModel": (_plain_unet, denoising_loss),
    "DiTTransformer2DModel": (_dit, dit_loss),
    "SD3Transformer2DModel": (_sd3, flow_loss),
    "FluxTransformer2DModel": (_flux, flow_loss),
    "WanTransformer3DModel": (_wan, flow_loss),
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
    if "sample_size" in given and given["sample_size"] is None:
        given["sample_size"] = 64
    make, loss = _NETWORKS[name]
    tensors, remarks = make({"_class_name": name, **given}, where, image_size)
    sized = {**fields, "sample_size": tensors[next(iter(tensors))][0][-1]} if "sample_size" in given else fields  # type: ignore[index]
    model = diffusers_model(name, f", from {where}{zeros_among(fields, lambda field: defaults.get(field, UNKNOWN))}", **sized)
    precision = "bf16-mixed" if loss is flow_loss else "fp16-mixed"  # as diffusers' examples train them
    return Workload(model, batch_of(**tensors), loss, training=Training(precision=precision, optimizer="adamw"), remarks=remarks)
