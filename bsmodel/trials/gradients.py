# SPDX-License-Identifier: Apache-2.0
"""Squared norms of gradients at no extra pass: of each micro-batch as backward brings it, and of their mean before the optimizer takes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Squares:
    """Squared norms of a step so far, on the device that they were computed on: nothing waits for them before the step is over."""

    parameters: Sequence[torch.Tensor]
    micro: list[torch.Tensor] = field(default_factory=list)
    _parts: list[torch.Tensor] = field(default_factory=list)

    def seen(self, gradient: torch.Tensor) -> None:
        """A parameter's gradient of this micro-batch alone: hooks of a leaf come before it is added to those before."""
        self._parts.append(_square(gradient))

    def micro_step(self) -> None:
        """Backward of a micro-batch is over."""
        self.micro.append(torch.stack(self._parts).sum() if self._parts else torch.zeros(()))
        self._parts.clear()

    def accumulated(self) -> torch.Tensor:
        """That of the gradients as they are kept."""
        kept = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.stack([_square(gradient) for gradient in kept]).sum() if kept else torch.zeros(())


def _square(gradient: torch.Tensor) -> torch.Tensor:
    dense = gradient.detach().coalesce().values() if gradient.is_sparse else gradient.detach()
    norm: torch.Tensor = torch.linalg.vector_norm(dense, dtype=_wide(dense))
    return norm.square()


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return tensor.to(_wide(tensor))


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """float32 for halves, of which squares overflow and means are coarse."""
    return torch.promote_types(tensor.dtype, torch.float32)


@contextlib.contextmanager
def watched(parameters: Sequence[torch.Tensor]) -> Iterator[Squares]:
    """Within this context gradients of these parameters are seen as they come."""
    squares = Squares(parameters)
    handles = [parameter.register_hook(squares.seen) for parameter in parameters]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
