# SPDX-License-Identifier: Apache-2.0
"""Every device holds a part of each parameter: `fully_shard`, over all devices or within each node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
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
    low, summed = (DTYPES[name] if name else None for name in (parallel.param_dtype, parallel.reduce_dtype))
    options: dict[str, Any] = {
        "mesh": init_device_mesh("cuda", tuple(sides), mesh_dim_names=tuple(names)),
        "reshard_after_forward": parallel.reshard_after_forward,
    }
    if low is not None or summed is not None:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=summed)
    for unit in (*blocks(model, parallel.wrap), model):
        placement.place(unit, training, recorder)  # as it does itself, of weights that have data
        fully_shard(unit, **options)
    placement.categorize(model, training, recorder)
    return model


@contextlib.contextmanager
def apart(model: Any) -> Iterator[None]:
    """Gradients stay whole, in what they are to be summed in."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole_gradients(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of parameters as they were gathered, with the names of their modules."""
    names = {id(module): name for name, module in model.named_modules()}
    for unit in model.modules():
        group = unit._get_fsdp_state()._fsdp_param_group if hasattr(unit, "_get_fsdp_state") else None
        for parameter in group.fsdp_params if group else ():
            gathered = getattr(parameter, "_unsharded_param", None)
            for found in (parameter.unsharded_accumulated_grad, None if gathered is None else gathered.grad):
                if found is not None:
                    yield names.get(id(parameter._module_info.module), ""), found


def blocks(model: torch.nn.Module, names: tuple[str, ...]) -> list[torch.nn.Module]:
    """Modules of these classes, else of those that a transformers model does not split, else the outermost repeated ones; innermost first."""
    wanted = set(names or getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted][::-1]
    if names and not found:
        known = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise InvalidInputError(f"parallel wrap {', '.join(names)}: the model has no module of such a class; it has {known}")
    return found or placement.repeated_blocks(model)
