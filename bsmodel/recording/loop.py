# SPDX-License-Identifier: Apache-2.0
"""The canonical training loop: what is recorded without a GPU and what is measured on one run the same lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map

from bsmodel.errors import InvalidInputError
from bsmodel.training import Training
from bsmodel.workloads import Workload


@dataclass
class Loop:
    """A model and its optimizer (or what its workload's setup made) in training, and the variables of the loop, which live until they are assigned again."""

    model: torch.nn.Module
    optimizer: Any
    workload: Workload
    training: Training
    move: Callable[[torch.Tensor], torch.Tensor]
    average: list[torch.Tensor] = field(default_factory=list)
    scaler: Any = None
    batch: Any = None
    loss: Any = None
    outputs: Any = None
    result: Any = None


def start(model: torch.nn.Module, optimizer: Any, workload: Workload, training: Training, move: Callable[[torch.Tensor], torch.Tensor]) -> Loop:
    """The loop before its first step: averages and loss scaler made, nothing run."""
    average = [parameter.detach().clone() for parameter in _trained(model)] if training.ema else []
    scaler = torch.amp.GradScaler("cuda") if training.numerics.loss_scaling else None
    return Loop(model, optimizer, workload, training, move, average, scaler)


def require_applicable(workload: Workload, training: Training) -> None:
    """Raises `InvalidInputError` where the recipe asks of a step of the user's own what only that step can do."""
    if workload.step is None:
        return
    asked = {
        f"precision={training.precision}": (training.numerics.autocast is not None, "call torch.autocast in it, and give the precision of the weights"),
        f"accumulation={training.accumulation}": (training.accumulation > 1, "accumulate in it"),
        f"gradient_clipping={training.gradient_clipping}": (training.gradient_clipping is not None, "clip in it"),
        "zero_grad=zeros": (training.zero_grad != "none", "zero the gradients in it"),
        "keep_outputs": (training.keep_outputs, "return from it what is to live on"),
        f"parallel={training.parallel}": (training.parallel is not None, "wrap the model in it"),
        f"optimizer={training.optimizer_name}": (_other_optimizer(workload, training), "make the optimizer in its setup"),
    }
    for what, (is_asked, instead) in asked.items():
        if is_asked:
            raise InvalidInputError(f"{workload.name} has a step of its own, to which {what} is not applied; {instead}, and leave it out of the recipe")


def _other_optimizer(workload: Workload, training: Training) -> bool:
    """Whether an optimizer is asked for that the workload's own setup does not make."""
    return workload.setup is not None and training.optimizer != workload.training.optimizer


def micro_step(loop: Loop, batch_size: int) -> None:
    """Forward and backward of one micro-batch. Batch and loss live on until the next one replaces them."""
    training = loop.training
    if loop.workload.step is not None:
        loop.result = loop.workload.step(loop.model, loop.optimizer, tree_map(lambda leaf: _laid_out(training, leaf), loop.workload.batch(batch_size)))
        _average(loop)
        return
    loop.batch = tree_map(lambda leaf: _moved(loop, leaf), loop.workload.batch(batch_size))
    autocast = training.numerics.autocast
    with torch.autocast("cuda", dtype=getattr(torch, autocast)) if autocast else contextlib.nullcontext():
        loss, outputs = loss_of(loop.workload, loop.model, loop.batch)
    loop.outputs = outputs if training.keep_outputs else None
    del outputs
    loop.loss = loss
    del loss
    if training.accumulation > 1:
        loop.loss = loop.loss / training.accumulation
    (loop.scaler.scale(loop.loss) if loop.scaler else loop.loss).backward()


def optimizer_step(loop: Loop) -> None:
    """Clip, update, average, and let go of the gradients."""
    if loop.workload.step is not None:
        return
    if loop.training.gradient_clipping is not None and not getattr(loop.optimizer, "clips", False):
        if loop.scaler:
            loop.scaler.unscale_(loop.optimizer)
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), loop.training.gradient_clipping)
    if loop.scaler:
        loop.scaler.step(loop.optimizer)
        loop.scaler.update()
    else:
        loop.optimizer.step()
    _average(loop)
    zero_gradients(loop)


def _average(loop: Loop) -> None:
    if loop.average:
        torch._foreach_lerp_(loop.average, _trained(loop.model), 0.001)


def zero_gradients(loop: Loop) -> None:
    """Free the gradients or fill them with zeros, as the recipe says; a step of the user's own does that itself."""
    if loop.workload.step is None:
        loop.optimizer.zero_grad(set_to_none=loop.training.zero_grad == "none")


def _trained(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _moved(loop: Loop, leaf: Any) -> Any:
    return loop.move(prepared(leaf, loop.training)) if isinstance(leaf, torch.Tensor) else leaf


def prepared(leaf: torch.Tensor, training: Training) -> torch.Tensor:
    """A tensor of a batch on the host as the recipe takes it: floats in the dtype of the weights, where these are in half precision, images in its layout."""
    dtype = getattr(torch, training.numerics.weights)
    if leaf.is_floating_point() and dtype is not torch.float32:
        leaf = leaf.to(dtype)
    laid_out: torch.Tensor = _laid_out(training, leaf)
    return laid_out


def _laid_out(training: Training, leaf: Any) -> Any:
    """Images of a batch on the host in the layout of the recipe."""
    if training.channels_last and isinstance(leaf, torch.Tensor) and leaf.dim() == 4:
        return leaf.contiguous(memory_format=torch.channels_last)
    return leaf


def loss_of(workload: Workload, model: Any, batch: Any) -> tuple[torch.Tensor, Any]:
    """The loss of a batch, and the outputs where the workload gives them; raises `InvalidInputError` for one that nothing can be learnt from."""
    assert workload.loss is not None
    result = workload.loss(model, batch)
    loss, outputs = result if isinstance(result, tuple) else (result, None)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise InvalidInputError(f"loss(model, batch) of {workload.name} gives {found}; expected a scalar tensor, e.g. its mean")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise InvalidInputError(f"loss(model, batch) of {workload.name} does not depend on any trained parameter")
    return loss, outputs
