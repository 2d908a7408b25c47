# SPDX-License-Identifier: Apache-2.0
"""Every device holds the whole model: DistributedDataParallel, and ZeroRedundancyOptimizer in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from bsmodel.parallel import BUCKET_MB, Parallel
from bsmodel.recording import placement
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

_BUCKET = "gradient bucket"


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model on the device, in DistributedDataParallel."""
    placement.place(model, training, recorder)
    before, as_trainer = len(recorder.events), parallel.preset == "accelerate"
    if as_trainer and training.half is not None:
        _in_autocast(model, getattr(torch, training.half))
    wrapped = torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=[0],
        bucket_cap_mb=None if parallel.bucket_mb == BUCKET_MB else parallel.bucket_mb,  # given, it is that of the first one, too
        find_unused_parameters=as_trainer and not (training.checkpointing and _is_pretrained(model)),
        gradient_as_bucket_view=parallel.gradient_as_bucket_view,
    )
    recorder.categorize_live(before, _BUCKET)
    return wrapped


def _is_pretrained(model: torch.nn.Module) -> bool:
    """Whether it is a model of transformers, and not one with adapters: the Trainer's question (transformers/trainer.py, `_build_accelerator_args`)."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


def _in_autocast(model: Any, dtype: torch.dtype) -> None:
    """Forward in autocast and what it gives in float32: accelerate/accelerator.py, `prepare_model`."""
    forward = model.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cuda", dtype=dtype):
            outputs = forward(*args, **kwargs)
        return _in_float32(outputs)

    model.forward = run


def _in_float32(outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if isinstance(outputs, Mapping):
        return type(outputs)(**{name: _in_float32(value) for name, value in outputs.items()})
    return type(outputs)(map(_in_float32, outputs)) if type(outputs) in (tuple, list) else outputs


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
