# SPDX-License-Identifier: Apache-2.0
"""Every device holds the whole model: DistributedDataParallel, and ZeroRedundancyOptimizer in it."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

_BUCKET = "gradient bucket"


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model on the device, in DistributedDataParallel."""
    placement.place(model, training, recorder)
    before = len(recorder.events)
    wrapped = torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[0], bucket_cap_mb=parallel.bucket_mb, gradient_as_bucket_view=parallel.gradient_as_bucket_view
    )
    recorder.categorize_live(before, _BUCKET)
    return wrapped


def settle(model: torch.nn.Module, recorder: Recorder) -> None:
    """Buckets in the order in which gradients became ready."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        before = len(recorder.events)
        model.reducer._rebuild_buckets()
        recorder.categorize_live(before, _BUCKET)


def optimizer(model: torch.nn.Module, training: Training) -> Any:
    """Of the states of `zero1`'s optimizer each rank holds a part; None for `ddp`, which has an ordinary one."""
    if training.parallel is None or training.parallel.kind != "zero1" or not isinstance(training.optimizer, str):
        return None
    with warnings.catch_warnings(action="ignore"):  # of what torch's other optimizers are made of
        from torch.distributed.optim import ZeroRedundancyOptimizer

    made, arguments = placement.optimizer_class(training.optimizer)
    options: dict[str, Any] = dict(arguments)
    return ZeroRedundancyOptimizer([parameter for parameter in model.parameters() if parameter.requires_grad], optimizer_class=made, **options)
