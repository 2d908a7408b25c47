# SPDX-License-Identifier: Apache-2.0
"""The models of published rows by `KIND:NAME`: of torchvision, timm and transformers, or written out here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from bsmodel import Workload
from bsmodel.workloads import own_loss, token_batch, transformers_config, transformers_model
from cases import adapters, segmentation, trainer, video
from cases.hub import CONFIGURATIONS


def declare_torchvision_operators() -> None:
    """Make torchvision importable beside a CPU build of torch: its wheel's compiled operators need CUDA's, its classifiers do not."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


def declare_names_of_transformers_5() -> None:
    """Where transformers 4 is installed, what is called from it to quantize a model, by the name it has since."""
    if importlib.util.find_spec("transformers") is None:
        return
    base = importlib.import_module("transformers.quantizers.base")
    if not hasattr(base, "get_keys_to_not_convert"):
        vars(base)["get_keys_to_not_convert"] = importlib.import_module("transformers.integrations.bitsandbytes").get_keys_to_not_convert


_KEPT: list[Any] = []  # a library's definitions end with it


def _classified(model: Any, batch: Any) -> Any:
    import torch

    output = model(batch[0])
    output = output[0] if isinstance(output, tuple) else output
    return torch.nn.functional.cross_entropy(output, batch[1]), output


def _images(build: Callable[[], Any], image_size: int) -> Workload:
    def batch(size: int) -> Any:
        import torch

        return torch.zeros(size, 3, image_size, image_size), torch.zeros(size, dtype=torch.long)

    return Workload(build, batch, _classified)


def _torchvision(name: str, image_size: int = 224, classes: int = 1000) -> Workload:
    def build() -> Any:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=classes)

    return _images(build, image_size)


def _timm(name: str, image_size: int = 224, classes: int = 1000) -> Workload:
    def build() -> Any:
        import timm

        return timm.create_model(name, num_classes=classes)

    return _images(build, image_size)


def _hub(name: str, seq_len: int, attention: str | None = None, head: str | None = None, padded: bool = False, **fields: Any) -> Workload:
    declare_names_of_transformers_5()
    model_type, usual_head, own_fields = CONFIGURATIONS[name]
    config = transformers_config(model_type, attention, **{**own_fields, **fields})
    head = head or usual_head
    batch = token_batch(seq_len, "class" if "Sequence" in head and "Seq2Seq" not in head else "tokens", padded)
    return Workload(transformers_model(config, head), batch, own_loss)


KINDS: dict[str, Callable[..., Workload]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hub": _hub,
    "mmseg": segmentation.workload,
    "mmaction": video.workload,
    **trainer.KINDS,
    **adapters.KINDS,
}


def parts(model: str, **options: Any) -> Workload:
    """Model, batches and loss of `KIND:NAME` with these options."""
    declare_torchvision_operators()  # transformers imports it, too, where it is installed
    kind, _, name = model.partition(":")
    return KINDS[kind](name, **options)
