# SPDX-License-Identifier: Apache-2.0
"""A batch to start from, for the batch finders of other trainers."""

from __future__ import annotations

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, fit, on_devices
from bsmodel.planning import power_of_two_at_most
from bsmodel.recording import trace
from bsmodel.training import Training
from bsmodel.units import whole
from bsmodel.validation import card_here
from bsmodel.workloads import Workload


def find_batch(workload: Workload | str, training: Training | None = None, gpu: Gpu | str | None = None, devices: int = 1) -> int:
    """The largest power of two that is predicted to train on a card without end, as samples of one micro-batch on one device.

    `workload`: one, or the name of one as `Workload.named` takes it; `training`: the recipe (default: the workload's own). `gpu`: a card, or its name
    (default: the first CUDA device here). `devices`: how many train together, their gradients summed by `DistributedDataParallel`.
    It is `fit(...).batch`, the safe figure, rounded down: batch finders double or halve, and come back to what they started from.

    Raises `InvalidInputError` where not one sample fits, or no card is given and none is here, and what `trace` and `Workload.named` raise.
    """
    asked = Workload.named(workload) if isinstance(workload, str) else workload
    found = fitted_on(_card(gpu), asked, asked.recipe(training), whole("devices", devices))
    if found.batch < 1:
        raise InvalidInputError(f"{found.tape.name} {found.verdict}")
    return power_of_two_at_most(found.batch)


def fitted_on(gpu: Gpu, workload: Workload, training: Training, devices: int) -> Fit:
    """The largest micro-batch on one of so many devices of this card."""
    return fit(on_devices(trace(workload, training, gpu), devices), gpu)


def _card(gpu: Gpu | str | None) -> Gpu:
    if gpu is None and not torch.cuda.is_available():
        raise InvalidInputError("there is no CUDA device here to find a batch for; name a card with gpu=, or --gpu")
    if gpu is None:
        return card_here()
    return Gpu.named(gpu) if isinstance(gpu, str) else gpu
