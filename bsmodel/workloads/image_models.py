# SPDX-License-Identifier: Apache-2.0
"""Models of timm and torchvision: what each of their tasks is given, and the loss it is trained with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bsmodel.errors import UnknownNameError
from bsmodel.training import Training
from bsmodel.workloads.batches import Batches, batch_of, classification_loss, image_batch, objects, zeros
from bsmodel.workloads.heads.objects import OBJECTS, SAID
from bsmodel.workloads.libraries import library
from bsmodel.workloads.workload import Workload

_SIDE = 224
# Of images that are not what a task's usually are: references/classification and references/video_classification of torchvision.
_SIDES = {**dict.fromkeys(("inception_v3", "quantized_inception_v3"), 299), **dict.fromkeys(("r3d_18", "mc3_18", "r2plus1d_18"), 112)}
_FIELDS = {name: {"init_weights": False} for name in ("inception_v3", "googlenet")}  # takes a minute, and a warning says that it will go
_FRAMES = 16  # of a clip: references/video_classification of torchvision
_CLASSES = 91  # COCO's, which detectors tell apart where nothing is named


@dataclass(frozen=True)
class _Task:
    """What the models of one of torchvision's packages take: batches for a side of the images, and what their constructors are given."""

    side: int
    batch: Callable[[int], Batches]
    loss: Callable[[Any, Any], Any]
    fields: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def timm_workload(architecture: str, image_size: int | None = None) -> Workload:
    """An image classifier of timm; images of 224 x 224 where the model takes any, else of its own size."""
    timm = library("timm")
    _require("timm model", architecture, timm.list_models())
    side = image_size or _side_of(timm.models.get_pretrained_cfg(architecture))
    training = Training(precision="bf16-mixed", optimizer="adamw")
    return Workload(functools.partial(_of_timm, architecture), image_batch(side), classification_loss, training=training)


def _side_of(known: Any) -> int:
    """The side of the images that a model of timm takes: its own where it does not take any."""
    if known is None or not (known.fixed_input_size or known.min_input_size):
        return _SIDE
    side: int = known.input_size[-1]
    return side


def _of_timm(architecture: str) -> Any:
    return library("timm").create_model(architecture, pretrained=False)


def torchvision_workload(architecture: str, image_size: int | None = None) -> Workload:
    """A model of torchvision with the batch and the loss of its task: classes of images or of clips, segmentation, detection, optical flow."""
    models = library("torchvision").models
    _require("torchvision model", architecture, models.list_models())
    package = models.get_model_builder(architecture).__module__.split(".")[2]
    task = _TASKS.get(package, _CLASSIFIED)
    side = image_size or _SIDES.get(architecture, task.side)
    training = Training(precision="fp16-mixed", optimizer="sgd-momentum")
    model = functools.partial(_of_torchvision, architecture, task.fields | _FIELDS.get(architecture, {}))
    return Workload(model, task.batch(side), task.loss, training=training, remarks=task.remarks)


def _of_torchvision(architecture: str, fields: dict[str, Any]) -> Any:
    return library("torchvision").models.get_model(architecture, weights=None, **fields)


def _classified_loss(model: Any, batch: Any) -> Any:
    """Cross entropy, and 0.4 of that of each classifier on the way (Szegedy et al. 2015, arXiv 1512.00567, section 4)."""
    import torch

    outputs = model(batch["pixel_values"])
    main, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = torch.nn.functional.cross_entropy(main, batch["labels"])
    for other in others:
        if other is not None:
            loss = loss + 0.4 * torch.nn.functional.cross_entropy(other, batch["labels"])
    return loss, outputs


def _clips(side: int) -> Batches:
    return batch_of(pixel_values=((3, _FRAMES, side, side), "float32"), labels=((), "long"))


def _segmented(side: int) -> Batches:
    return batch_of(pixel_values=((3, side, side), "float32"), labels=((side, side), "long"))


def _segmented_loss(model: Any, batch: Any) -> Any:
    """Cross entropy of every pixel, and half of that of the auxiliary head where there is one: references/segmentation of torchvision."""
    import torch

    outputs = model(batch["pixel_values"])
    losses = {name: torch.nn.functional.cross_entropy(output, batch["labels"], ignore_index=255) for name, output in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"], outputs


def _images(side: int, size: int) -> list[Any]:
    return [zeros(3, side, side) for _ in range(size)]


def _targets(side: int, size: int) -> list[dict[str, Any]]:
    """Boxes by their corners, in pixels, and their classes."""
    found = []
    for target in objects(OBJECTS, _CLASSES, None, size):
        centre, extent = target["boxes"].split(2, dim=-1)
        corners = library("torch").cat([centre - extent / 2, centre + extent / 2], dim=-1)
        found.append({"boxes": corners * side, "labels": target["class_labels"]})
    return found


def _detected(side: int) -> Batches:
    return batch_of(images=functools.partial(_images, side), targets=functools.partial(_targets, side))


def _detected_loss(model: Any, batch: Any) -> Any:
    """The sum of the losses that a detector gives: references/detection of torchvision."""
    losses = model(batch["images"], batch["targets"])
    return sum(losses.values()), losses


def _flowing(side: int) -> Batches:
    return batch_of(first=((3, side, side), "float32"), second=((3, side, side), "float32"), flow=((2, side, side), "float32"))


def _flowing_loss(model: Any, batch: Any) -> Any:
    """The distance of each of the flows found from the true one, the later ones counting for more (Teed & Deng 2020, arXiv 2003.12039, section 3.4)."""
    flows = model(batch["first"], batch["second"])
    loss = sum(0.8 ** (len(flows) - 1 - index) * (flow - batch["flow"]).abs().mean() for index, flow in enumerate(flows))
    return loss, flows


_CLASSIFIED = _Task(_SIDE, image_batch, _classified_loss)
_NO_WEIGHTS = {"weights_backbone": None}
_TASKS = {
    "segmentation": _Task(480, _segmented, _segmented_loss, _NO_WEIGHTS),
    "detection": _Task(640, _detected, _detected_loss, _NO_WEIGHTS, (SAID,)),
    "video": _Task(_SIDE, _clips, _classified_loss, remarks=(f"clips of {_FRAMES} frames",)),
    "optical_flow": _Task(368, _flowing, _flowing_loss),
}


def _require(kind: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UnknownNameError(kind, name, known)
