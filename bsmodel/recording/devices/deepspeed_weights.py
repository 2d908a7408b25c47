# SPDX-License-Identifier: Apache-2.0
"""Stage 3 of ZeRO: each parameter is held in parts, gradients are scattered as they are made, and the step is over the parts of this rank.

By deepspeed/runtime/zero/stage3.py of DeepSpeed 0.19.8, with the model as its `zero.Init` leaves it: it never stands on the device whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors

from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.cuda_like.pretence import META
from bsmodel.recording.devices import deepspeed_linear
from bsmodel.recording.devices.deepspeed_gathering import Gatherer, Shard
from bsmodel.recording.devices.deepspeed_states import clipped
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

if TYPE_CHECKING:
    from bsmodel.recording.devices.deepspeed import Settings

Shards = dict[torch.nn.Parameter, Shard]


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, settings: Settings, recorder: Recorder) -> Shards:
    """Buffers on the device; of every parameter a part, those that are trained in one buffer."""
    deepspeed_linear.replace_all(model)
    absent = _without_parameters(model, training, recorder)
    sizes = {parameter: -(-parameter.numel() // parallel.devices) for parameter in absent}
    trained = [parameter for parameter in absent if parameter.requires_grad]
    flat = torch.empty(sum(sizes[parameter] for parameter in trained), dtype=trained[0].dtype, device="cuda")
    recorder.categorize(flat, "parameter", "")
    held = dict(zip(trained, flat.split([sizes[parameter] for parameter in trained]), strict=True))
    shards: Shards = {}
    for number, (parameter, name) in enumerate(absent.items()):
        part = held[parameter] if parameter in held else torch.empty(sizes[parameter], dtype=parameter.dtype, device="cuda")
        if parameter not in held:
            recorder.categorize(part, "parameter", name)
        shards[parameter] = Shard(parameter, number, part, parameter.data, name, parameter.numel() <= settings.param_persistence_threshold)
    return shards


def _without_parameters(model: torch.nn.Module, training: Training, recorder: Recorder) -> dict[torch.nn.Parameter, str]:
    """The model with its buffers on the device, and its parameters nowhere: in order, with the module of each."""
    names = {parameter: name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    held = [(module, dict(module._parameters)) for module in model.modules()]
    for module, parameters in held:
        module._parameters.update(dict.fromkeys(parameters))
    placement.place(model, training, recorder)
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        made = {parameter: torch.nn.Parameter(torch.empty_like(parameter, device=META), parameter.requires_grad) for parameter in names}
    for module, parameters in held:
        module._parameters.update({name: None if parameter is None else made[parameter] for name, parameter in parameters.items()})
    return {made[parameter]: name for parameter, name in names.items()}


class Engine(torch.optim.Optimizer):
    """What the loop is given for an optimizer: hooks that gather parameters and scatter gradients, and a step over the parts of this rank."""

    clips = True

    def __init__(self, model: torch.nn.Module, shards: Shards, training: Training, settings: Settings, recorder: Recorder) -> None:
        trained = [shard for shard in shards.values() if shard.parameter.requires_grad]
        super().__init__([shard.parameter for shard in trained], {})
        assert training.parallel is not None
        self.settings, self.recorder, self.ranks, self.clipping = settings, recorder, training.parallel.devices, training.gradient_clipping
        self.groups = _sub_groups(trained, settings.sub_group_size)
        self.masters = [_joined(group).to(torch.float32).clone().detach().requires_grad_() for group in self.groups]
        zeros = torch.zeros_like(max(self.masters, key=torch.Tensor.numel))
        self.inner = placement.make_optimizer(self.masters, training)
        self.inner.param_groups[0]["params"] = []
        del zeros
        first = trained[0].part
        self.bucket = first.new_empty(settings.reduce_bucket_size)
        self.gradients = first.new_zeros(sum(shard.part.numel() for shard in trained))
        self.of = dict(zip(trained, self.gradients.split([shard.part.numel() for shard in trained]), strict=True))
        self.shards, self.stream = shards, torch.cuda.Stream()
        self.filled, self.waiting, self.queued, self.adds = 0, list[Shard](), False, False
        self.gatherer = Gatherer(model, shards, self.ranks, settings, recorder)
        for shard in trained:
            self.gatherer.gather_now([shard])
            shard.parameter.register_post_accumulate_grad_hook(self._ready)
            self.gatherer.release(shard)

    @torch.no_grad()
    def _ready(self, parameter: Any) -> None:
        """A gradient has been made, and goes into the bucket, unless it is larger than that."""
        if not self.queued:
            self.queued = True
            self.recorder.categorize(self.bucket, "gradient bucket", "")
            self.recorder.categorize(self.gradients, "gradient", "")
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        size = parameter.numel()
        if self.filled + size > self.settings.reduce_bucket_size and self.filled:
            self._reduce()
        self.stream.wait_stream(torch.cuda.current_stream())
        if self.filled + size <= self.settings.reduce_bucket_size:
            with torch.cuda.stream(self.stream):
                piece = self.bucket.narrow(0, self.filled, size).view_as(parameter.grad)
                piece.copy_(parameter.grad)
                parameter.grad.record_stream(torch.cuda.current_stream())
                parameter.grad.data = piece
        self.waiting.append(self.shards[parameter])
        self.filled += size

    def _reduce(self) -> None:
        """Scatter what waits over the ranks; this one keeps its part, or adds it to that of earlier micro-steps."""
        if not self.waiting:
            return
        self.waiting.sort(key=lambda shard: shard.number)
        with torch.cuda.stream(self.stream):
            for shard, part in zip(self.waiting, self._scattered(), strict=True):
                held = self.of[shard].narrow(0, 0, part.numel())
                (held.add_ if self.adds else held.copy_)(part)
                shard.parameter.grad.record_stream(torch.cuda.current_stream())  # type: ignore[union-attr]
                shard.parameter.grad = None
        self.filled, self.waiting = 0, []

    def _scattered(self) -> list[torch.Tensor]:
        """The sums of this rank's parts; parts are copied together rank by rank, padded, unless they are those of one gradient that divides."""
        whole: list[Any] = [shard.parameter.grad.view(-1) for shard in self.waiting]  # type: ignore[union-attr]
        sizes = [shard.part.numel() for shard in self.waiting]
        alone = len(whole) == 1 and whole[0].numel() % self.ranks == 0
        flat = whole[0] if alone else torch.cat(self._interleaved(whole, sizes))
        flat.div_(self.ranks)
        parts = flat.chunk(self.ranks)
        mine = parts[dist.get_rank()]
        dist.reduce_scatter(mine, list(parts))
        return [part.narrow(0, 0, min(size, each.numel())) for part, size, each in zip(mine.split(sizes), sizes, whole, strict=True)]

    def _interleaved(self, whole: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        chunks = [gradient.split(size) for gradient, size in zip(whole, sizes, strict=True)]
        found = []
        for rank in range(self.ranks):
            for pieces, size in zip(chunks, sizes, strict=True):
                given = pieces[rank : rank + 1]
                found += given
                if lacking := size - sum(piece.numel() for piece in given):
                    found.append(whole[0].new_empty(lacking))
        return found

    @torch.no_grad()
    def _finish(self) -> None:
        """The end of a backward pass."""
        self._reduce()
        self.stream.synchronize()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.gatherer.finish()
        self.queued, self.adds = False, True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing stays gathered; norm, update in float32 group by group, and small parameters gathered again."""
        self.gatherer.release_all()
        norms = [gradient.to(torch.float64).norm(2.0) for gradient in self.of.values()]
        norm = torch.stack(norms).pow(2.0).sum()
        dist.all_reduce(norm)
        scale: Any = 1.0 if self.clipping is None else 1.0 / clipped(norm.pow(0.5), self.clipping)
        for group, master in zip(self.groups, self.masters, strict=True):
            master.grad = _flatten_dense_tensors([self.of[shard] for shard in group]).to(torch.float32)
            master.grad.mul_(scale)
            self.inner.param_groups[0]["params"] = [master]
            self.inner.step()
            self.inner.param_groups[0]["params"] = []
            _joined(group).copy_(master)
            master.grad = None
        self.adds = False
        self.gatherer.gather_now([shard for shard in self.shards.values() if shard.persistent])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The step has let go of them; where none came, what they are added to is new from now on."""
        self.adds, self.waiting, self.filled = False, [], 0


def _sub_groups(shards: Sequence[Shard], most: int) -> list[list[Shard]]:
    """Parameters in order, in groups that are updated one after another: each until it has so many elements."""
    groups: list[list[Shard]] = [[]]
    size = 0
    for shard in shards:
        if size >= most:
            groups.append([])
            size = 0
        groups[-1].append(shard)
        size += shard.part.numel()
    return groups


def _joined(group: Sequence[Shard]) -> torch.Tensor:
    """The parts of neighbours as one, without a copy."""
    first = group[0].part
    return first.as_strided((sum(shard.part.numel() for shard in group),), (1,), first.storage_offset())
