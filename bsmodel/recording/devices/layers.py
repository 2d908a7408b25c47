# SPDX-License-Identifier: Apache-2.0
"""Every device holds a part of each layer, and several share their samples: tensor parallelism by the model's own plan."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.cuda_like.pretence import replaced
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training


@dataclass(frozen=True)
class Style:
    """What a plan asks of a layer: a class of torch.distributed.tensor.parallel, the dimension of its weight that is split, and what it has whole.

    Without a class the layer is whole on every device, and sees a part of the heads: its gradients are summed.
    """

    kind: str = ""
    dimension: int = 0
    whole: str = ""


# Source: transformers/distributed/tensor_parallel.py, ALL_PARALLEL_STYLES; two of them had other names before 5.0.
STYLES: dict[str, Style] = {
    "colwise": Style("ColwiseParallel", 0),
    "rowwise": Style("RowwiseParallel", 1),
    **dict.fromkeys(("colwise_gather_output", "colwise_rep"), Style("ColwiseParallel", 0, "output_layouts")),
    **dict.fromkeys(("rowwise_split_input", "rowwise_rep"), Style("RowwiseParallel", 1, "input_layouts")),
    "replicated_with_grad_allreduce": Style(),
}
_OF_HEADS = ("q_proj", "k_proj", "qkv_proj", "query_key_value")  # layers whose outputs are heads, whole ones on every device
_HEADS = ("num_attention_heads", "num_key_value_heads")


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model on the device in parts, which come from the host layer by layer: it never stands there whole."""
    from torch.distributed.device_mesh import init_device_mesh

    split(model, training, recorder, init_device_mesh("cuda", (parallel.tensor,)))
    placement.place(model, training, recorder)
    placement.categorize(model, training, recorder)
    return model


def split(model: torch.nn.Module, training: Training, recorder: Recorder, mesh: Any) -> None:
    """Brings the layers of the plan to the device, and leaves there a part of each; the rest of the model stays where it is."""
    for module, style in layers(model, mesh.size()):
        placement.place(module, training, recorder)
        _split(module, style, mesh)


def _split(module: torch.nn.Module, style: Style, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, parallel

    def summed(parameter: torch.Tensor) -> None:
        dist.all_reduce(parameter.grad, group=mesh.get_group())

    if style.kind:
        made = getattr(parallel, style.kind)(**({style.whole: Replicate()} if style.whole else {}))
        parallel.parallelize_module(module, mesh, made)
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(summed)


def optimizer(model: torch.nn.Module, training: Training) -> Any:
    """The optimizer of the recipe over groups of parameters: an operator over a list takes no DTensors of several meshes, nor any beside plain tensors."""
    groups: dict[Any, list[torch.Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    last = groups.pop(None, None)
    split: list[Any] = [{"params": group} for group in (*groups.values(), *([last] if last else []))]
    return placement.make_optimizer(split, training)


# -- the plan ---------------------------------------------------------------------------------------------------------------------------


def layers(model: torch.nn.Module, parts: int) -> list[tuple[torch.nn.Module, Style]]:
    """The layers that a plan splits, and how; those that share their weight with another are left whole.

    Raises `InvalidInputError` where the model has no plan, where it asks for what is not recorded, and for what has not so many equal parts.
    """
    plan, name = plan_of(model), type(model).__name__
    if not plan:
        raise InvalidInputError(f"{name} has no plan for tensor parallelism; use parallel fsdp2, which shards any model")
    _require_heads(model, plan, parts)
    tied, found = _tied(model), []
    for path, module in model.named_modules():
        asked = plan.get(re.sub(r"\d+", "*", path))
        if asked is None or any(id(parameter) in tied for parameter in module.parameters()):
            continue
        style = _style(asked, path, name)
        if style.kind and not isinstance(module, torch.nn.Linear):
            raise InvalidInputError(f"the plan of {name} splits {path}, a {type(module).__name__}; only linear layers are recorded in parts")
        if style.kind and module.weight.size(style.dimension) % parts:
            raise InvalidInputError(
                f"{path} has {module.weight.size(style.dimension):,} {('outputs', 'inputs')[style.dimension]}, no multiple of tensor {parts}"
            )
        found.append((module, style))
    for path, _ in model.named_parameters():  # of experts, which are no modules
        if (asked := plan.get(re.sub(r"\d+", "*", path))) is not None:
            _style(f"{asked} of a parameter", path, name)
    return found


def plan_of(model: torch.nn.Module) -> dict[str, str]:
    """Styles by the names of modules, `*` for numbers in them: of the classes and configurations of a transformers model and those inside it."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        own = dict(getattr(type(module), "_tp_plan", None) or {})
        if getattr(module, "base_model", None) is module:
            own |= getattr(getattr(module, "config", None), "base_model_tp_plan", None) or {}
        prefix = re.sub(r"\d+", "*", f"{name}." if name else "")
        found |= {prefix + path: style for path, style in own.items()}
    return found


def _style(asked: str, path: str, name: str) -> Style:
    if asked not in STYLES:
        raise InvalidInputError(f"the plan of {name} asks for {asked} at {path}, which is not recorded; recorded are {', '.join(STYLES)}")
    return STYLES[asked]


def _tied(model: torch.nn.Module) -> set[int]:
    """Parameters that several modules share."""
    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    return {parameter for parameter, count in names.items() if count > 1}


def _require_heads(model: torch.nn.Module, plan: dict[str, str], parts: int) -> None:
    """Raises `InvalidInputError` where a device would have a part of a head."""
    if not any(style == "colwise" and path.rpartition(".")[2] in _OF_HEADS for path, style in plan.items()):
        return
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for field in _HEADS:
        heads = getattr(config, field, None)
        if isinstance(heads, int) and heads % parts:
            raise InvalidInputError(f"{field} of {type(model).__name__} is {heads}, no multiple of tensor {parts}; a device has whole heads")


# -- what DTensor asks ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Within this context nothing is recorded of what DTensor asks about shapes, of tensors of the whole size that no device ever has.

    Nor is said what PyTorch says of layers whose outputs are views, which a loop that changes none of them in place need not know.
    """
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    asks = getattr(ShardingPropagator, name)

    def aside(*given: Any) -> Any:
        with _disable_current_modes():
            return asks(*given)

    with replaced(ShardingPropagator, name, aside), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        yield
