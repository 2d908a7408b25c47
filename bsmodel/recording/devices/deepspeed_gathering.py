# SPDX-License-Identifier: Apache-2.0
"""Which parameters stage 3 of ZeRO has gathered when: fetched before a module runs, ahead of it once the order is known, and let go after its last use.

By deepspeed/runtime/zero/partitioned_param_coordinator.py, parameter_offload.py and partition_parameters.py of DeepSpeed 0.19.8.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bsmodel.recording.recorder import Recorder

if TYPE_CHECKING:
    from bsmodel.recording.devices.deepspeed import Settings


@dataclass(eq=False)
class Shard:
    """A parameter of which this rank holds a part, and where it is whole the modules that work with it."""

    parameter: torch.nn.Parameter
    number: int
    part: torch.Tensor
    absent: torch.Tensor  # its sizes, without memory on the device
    owner: str
    persistent: bool
    here: bool = False
    users: set[torch.nn.Module] = field(default_factory=set)

    @property
    def numel(self) -> int:
        """Elements of the whole."""
        return self.absent.numel()


@dataclass(eq=False)
class _Coming:
    """Parameters on their way together, in a buffer with the parts of one rank after those of another; one alone has no other buffer than its own."""

    shards: list[Shard]
    parts: tuple[torch.Tensor, ...] = ()
    arrived: bool = False


class Gatherer:
    """Gathers and releases parameters as modules run: as they ask in a first step, whose order is kept, and by that order in later ones."""

    def __init__(self, model: torch.nn.Module, shards: dict[torch.nn.Parameter, Shard], ranks: int, settings: Settings, recorder: Recorder) -> None:
        self.shards, self.ranks, self.settings, self.recorder = shards, ranks, settings, recorder
        self.stream = torch.cuda.Stream()
        self.own = {module: self._of(module) for module in model.modules()}
        self.ordered = self.recording = False
        self.order: list[torch.nn.Module] = []
        self.uses: list[tuple[Shard, int]] = []
        self.queue: deque[tuple[Shard, int]] = deque()
        self.last: dict[Shard, int] = {}
        self.coming: dict[Shard, _Coming] = {}
        self.backward: dict[torch.nn.Module, None] = {}
        self.step = self.available = 0
        model.register_forward_pre_hook(lambda module, args: self._begin())
        for module in model.modules():
            _follow(module, self)

    def _of(self, module: torch.nn.Module) -> list[Shard]:
        """What a module works with itself."""
        return sorted({self.shards[parameter] for parameter in module.parameters(recurse=False)}, key=lambda shard: shard.number)

    @torch.no_grad()
    def _begin(self) -> None:
        """A forward pass begins: the first records its order, later ones follow it."""
        self._settle()
        if not self.ordered:
            self.ordered, self.recording = self.recording, not self.recording
            self.uses = [(shard, step) for step, module in enumerate(self.order) for shard in self.own[module]] if self.ordered else []
        self.queue, self.last = deque(self.uses), {}
        self.step = self.available = 0

    def _settle(self) -> None:
        for shard, coming in list(self.coming.items()):
            self._arrive(coming)
            self.release(shard)
        self.coming.clear()

    def _note(self, module: torch.nn.Module) -> None:
        """Keep the order, or see that it is kept."""
        if self.ordered and (self.step >= len(self.order) or self.order[self.step] is not module):
            self.ordered = self.recording = False
            self.order = []
            self._settle()
        if self.recording:
            self.order.append(module)

    @torch.no_grad()
    def fetch(self, module: torch.nn.Module, forward: bool) -> None:
        """What a module needs is here; what comes after it by the known order is on its way."""
        self._note(module)
        if not forward:
            self.backward[module] = None
        own = self.own[module]
        self._gather([shard for shard in own if not shard.here and shard not in self.coming])
        for shard in own:
            shard.users.add(module)
            if shard in self.coming:
                with torch.cuda.stream(self.stream):
                    self._arrive(self.coming.pop(shard))
        torch.cuda.current_stream().wait_stream(self.stream)
        if self.ordered:
            self._ahead(own)
        self.step += 1

    def _ahead(self, own: Sequence[Shard]) -> None:
        """Gather in one what comes next, as much as a bucket for it holds."""
        missing = {shard for shard in own if self.last.get(shard, -1) < self.step}
        found = set[Shard]()
        while self.queue and len(found) < len(missing):
            shard, step = self.queue.popleft()
            self.last[shard] = step
            found.add(shard)
        most = min(self.settings.max_live_parameters - self.available, self.settings.prefetch_bucket_size)
        ahead: dict[Shard, None] = {}
        size = 0
        while self.queue and size < most:
            shard, step = self.queue.popleft()
            self.last[shard] = max(self.last.get(shard, -1), step)
            if not shard.here and shard not in self.coming and shard not in ahead:
                ahead[shard] = None
                size += shard.numel
        self._gather(list(ahead))

    def _gather(self, shards: list[Shard]) -> None:
        """Begin to gather parameters: one in its own buffer, several in one for all."""
        if not shards:
            return
        shards = sorted(shards, key=lambda shard: shard.number)
        self.available += sum(shard.numel for shard in shards)
        with torch.cuda.stream(self.stream):
            whole = shards[0].part.new_empty(self.ranks * sum(shard.part.numel() for shard in shards))
            self.recorder.categorize(whole, "gathered parameter", shards[0].owner)
            parts = whole.chunk(self.ranks)
            if len(shards) == 1:
                dist.all_gather(list(parts), shards[0].part, async_op=True)
                shards[0].parameter.data = whole.narrow(0, 0, shards[0].numel).view(shards[0].absent.shape)
                parts = ()
            else:
                torch.cat([shard.part for shard in shards], out=parts[dist.get_rank()])
                dist.all_gather(list(parts), parts[dist.get_rank()], async_op=True)
        coming = _Coming(shards, parts)
        for shard in shards:
            self.coming[shard] = coming

    def _arrive(self, coming: _Coming) -> None:
        """Each parameter in one piece, which is a copy where several came together."""
        if coming.arrived:
            return
        start = 0
        for shard in coming.shards:
            size = shard.part.numel()
            if coming.parts:
                lengths = [max(0, min(size, shard.numel - rank * size)) for rank in range(self.ranks)]
                whole = torch.cat([part.narrow(0, start, length) for part, length in zip(coming.parts, lengths, strict=True) if length])
                self.recorder.categorize(whole, "gathered parameter", shard.owner)
                shard.parameter.data = whole.view(shard.absent.shape)
            shard.here = True
            start += size
        coming.arrived = True

    def release(self, shard: Shard) -> None:
        """A parameter that nobody works with is given back."""
        if shard.here and not shard.users:
            shard.parameter.data.record_stream(torch.cuda.current_stream())
            shard.parameter.data = shard.absent
            shard.here = False
            self.available -= shard.numel

    @torch.no_grad()
    def leave(self, module: torch.nn.Module, forward: bool) -> None:
        """A module is done: what it used is released, by the known order only where that is not soon used again."""
        own = self.own[module]
        released = self._released(own) if self.ordered else set(own)
        if not forward:
            self.backward.pop(module, None)
        for shard in own:
            shard.users.discard(module)
            if shard in released:
                self.release(shard)

    def _released(self, own: Sequence[Shard]) -> set[Shard]:
        found = {shard for shard in own if not shard.persistent and self.last.get(shard, -1) <= self.step}
        passed = 0
        for module in itertools.islice(self.order, self.step, None):
            if passed >= self.settings.max_reuse_distance or not found:
                break
            used = self.own[module]
            found.difference_update(used)
            passed += sum(shard.numel for shard in used)
        return found

    @torch.no_grad()
    def finish(self) -> None:
        """Backward is over: modules whose inputs have no gradients have not been told so."""
        for module in list(self.backward):
            for shard in self.own[module]:
                shard.users.discard(module)
                if not shard.persistent:
                    self.release(shard)
        self.backward.clear()

    def release_all(self) -> None:
        """Nothing is gathered any more."""
        for shard in self.shards.values():
            if shard in self.coming:
                self._arrive(self.coming.pop(shard))
            shard.users.clear()
            self.release(shard)

    def gather_now(self, shards: Sequence[Shard]) -> None:
        """Parameters each in a buffer of its own, which are waited for."""
        wholes = [shard.part.new_empty(self.ranks * shard.part.numel()) for shard in shards]
        for shard, whole in zip(shards, wholes, strict=True):
            self.recorder.categorize(whole, "gathered parameter", shard.owner)
            dist.all_gather(list(whole.chunk(self.ranks)), shard.part)
        for shard, whole in zip(shards, wholes, strict=True):
            shard.parameter.data = whole.narrow(0, 0, shard.numel).view(shard.absent.shape)
            shard.here = True


class _Mark(torch.autograd.Function):
    """A tensor as it is, whose gradient tells somebody when it passes."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, told: Callable[[], None]) -> torch.Tensor:
        """The same tensor."""
        ctx.told = told
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The same gradient."""
        ctx.told()
        return gradient, None


def _follow(module: torch.nn.Module, gatherer: Gatherer) -> None:
    """Hooks round a module: before and after its forward, where gradients of its outputs come in and those of its inputs go out."""
    left: dict[str, int] = defaultdict(int)

    def before_backward() -> None:
        gatherer.fetch(module, forward=False)

    def after_backward() -> None:
        left["inputs"] -= 1
        if left["inputs"] == 0:
            gatherer.leave(module, forward=False)

    def marked(tensor: torch.Tensor) -> Any:
        left["inputs"] += tensor.requires_grad
        return _Mark.apply(tensor, after_backward)

    def enter(module: torch.nn.Module, args: Any) -> Any:
        gatherer.fetch(module, forward=True)
        left["inputs"] = 0
        return _mapped(marked, args)

    def leave(module: torch.nn.Module, args: Any, output: Any) -> Any:
        gatherer.leave(module, forward=True)
        return _mapped(lambda tensor: _Mark.apply(tensor, before_backward), output)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _mapped(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """What a function makes of every tensor in tuples, lists and dictionaries, of which the latter stay the same."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _mapped(function, value[key])
        return value
    if isinstance(value, (list, tuple)):
        made = [_mapped(function, each) for each in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value
