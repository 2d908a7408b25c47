# SPDX-License-Identifier: Apache-2.0
"""Every device holds a part of each parameter: `fully_shard`, over all devices or within each node."""

from __future__ import annotations

from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.devices import layers
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model in shards, which come from the host block by block: it never stands on the device whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    sides, names = [parallel.devices], ["shard"]
    if parallel.kind == "hsdp":
        sides, names = [parallel.nodes, parallel.devices // parallel.nodes], ["replicate", "shard"]
    if parallel.tensor > 1:
        sides, names = [parallel.replicas, parallel.tensor], ["shard", "tensor"]
    low, summed = (DTYPES[name] if name else None for name in (parallel.param_dtype, parallel.reduce_dtype))
    mesh = init_device_mesh("cuda", tuple(sides), mesh_dim_names=tuple(names))
    if parallel.tensor > 1:
        layers.split(model, training, recorder, mesh["tensor"])
    options: dict[str, Any] = {
        "mesh": mesh["shard"] if parallel.tensor > 1 else mesh,
        "reshard_after_forward": parallel.reshard_after_forward,
    }
    if low is not None or summed is not None:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=summed)
    for unit in (*blocks(model, parallel.wrap), model):
        placement.place(unit, training, recorder)  # as it does itself, of weights that have data
        fully_shard(unit, **options)
    placement.categorize(model, training, recorder)
    return model


def optimizer(model: torch.nn.Module, training: Training) -> Any:
    """Where layers are split, too, the optimizer of the recipe over groups; else None, for it takes them all."""
    return layers.optimizer(model, training) if training.parallel is not None and training.parallel.tensor > 1 else None


def blocks(model: torch.nn.Module, names: tuple[str, ...]) -> list[torch.nn.Module]:
    """Modules of these classes, else of those that a transformers model does not split, else the outermost repeated ones; innermost first."""
    wanted = set(names or getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted][::-1]
    if names and not found:
        known = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise InvalidInputError(f"parallel wrap {', '.join(names)}: the model has no module of such a class; it has {known}")
    return found or placement.repeated_blocks(model)
