# SPDX-License-Identifier: Apache-2.0
"""Batches of text with an image in it."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.workloads.batches import ones, repeated, with_placeholders
from bsmodel.workloads.heads import images
from bsmodel.workloads.heads.images import pixels
from bsmodel.workloads.heads.made import OWN, Asked, Made, Tensors
from bsmodel.workloads.heads.placed import around, placed, placeholder, room
from bsmodel.workloads.heads.text import classes, length_of, running_text

PHOTOGRAPH = (480, 640)  # height and width of most of COCO's
# Types of models with the image processor of another, as their checkpoints say.
_PROCESSORS = {
    "glm4v_moe": "glm4v",
    "glm_ocr": "glm46v",
    "qwen2_5_omni_thinker": "qwen2_vl",
    "qwen3_omni_moe_thinker": "qwen2_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "t5gemma2": "gemma3",
}
# Types of models to which the patches of all images are one row: image_processing_minicpmv4_6.py of transformers.
_PACKED = ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
# What an image processor is told by the configuration, and what it calls that.
_TOLD = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "spatial_merge_size": "merge_size",
    "num_patches": "max_num_patches",
    "image_grid_pinpoints": "image_grid_pinpoints",
}


def classified(config: Any, cls: Any, asked: Asked) -> Made:
    """Images and their classes; for models that see patches of images of any form, a photograph as transformers' image processor of the model cuts it."""
    if "spatial_shapes" not in inspect.signature(cls.forward).parameters:
        return images.classified(config, cls, asked)
    height, width = _photograph(asked)
    remark = f"images of {height} x {width} pixels, in at most {config.vision_config.num_patches} patches"
    return Made({**_processed(config, cls, (height, width)), **classes(config)}, (remark,))


def contrasted(config: Any, cls: Any, asked: Asked) -> Made:
    """Images, and texts that go with them: each is held against all others of the batch."""
    channels, size, remarks = pixels(config, {name: value for name, value in asked.items() if name == "image_size"})
    length, more = length_of(config, cls, {name: value for name, value in asked.items() if name == "seq_len"})
    text: Tensors = {"input_ids": ((length,), "long"), "return_loss": lambda count: True}
    if "attention_mask" in inspect.signature(cls.forward).parameters:
        text["attention_mask"] = ((length,), "long")
    return Made({"pixel_values": ((channels, *size), "float32"), **text}, (*remarks, *more), length)


def described(config: Any, cls: Any, asked: Asked) -> Made:
    """Text with one image: its pixels as transformers' image processor of the model gives them, and tokens that stand for them."""
    if config.model_type == "vision-encoder-decoder":
        return _written(config, cls, asked)
    blind = "pixel_values" not in inspect.signature(cls.forward).parameters or getattr(config, "vision_config", config) is None
    if blind:  # the text of a larger model
        return running_text(config, cls, asked)
    height, width = _photograph(asked)
    image = _patches(config, height, width) if config.model_type == "fuyu" else _processed(config, cls, (height, width))
    said = f"one image of {height} x {width} pixels"
    if config.model_type not in _BESIDE:
        return placed(config, cls, asked, image, "image", said)
    length, remarks = room(config, cls, asked, getattr(config, "latent_query_num", 0), "image")
    text = _BESIDE[config.model_type](config, cls, length)
    return Made({**image, **text, "labels": ((length,), "long")}, (f"{said} a sample", *remarks), length)


def _photograph(asked: Asked) -> tuple[int, int]:
    side = asked.get("image_size")
    return (side, side) if side else PHOTOGRAPH


# -- images --------------------------------------------------------------------------------------------------------------------------------


