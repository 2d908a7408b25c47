# SPDX-License-Identifier: Apache-2.0
"""One rank of several: PyTorch's own wrappers around the model, over a process group that answers at once."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training
from bsmodel.workloads import Workload

RANK = 0  # the one that answers are of
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def group(parallel: Parallel | None) -> Iterator[None]:
    """Within this context there is a process group of so many devices, none where the recipe is for one."""
    if parallel is None:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise InvalidInputError("a process group is initialized in this process; record in one without")
    hook = sys.excepthook  # torch puts its own there, which says of which rank an error is
    dist.init_process_group("fake", rank=RANK, world_size=parallel.devices, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def placed(model: torch.nn.Module, training: Training, recorder: Recorder) -> torch.nn.Module:
    """The model on the device, wrapped as its parallelism asks for; sharded ones come from the host block by block, and never stand there whole."""
    parallel = training.parallel
    if parallel is None:
        placement.place(model, training, recorder)
        return model
    if parallel.shards:
        _shard(model, training, parallel, recorder)
        placement.categorize(model, training, recorder)
        return model
    placement.place(model, training, recorder)
    before = len(recorder.events)
    wrapped = torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[0], bucket_cap_mb=parallel.bucket_mb, gradient_as_bucket_view=parallel.gradient_as_bucket_view
    )
    recorder.categorize_live(before, "gradient bucket")
    return wrapped


def settle(model: torch.nn.Module, recorder: Recorder) -> None:
    """What DistributedDataParallel does once, when its second forward pass begins: buckets in the order in which gradients became ready."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        before = len(recorder.events)
        model.reducer._rebuild_buckets()
        recorder.categorize_live(before, "gradient bucket")


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The user's model inside of a wrapper that is a module of its own."""
    found: torch.nn.Module = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    return found


def _shard(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cuda", (parallel.devices,))
    low, summed = (DTYPES[name] if name else None for name in (parallel.param_dtype, parallel.reduce_dtype))
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": parallel.reshard_after_forward}
    if low is not None or summed is not None:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=summed)
    for unit in (*_blocks(model, parallel.wrap), model):
        placement.place(unit, training, recorder)  # as it does itself, of weights that have data
        fully_shard(unit, **options)


def _blocks(model: torch.nn.Module, names: tuple[str, ...]) -> list[torch.nn.Module]:
    """Modules of these classes, else of those that a transformers model does not split, else the outermost repeated ones; innermost first."""
    wanted = set(names or getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted][::-1]
    if names and not found:
        known = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise InvalidInputError(f"parallel wrap {', '.join(names)}: the model has no module of such a class; it has {known}")
    return found or placement.repeated_blocks(model)


def set_up(model: torch.nn.Module, workload: Workload, training: Training) -> Any:
    """What steps are given beside the model; of the states of `zero1`'s optimizer each rank holds a part."""
    if training.parallel is None or training.parallel.kind != "zero1" or not isinstance(training.optimizer, str):
        return placement.set_up(model, workload, training)
    with warnings.catch_warnings(action="ignore"):  # of what torch's other optimizers are made of
        from torch.distributed.optim import ZeroRedundancyOptimizer

    made, arguments = placement.optimizer_class(training.optimizer)
    options: dict[str, Any] = dict(arguments)
    return ZeroRedundancyOptimizer([parameter for parameter in model.parameters() if parameter.requires_grad], optimizer_class=made, **options)
