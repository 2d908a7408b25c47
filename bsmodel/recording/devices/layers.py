# SPDX-License-Identifier: Apache-2.0
"""Every device holds a part of each layer, and several share their samples: tensor parallelism by a model's own plan, in shards or not."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.cuda_like.pretence import replaced
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training


@dataclass(frozen=True)
class Style:
    """What a plan asks of a layer: the class of torch.distributed.tensor.parallel, and which of its layouts is whole on every device.

    Without a class the layer is whole, and works on what each device has of the heads: only its gradients are summed.
    """

    kind: str = ""
    whole: str = ""


# Source: transformers/distributed/tensor_parallel.py, ALL_PARALLEL_STYLES, and the older integrations/tensor_parallel.py.
STYLES: dict[str, Style] = {
    "colwise": Style("ColwiseParallel"),
    "rowwise": Style("RowwiseParallel"),
    **dict.fromkeys(("colwise_gather_output", "colwise_rep"), Style("ColwiseParallel", "output_layouts")),
    **dict.fromkeys(("rowwise_split_input", "rowwise_rep"), Style("RowwiseParallel", "input_layouts")),
    "replicated_with_grad_allreduce": Style(),
}


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Within this context nothing is recorded of what DTensor asks about shapes, on tensors of the whole size that no device ever has."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    asks = getattr(ShardingPropagator, name)

    def aside(*given: Any) -> Any:
        with _disable_current_modes():
            return asks(*given)

    with replaced(ShardingPropagator, name, aside):
        yield


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model on the device in parts, which come from the host layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cuda", (parallel.tensor,))
    for module, style in layers(model):
        placement.place(module, training, recorder)
        split(module, style, mesh)
    placement.place(model, training, recorder)
    placement.categorize(model, training, recorder)
    return model


def split(module: torch.nn.Module, style: Style, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, parallel

    if style.kind:
        made = getattr(parallel, style.kind)(**({style.whole: Replicate()} if style.whole else {}))
        parallel.parallelize_module(module, mesh, made)
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda given: torch.distributed.all_reduce(given.grad, group=mesh.get_group()))


def layers(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, Style]]:
    plan = plan_of(model)
    for name, module in model.named_modules():
        style = plan.get(re.sub(r"\d+", "*", name))
        if style is None:
            continue
        yield module, STYLES[style]


def plan_of(model: torch.nn.Module) -> dict[str, str]:
    found = {}
    for name, module in model.named_modules():
        own = dict(getattr(type(module), "_tp_plan", None) or {})
        if getattr(module, "base_model", None) is module:
            own.update(module.config.base_model_tp_plan or {})
        if name and name.count(".") > 0: continue
        prefix = f"{name}." if name else ""
        found.update({prefix + path: style for path, style in own.items()})
    return found
def optimizer(model: torch.nn.Module, training: Training) -> Any:
    """The optimizer of the recipe over two groups: operators over lists of tensors take no DTensors and plain tensors together."""
    from torch.distributed.tensor import DTensor

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [[p for p in trained if isinstance(p, DTensor)], [p for p in trained if not isinstance(p, DTensor)]]
    return placement.make_optimizer([{"params": group} for group in groups if group], training)
