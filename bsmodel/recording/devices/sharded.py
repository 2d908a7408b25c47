# SPDX-License-Identifier: Apache-2.0
"""Every device holds a part of each parameter: `fully_shard`, over all devices or within each node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.cuda_like.pretence import replaced
from bsmodel.recording.devices import layers
from bsmodel.recording.devices.units import units
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@contextlib.contextmanager
def within() -> Iterator[None]:
    """Within this context parameters are cut into the first rank's part only, which is the one that is recorded, and not into one for each of 16,384."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    with replaced(_fsdp_param, "_chunk_with_empty", lambda tensor, parts, dim: [tensor.narrow(dim, 0, -(-tensor.size(dim) // parts))]):
        yield


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model in shards, which come from the host block by block: it never stands on the device whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    sides, names = [parallel.devices], ["shard"]
    if parallel.kind == "hsdp":
        sides, names = [parallel.nodes, parallel.devices // parallel.nodes], ["replicate", "shard"]
    if parallel.tensor > 1:
        sides, names = [parallel.replicas, parallel.tensor], ["shard", "tensor"]
    mesh = init_device_mesh("cuda", tuple(sides), mesh_dim_names=tuple(names))
    if parallel.tensor > 1:
        layers.split(model, training, recorder, mesh["tensor"])
    options: dict[str, Any] = {"mesh": mesh["shard"] if parallel.tensor > 1 else mesh}
    if policy := _policy(training, parallel):
        options["mp_policy"] = MixedPrecisionPolicy(**policy)
    if parallel.preset == "accelerate" and training.half is not None:
        _in_float32(model)
    held = []
    for unit in units(model, parallel):
        placement.place(torch.nn.ModuleList(unit.modules), training, recorder)  # as it does itself, of weights that have data
        held += [module.weight for module in unit.held]
        fully_shard([*unit.modules] if len(unit.modules) > 1 else unit.modules[0], reshard_after_forward=unit.reshard, **options)
    placement.categorize(model, training, recorder)
    return model


def optimizer(model: torch.nn.Module, training: Training) -> Any:
    """Where layers are split, too, the optimizer of the recipe over groups; else None, for it takes them all."""
    return layers.optimizer(model, training) if training.parallel is not None and training.parallel.tensor > 1 else None


def _policy(training: Training, parallel: Parallel) -> dict[str, Any]:
    """What parameters are gathered and gradients summed in; a preset may take it from the precision, and say what becomes of inputs and outputs."""
    low, summed = (DTYPES[name] if name else None for name in (parallel.param_dtype, parallel.reduce_dtype))
    given = {name: dtype for name, dtype in (("param_dtype", low), ("reduce_dtype", summed)) if dtype is not None}
    if parallel.preset == "accelerate" and training.half is not None:
        half = getattr(torch, training.half)
        return {"param_dtype": half, "reduce_dtype": half, "output_dtype": half, **given}
    return {**given, "cast_forward_inputs": False} if parallel.preset == "torchtitan" else given


def _in_float32(model: torch.nn.Module) -> None:
    """What is trained, whatever it was built in."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype is not torch.float32:
            parameter.data = parameter.data.to(torch.float32)


@contextlib.contextmanager
def apart(model: Any) -> Iterator[None]:
    """Gradients stay whole, in what they are to be summed in."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole_gradients(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of parameters as they were gathered, with the names of their modules."""
    names = {id(module): name for name, module in model.named_modules()}
    for unit in model.modules():
        group = unit._get_fsdp_state()._fsdp_param_group if hasattr(unit, "_get_fsdp_state") else None
        for parameter in group.fsdp_params if group else ():
            gathered = getattr(parameter, "_unsharded_param", None)
            for found in (parameter.unsharded_accumulated_grad, None if gathered is None else gathered.grad):
                if found is not None:
                    yield names.get(id(parameter._module_info.module), ""), found