def _processed(config: Any, cls: Any, size: tuple[int, int]) -> Tensors:
    """What transformers' image processor of this type of model makes of an image of this height and width: what the model takes of it."""
    import torch
    from PIL import Image

    known = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    names = known.get(_PROCESSORS.get(config.model_type, config.model_type)) or {}
    if not names:
        raise InvalidInputError(f"{cls.__name__}: transformers has no image processor for {config.model_type!r}; {OWN}")
    processor = getattr(importlib.import_module("transformers"), names.get("pil") or names["torchvision"])
    image = Image.new("RGB", (size[1], size[0]))
    made = processor(**_settings(config, processor))
    try:
        found = made(images=[image], return_tensors="pt")
    except Exception:  # some want a list for each sample
        found = made(images=[[image]], return_tensors="pt")
    fields: Tensors = {}
    if isinstance(found, torch.Tensor):  # of Idefics, whose samples have any number of images
        found = {"pixel_values": found[:, None]}
    for name, value in found.items():
        whole = torch.stack(value) if isinstance(value, list) and value and isinstance(value[0], torch.Tensor) else torch.as_tensor(value)
        axis = -1 if name == "pixel_values" and config.model_type in _PACKED else 0
        if name in inspect.signature(cls.forward).parameters:
            fields[name] = functools.partial(repeated, tuple(whole.shape), None if whole.is_floating_point() else whole.tolist(), axis)
    return fields


def _patches(config: Any, height: int, width: int) -> Tensors:
    """The patches of an image, which Fuyu's processor gives under another name: processing_fuyu.py of transformers."""
    side = config.patch_size
    return {"pixel_values": ((-(-height // side) * -(-width // side), side * side * config.num_channels), "float32")}


def _settings(config: Any, processor: Any) -> dict[str, Any]:
    """What a configuration says of what its image processor does."""
    vision = getattr(config, "vision_config", None) or getattr(getattr(config, "encoder", None), "vision_config", config)
    said = {name: getattr(part, ours, None) for part in (config, vision) for ours, name in _TOLD.items() if getattr(part, ours, None)}
    settings = {name: value for name, value in said.items() if hasattr(processor, name)}
    side = getattr(vision, "image_size", None)
    side = side[0] if isinstance(side, (list, tuple)) else side
    size = getattr(processor, "size", None) or {}
    if side and set(size) in ({"height", "width"}, {"shortest_edge"}):
        settings["size"] = dict.fromkeys(size, side)
        if getattr(processor, "crop_size", None):
            settings["crop_size"] = {"height": side, "width": side}
    tile = getattr(processor, "max_image_size", None)
    if side and isinstance(tile, dict):  # images are cut into tiles of the size that the model sees, once they are so many tiles long
        settings["max_image_size"] = {"longest_edge": side}
        settings["size"] = {"longest_edge": side * size["longest_edge"] // tile["longest_edge"]}
    return settings


def _written(config: Any, cls: Any, asked: Asked) -> Made:
    """An image, and the text that is written of it."""
    channels, size, remarks = pixels(config.encoder, {name: value for name, value in asked.items() if name == "image_size"})
    length, more = length_of(config.decoder, cls, {name: value for name, value in asked.items() if name == "seq_len"})
    return Made({"pixel_values": ((channels, *size), "float32"), "labels": ((length,), "long")}, remarks + more, length)


# -- text ----------------------------------------------------------------------------------------------------------------------------------


def _beside(config: Any, cls: Any, length: int) -> Tensors:
    """Text beside an image, which no token of it stands for."""
    return around(config, cls, (), length)


def _crossed(config: Any, cls: Any, length: int) -> Tensors:
    """Text that attends to an image of so many tiles: processing_mllama.py of transformers."""
    tiles = config.vision_config.max_num_tiles
    return {**around(config, cls, (placeholder(config, cls, "image"),), length), "cross_attention_mask": functools.partial(ones, (length, 1, tiles))}


def _attended(config: Any, cls: Any, length: int) -> Tensors:
    """Text that attends to one image: processing_idefics.py of transformers."""
    return {**around(config, cls, (), length), "image_attention_mask": functools.partial(ones, (length, 1))}


def _latent(config: Any, cls: Any, length: int) -> Tensors:
    """Text in which as many tokens as the image has queries are replaced: processing_kosmos2.py of transformers."""
    queries = (1,) * config.latent_query_num
    return {**around(config, cls, queries, length), "image_embeds_position_mask": functools.partial(with_placeholders, length, 0, queries)}


def _unread(config: Any, cls: Any, length: int) -> Tensors:
    """No text but the one that is to be written."""
    return {}


# How text goes with an image where no placeholders are held against its features.
_BESIDE: dict[str, Callable[[Any, Any, int], Tensors]] = {
    "blip": _beside,
    "git": _beside,
    "idefics": _attended,
    "kosmos-2": _latent,
    "kosmos-2.5": _latent,
    "mllama": _crossed,
    "pix2struct": _unread,
    "pp_formulanet": _unread,
}
