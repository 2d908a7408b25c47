# SPDX-License-Identifier: Apache-2.0
"""Training steps as the scripts behind published figures run them: what they keep alive, when they zero gradients, what is in autocast.

Each makes a workload from a model, its batches and its loss, the parts of a `bsmodel.Workload`. A script's variables live until they are assigned
again, so they are kept in a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bsmodel import Workload
from cases import adapters, trainer

Script = Callable[[Workload], Workload]


def _on_device(batch: Any) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.cuda(), batch)


def _of_own_step(parts: Workload, step: Callable[[Any, Any, Any, dict[str, Any]], None]) -> Workload:
    """The workload whose step is this one, with variables that are new for every model."""
    variables: dict[str, Any] = {}

    def build() -> Any:
        variables.clear()
        return parts.model()

    return replace(parts, model=build, loss=None, step=lambda model, optimizer, batch: step(model, optimizer, batch, variables))


def _forward(parts: Workload, model: Any, variables: dict[str, Any]) -> None:
    assert parts.loss is not None
    variables["loss"], variables["outputs"] = parts.loss(model, variables["batch"])


def _plain(parts: Workload) -> Workload:
    """The canonical loop of `bsmodel`."""
    return parts


def _zeroed(when: str, set_to_none: bool = True) -> Script:
    """float32 steps whose batch, outputs and loss live on; gradients are zeroed `when`: "first", "before backward" or "last"."""

    def make(parts: Workload) -> Workload:
        def step(model: Any, optimizer: Any, batch: Any, variables: dict[str, Any]) -> None:
            if when == "first":
                optimizer.zero_grad(set_to_none=set_to_none)
            variables["batch"] = _on_device(batch)
            _forward(parts, model, variables)
            if when == "before backward":
                optimizer.zero_grad(set_to_none=set_to_none)
            variables["loss"].backward()
            optimizer.step()
            if when == "last":
                optimizer.zero_grad(set_to_none=set_to_none)

        return _of_own_step(parts, step)

    return make


def _no_optimizer(parts: Workload) -> Workload:
    """Forward and backward of `logits.sum()` on one batch that stays on the device; gradients are dropped first, outputs live on."""

    def step(model: Any, optimizer: Any, batch: Any, variables: dict[str, Any]) -> None:
        variables.pop("batch", None)  # it stays in its place
        variables["batch"] = _on_device({name: tensor for name, tensor in batch.items() if name != "labels"})
        model.zero_grad(set_to_none=True)
        variables["outputs"] = model(**variables["batch"])
        variables["loss"] = variables["outputs"].logits.sum()
        variables["loss"].backward()

    return _of_own_step(parts, step)


def _timm(parts: Workload) -> Workload:
    """timm's benchmark.py: one batch on the device, forward and backward in float16 autocast, no loss scaling, gradients filled with zeros."""

    def step(model: Any, optimizer: Any, batch: Any, variables: dict[str, Any]) -> None:
        import torch

        images, labels = batch
        optimizer.zero_grad(set_to_none=False)
        variables.pop("images", None)  # they stay in their place
        variables["images"] = images.cuda()
        with torch.autocast("cuda", dtype=torch.float16):
            output = model(variables["images"])
            torch.nn.functional.cross_entropy(output[0] if isinstance(output, tuple) else output, labels.cuda()).backward()
        optimizer.step()

    return _of_own_step(parts, step)


SCRIPTS: dict[str, Script] = {
    "plain": _plain,
    "zero first": _zeroed("first"),
    "zero before backward": _zeroed("before backward"),
    "zero last": _zeroed("last"),
    "fill before backward": _zeroed("before backward", set_to_none=False),
    "forward and backward": _no_optimizer,
    "timm": _timm,
    **trainer.SCRIPTS,
    **adapters.SCRIPTS,
}
