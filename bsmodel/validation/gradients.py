# SPDX-License-Identifier: Apache-2.0
"""Whether accumulated micro-batches give the gradients of the full batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from bsmodel.errors import InvalidInputError
from bsmodel.recording import loop, placement
from bsmodel.training import Training
from bsmodel.validation.device import fill_weights
from bsmodel.workloads import Workload

TOLERANCE = 1e-4  # float32 sums in another order; a wrong factor or a missing sample is off by far more
_SEED = 20


@dataclass(frozen=True)
class Agreement:
    """How far the two gradients are apart: the largest `|difference| / |gradient|` of any parameter, and whose it is."""

    difference: float
    parameter: str
    tolerance: float
    micro_batch: int
    accumulation: int

    @property
    def agree(self) -> bool:
        """Whether they are the same within the tolerance."""
        return self.difference <= self.tolerance


def gradients_agree(
    workload: Workload, micro_batch: int, accumulation: int, device: str = "cuda", tolerance: float = TOLERANCE, initialise: bool = False
) -> Agreement:
    """Compare the gradients of `accumulation` micro-batches with those of one batch of as many samples, in float32 without dropout.

    Samples are made different where the workload's batches are zeros. Raises `InvalidInputError` where the two are not meant to be
    equal: a model with batch norm, a step that draws random numbers, a step of the user's own.
    """
    if workload.loss is None:
        raise InvalidInputError(f"{workload.name} has a step of its own; gradients are compared for workloads with a loss")
    model = placement.build(workload, Training())[0].to(device)
    if initialise:
        torch.manual_seed(_SEED)
        fill_weights(model)
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise InvalidInputError(f"{workload.name} has batch norm: the statistics of a micro-batch are not those of the full batch")
    model.eval()  # no dropout; without batch norm nothing else changes
    full = _distinct(workload.batch(micro_batch * accumulation))
    with _float32_convolutions():
        whole = _gradients(model, workload, full, 1, device, seed=1)
        again = _gradients(model, workload, full, 1, device, seed=2)
        if _difference(whole, again)[0] > tolerance:
            raise InvalidInputError(f"{workload.name} draws random numbers in its step: two runs of one batch differ, so nothing can be compared")
        parts = _gradients(model, workload, full, accumulation, device, seed=1)
    return Agreement(*_difference(whole, parts), tolerance, micro_batch, accumulation)


def _distinct(batch: Any) -> Any:
    """The batch with random values where all are zero, so that every sample counts."""
    generator = torch.Generator().manual_seed(_SEED)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or bool(leaf.any()):
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        return torch.randint(0, 2, leaf.shape, generator=generator, dtype=leaf.dtype)

    return tree_map(fill, batch)


def _parts(batch: Any, size: int, count: int) -> Iterator[Any]:
    for number in range(count):
        yield tree_map(lambda leaf, start=number * size: leaf[start : start + size] if isinstance(leaf, torch.Tensor) else leaf, batch)


def _gradients(model: torch.nn.Module, workload: Workload, full: Any, accumulation: int, device: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    samples = next(leaf.size(0) for leaf in torch.utils._pytree.tree_leaves(full) if isinstance(leaf, torch.Tensor))
    micro_batches = _parts(full, samples // accumulation, accumulation)
    fed = replace(workload, batch=lambda size: next(micro_batches))
    running = loop.start(model, None, fed, Training(accumulation=accumulation), lambda tensor: tensor.to(device))
    for _ in range(accumulation):
        loop.micro_step(running, samples // accumulation)
    return {name: parameter.grad.detach().clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def _difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative difference; gradients that are nothing but rounding beside the whole are held against the whole."""
    whole = sum(float(gradient.double().norm()) ** 2 for gradient in left.values()) ** 0.5
    if not whole:
        raise InvalidInputError("all gradients are zero: nothing to compare")
    worst = (0.0, "")
    for name, gradient in left.items():
        other = right.get(name, torch.zeros_like(gradient))
        difference = float((gradient - other).double().norm()) / max(float(gradient.double().norm()), 1e-4 * whole)
        if not difference <= worst[0]:  # a NaN counts as the worst
            worst = (difference, name)
    return worst


class _float32_convolutions:  # noqa: N801
    """cuDNN rounds the operands of float32 convolutions to TF32 by default; not here."""

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.allow_tf32 = self.before
