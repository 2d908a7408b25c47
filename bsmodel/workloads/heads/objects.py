# SPDX-License-Identifier: Apache-2.0
"""Batches of images with the objects in them: boxes, masks and classes."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from bsmodel.workloads.batches import class_labels, framed, mask_labels, objects
from bsmodel.workloads.heads.images import pixels
from bsmodel.workloads.heads.made import Asked, Made, Tensors
from bsmodel.workloads.libraries import library

OBJECTS = 8  # COCO's images have 7.7 on average (Lin et al. 2014, arXiv 1405.0312, section 5)
SAID = f"{OBJECTS} objects an image, as COCO's have on average"


def _pictures(config: Any, cls: Any, asked: Asked) -> tuple[Tensors, tuple[int, int], tuple[str, ...]]:
    """The images, with a mask of pixels where the model takes one, their height and width, and what is to be said of them."""
    library("scipy")  # its linear_sum_assignment pairs what is found with what is there: transformers/loss/loss_for_object_detection.py
    channels, size, remarks = pixels(config, asked)
    mask: Tensors = {"pixel_mask": functools.partial(framed, size)} if "pixel_mask" in inspect.signature(cls.forward).parameters else {}
    return {"pixel_values": ((channels, *size), "float32"), **mask}, size, (*remarks, SAID)


def detected(config: Any, cls: Any, asked: Asked) -> Made:
    tensors, _, remarks = _pictures(config, cls, asked)
    return Made({**tensors, "labels": functools.partial(objects, OBJECTS, config.num_labels, None)}, remarks)


def segmented(config: Any, cls: Any, asked: Asked) -> Made:
    """Objects with masks: of a detector with a head for masks as it names them, of the others as lists of masks and classes."""
    tensors, size, remarks = _pictures(config, cls, asked)
    if "mask_labels" not in inspect.signature(cls.forward).parameters:
        return Made({**tensors, "labels": functools.partial(objects, OBJECTS, config.num_labels, size)}, remarks)
    tensors["mask_labels"] = functools.partial(mask_labels, OBJECTS, size, "float32")
    tensors["class_labels"] = functools.partial(class_labels, OBJECTS, config.num_labels)
    if config.model_type == "oneformer":  # the task and what is in the image, in words: processing_oneformer.py of transformers
        tensors["task_inputs"] = ((config.task_seq_len,), "long")
        tensors["text_inputs"] = ((config.num_queries - config.text_encoder_n_ctx, config.text_encoder_context_length), "long")
    return Made(tensors, remarks)
