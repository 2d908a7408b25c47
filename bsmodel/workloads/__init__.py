# SPDX-License-Identifier: Apache-2.0
"""What is trained: a named model, a config of transformers or diffusers, one of timm's or torchvision's, or your own."""

from bsmodel.workloads.bare import LOSSES, bare_module
from bsmodel.workloads.batches import classification_loss, denoising_loss, dit_loss, image_batch, own_loss, token_batch
from bsmodel.workloads.catalogue import ModelRow
from bsmodel.workloads.libraries import filled, library, silence, transformers_config, transformers_model
from bsmodel.workloads.named import KNOWN_RATES, LARGE_ENCODER, MADE_HERE, NAMED, PUBLISHED, vision
from bsmodel.workloads.own import attribute
from bsmodel.workloads.sources import Source
from bsmodel.workloads.workload import Workload

__all__ = (
    "KNOWN_RATES",
    "LARGE_ENCODER",
    "LOSSES",
    "MADE_HERE",
    "NAMED",
    "PUBLISHED",
    "ModelRow",
    "Source",
    "Workload",
    "attribute",
    "bare_module",
    "classification_loss",
    "denoising_loss",
    "dit_loss",
    "filled",
    "image_batch",
    "library",
    "own_loss",
    "silence",
    "token_batch",
    "transformers_config",
    "transformers_model",
    "vision",
)
