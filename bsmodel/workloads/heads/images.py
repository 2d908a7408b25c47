# SPDX-License-Identifier: Apache-2.0
"""Batches of images."""

from __future__ import annotations

import importlib
from typing import Any

from bsmodel.units import shown
from bsmodel.workloads.heads.made import Asked, Made
from bsmodel.workloads.heads.text import classes


def pixels(config: Any, asked: Asked, otherwise: int | None = None) -> tuple[int, tuple[int, int], tuple[str, ...]]:
    """Channels, height and width; a model whose positions are those of one size of images is built for the one asked for.

    Where the configuration names no size, images are `otherwise` pixels a side, or what transformers' image processor of the model makes.
    """
    part = _sized(config)
    own, side = getattr(part, "image_size", None), asked.get("image_size")
    remarks: tuple[str, ...] = ()
    if side is not None and own is not None and own not in (side, [side, side], (side, side)):
        part.image_size = [side, side] if isinstance(own, (list, tuple)) else side
        remarks = (f"image_size {side} in place of the configuration's {shown(own)}",)
    size = side or own or otherwise or processed(config.model_type)
    height, width = (size, size) if isinstance(size, int) else size
    if own is None and side is None:
        remarks = (f"images of {height} x {width}: the configuration names no size, and none was asked for",)
    return getattr(part, "num_channels", None) or 3, (height, width), remarks


def _sized(config: Any) -> Any:
    """The part of a configuration that says how large images are."""
    backbone = getattr(config, "backbone_config", None)
    if hasattr(config, "image_size"):
        return config
    if hasattr(backbone, "num_windows"):  # of LW-DETR and RF-DETR: only images that divide into its windows can be trained on
        return backbone
    return getattr(config, "vision_config", config)


def processed(model_type: str) -> tuple[int, int]:
    """Height and width that a photograph of 480 x 640 has behind transformers' image processor of this type of model; 640 x 640 if it has none."""
    names = importlib.import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {})
    processor = getattr(importlib.import_module("transformers"), names.get("pil") or "", None)
    size = getattr(processor, "size", None) or {}
    if "shortest_edge" in size and "longest_edge" in size:
        height = min(size["shortest_edge"], size["longest_edge"] * 480 // 640)
        return height, height * 640 // 480
    return (size["height"], size["width"]) if "height" in size else (640, 640)


def classified(config: Any, cls: Any, asked: Asked) -> Made:
    channels, size, remarks = pixels(config, asked, otherwise=224)
    return Made({"pixel_values": ((channels, *size), "float32"), **classes(config)}, remarks)


def segmented(config: Any, cls: Any, asked: Asked) -> Made:
    channels, size, remarks = pixels(config, asked, otherwise=512)
    return Made({"pixel_values": ((channels, *size), "float32"), "labels": (size, "long")}, remarks)


def masked(config: Any, cls: Any, asked: Asked) -> Made:
    """Images, patches of which are masked and drawn again."""
    channels, (height, width), remarks = pixels(config, asked, otherwise=224)
    patches = (height // config.patch_size) * (width // config.patch_size)
    return Made({"pixel_values": ((channels, height, width), "float32"), "bool_masked_pos": ((patches,), "bool")}, remarks)


def drawn(config: Any, cls: Any, asked: Asked) -> Made:
    """Images whose patches the model masks itself."""
    channels, size, remarks = pixels(config, asked, otherwise=224)
    return Made({"pixel_values": ((channels, *size), "float32")}, remarks)


def filmed(config: Any, cls: Any, asked: Asked) -> Made:
    """Videos of as many frames as the configuration says."""
    channels, size, remarks = pixels(config, asked, otherwise=224)
    frames = getattr(config, "num_frames", None) or config.frames_per_clip
    return Made({cls.main_input_name: ((frames, channels, *size), "float32"), **classes(config)}, remarks)
