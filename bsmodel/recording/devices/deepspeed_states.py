# SPDX-License-Identifier: Apache-2.0
"""Stages 1 and 2 of ZeRO: the parameters are whole on every device, states of the optimizer in partitions, and in stage 2 gradients, too.

By deepspeed/runtime/zero/stage_1_and_2.py of DeepSpeed 0.19.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

if TYPE_CHECKING:
    from bsmodel.recording.devices.deepspeed import Settings

_ALIGNED = 2  # elements that each partition is a multiple of


@dataclass(frozen=True)
class Group:
    """The trained parameters in one buffer, of which each rank owns as much; that of rank 0 is the first part."""

    parameters: tuple[torch.nn.Parameter, ...]
    flat: torch.Tensor
    starts: dict[torch.nn.Parameter, int]
    size: int  # elements of a partition

    def owned(self) -> list[torch.nn.Parameter]:
        """Parameters of which this rank owns something."""
        return [parameter for parameter in self.parameters if self.starts[parameter] < self.size]

    def pieces(self, parameters: Sequence[torch.nn.Parameter]) -> list[tuple[int, int]]:
        """The ranks that parameters one after another belong to, and how many elements to each; neighbours of one rank together."""
        found: list[tuple[int, int]] = []
        for parameter in parameters:
            start, end = self.starts[parameter], self.starts[parameter] + parameter.numel()
            while start < end:
                rank = start // self.size
                until = min(end, (rank + 1) * self.size)
                before = found.pop()[1] if found and found[-1][0] == rank else 0
                found.append((rank, before + until - start))
                start = until
        return found


def placed(model: torch.nn.Module, parallel: Parallel, recorder: Recorder) -> Group:
    """The trained parameters as views of one buffer; what they were is freed when that has been filled."""
    parameters = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    total, aligned = sum(parameter.numel() for parameter in parameters), _ALIGNED * parallel.devices
    whole = [parameter.data for parameter in parameters]
    if total % aligned:
        whole.append(whole[0].new_zeros(aligned - total % aligned))
    flat = _flatten_dense_tensors(whole)
    recorder.categorize(flat, "parameter", "")
    del whole
    starts, start = {}, 0
    for parameter in parameters:
        starts[parameter] = start
        parameter.data = flat.narrow(0, start, parameter.numel()).view(parameter.shape)
        start += parameter.numel()
    return Group(parameters, flat, starts, flat.numel() // parallel.devices)


class Engine(torch.optim.Optimizer):
    """What the loop is given for an optimizer: hooks that take each gradient as it is ready, and a step over the partition of this rank."""

    clips = True

    def __init__(self, group: Group, training: Training, settings: Settings, recorder: Recorder, stage: int) -> None:
        super().__init__(group.parameters, {})
        assert training.parallel is not None
        self.group, self.settings, self.recorder, self.stage = group, settings, recorder, stage
        self.ranks, self.clipping = training.parallel.devices, training.gradient_clipping
        self.master = group.flat.narrow(0, 0, group.size).detach().clone().to(torch.float32)
        self.master.grad = torch.zeros_like(self.master)
        self.inner = placement.make_optimizer([self.master.requires_grad_()], training)
        self.master.grad = None
        self.own = set(group.owned())
        self.bucket: torch.Tensor | None = None
        self.filled, self.waiting = 0, list[torch.nn.Parameter]()
        self.kept: torch.Tensor | None = None  # gradients of parameters of this partition, of the micro-step in progress
        self.kept_to = 0
        self.summed: list[torch.Tensor] = []  # the same of all micro-steps so far
        for parameter in group.parameters:
            parameter.register_post_accumulate_grad_hook(self._ready)

    @torch.no_grad()
    def _ready(self, parameter: torch.Tensor) -> None:
        """A gradient has been made: the bucket, before the first of a backward pass; in stage 2 the gradient goes into it."""
        first, self.bucket = self.bucket is None, self._bucket()
        if self.stage == 1:
            return
        if first:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._take(parameter)

    def _bucket(self) -> torch.Tensor:
        if self.bucket is None:
            self.bucket = self.group.flat.new_empty(self.settings.reduce_bucket_size)
            self.recorder.categorize(self.bucket, "gradient bucket", "")
        return self.bucket

    def _take(self, parameter: Any) -> None:
        """Into the bucket, which is reduced first where it has no room; a gradient larger than that stays where it is."""
        size = parameter.numel()
        if self.filled + size > self.settings.reduce_bucket_size:
            self._reduce()
        if size <= self.settings.reduce_bucket_size:
            piece = self._bucket().narrow(0, self.filled, size)
            piece.copy_(parameter.grad.view(-1))
            parameter.grad.data = piece.view_as(parameter.grad)
        self.filled += size
        self.waiting.append(parameter)

    def _reduce(self) -> None:
        """Sum over the ranks what waits; of what this rank does not own stage 2 lets go, the rest makes room in the bucket."""
        if not self.waiting:
            return
        large = self.filled > self.settings.reduce_bucket_size
        whole: Any = self.waiting[0].grad.view(-1) if large else self._bucket().narrow(0, 0, self.filled)  # type: ignore[union-attr]
        whole.div_(self.ranks)
        pieces = self.group.pieces(self.waiting)
        together: list[tuple[int, torch.Tensor]] = []
        for (rank, _), piece in zip(pieces, whole.split([size for _, size in pieces]), strict=True):
            together.append((rank, piece))
            if sum(each.numel() for _, each in together) > self.settings.reduce_bucket_size:
                self._all_reduce(together)
                together = []
        self._all_reduce(together)
        for parameter in self.waiting:
            if parameter in self.own:
                self._keep(parameter)
            elif self.stage == 2:
                parameter.grad = None
        self.filled, self.waiting = 0, []

    def _all_reduce(self, pieces: list[tuple[int, torch.Tensor]]) -> None:
        """Sum pieces over all ranks in a copy, of which this rank takes back what it owns."""
        if not pieces:
            return
        tensors = [tensor for _, tensor in pieces]
        copied = _flatten_dense_tensors(tensors)
        dist.all_reduce(copied)
        for (rank, tensor), summed in zip(pieces, _unflatten_dense_tensors(copied, tensors), strict=True):
            if rank == dist.get_rank():
                tensor.copy_(summed)

    def _keep(self, parameter: Any) -> None:
        """Whole gradients of all parameters that this rank owns anything of, in one buffer."""
        if self.kept is None:
            self.kept, self.kept_to = self.group.flat.new_empty(sum(each.numel() for each in self.own)), 0
            self.recorder.categorize(self.kept, "gradient", "")
        piece = self.kept.narrow(0, self.kept_to, parameter.numel())
        piece.copy_(parameter.grad.view(-1))
        parameter.grad.data = piece.view_as(parameter.grad)
        self.kept_to += parameter.numel()

    @torch.no_grad()
    def _finish(self) -> None:
        """The end of a backward pass: what still waits is reduced, what is kept added to earlier micro-steps, and the bucket freed."""
        self._reduce()
        made = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self.group.owned()]
        for before, gradient in zip(self.summed, made, strict=False):
            before.add_(gradient)
        self.summed = self.summed or made
        self._release()

    def _release(self) -> None:
        self.bucket = self.kept = None
        for parameter in self.group.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Stage 1 reduces now what it has not before; norm, update in float32, and all ranks' parts of the parameters gathered in place."""
        if self.stage == 1:
            for parameter in self.group.parameters:
                if parameter.grad is not None:
                    self._take(parameter)
            self._finish()
        averaged = self._own_gradients()
        norm = gradient_norm(averaged)
        flat = _flatten_dense_tensors(averaged)
        self.master.grad = flat.to(torch.float32)
        self.summed = []
        del flat, averaged
        if self.clipping is not None or self.group.flat.dtype is torch.float16:
            self.master.grad.mul_(1.0 / clipped(norm, self.clipping))
        self.inner.step()
        self.master.grad = None
        part = self.group.flat.narrow(0, 0, self.group.size)
        part.copy_(self.master)
        dist.all_gather(list(self.group.flat.split(self.group.size)), part)

    def _own_gradients(self) -> list[torch.Tensor]:
        """Of the gradients that are kept the part that this rank owns, in order, and zeros to its end."""
        found, left = [], self.group.size
        for gradient in self.summed:
            size = min(gradient.numel(), left)
            found.append(gradient if size == gradient.numel() else gradient.view(-1).narrow(0, 0, size))
            left -= size
        return [*found, self.group.flat.new_zeros(left)] if left else found

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The step has freed them; where none came, now."""
        self.summed, self.waiting, self.filled = [], [], 0
        self._release()


def gradient_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of all ranks' gradients, each in double precision, which takes a copy of it."""
    norms = [torch.linalg.vector_norm(gradient.to(torch.float64)) for gradient in gradients]
    total = torch.stack(norms).pow(2.0).sum().float()
    dist.all_reduce(total)
    return total.pow(0.5)


def clipped(norm: torch.Tensor, most: float | None) -> torch.Tensor:
    """What gradients are divided by, with a scale of the loss in it or not."""
    return torch.clamp((norm + 1e-6) / (most or math.inf), min=1.0)
