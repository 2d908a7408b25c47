# SPDX-License-Identifier: Apache-2.0
"""The allocator snapshot of a run that has not been made, in the form that PyTorch's memory visualiser reads.

Source: torch/cuda/memory.py, torch/csrc/cuda/Module.cpp and torch/utils/viz/MemoryViz.js, read at 2.11 and 2.13.
"""

from __future__ import annotations

import pickle
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from bsmodel.hardware import Gpu
from bsmodel.memory.allocator import SMALL_SEGMENT, CachingAllocator, OutOfMemoryError
from bsmodel.memory.peak import BOUNDLESS, MOST_STEPS, question, replays, train
from bsmodel.memory.pools import Block, Segment
from bsmodel.memory.settings import Settings, spelled
from bsmodel.tape import Tape, micro_steps
from bsmodel.units import whole

PROTOCOL = 4  # of pickle: the visualiser reads 2 to 4
_BEGINNINGS = ("first", "micro", "open", "begin")  # blocks with which an optimizer step begins
_NO_POOL = (0, 0)  # the pool that is nobody's own
_UNKNOWN = "unknown"  # the visualiser fails on categories without this one

_Frames = list[dict[str, Any]]


def snapshot(tape: Tape, gpu: Gpu, batch: int, accumulation: int | None = None, settings: Settings | None = None, steps: int | None = None) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot()` would give after a recorded run at micro-batch `batch`: `pickled`, it opens in PyTorch's visualiser.

    The run is the one of `predict`, from the loading of the model until the allocator has come to rest; where it does not fit, it is on a card without a
    limit. `steps`: how many optimizer steps it has at most. `device_traces` says in order what the allocator did, with the bytes of blocks as sizes,
    where PyTorch has the bytes requested: the most that is alive is `Peak.allocated_bytes`, the most in segments `Peak.reserved_bytes`. `time_us` counts
    what happened and is no time; an `oom` is a workspace that was done without. Frames are, from the innermost: the operator with its category as file,
    the module and those it is in, the model, and the phase with the optimizer step as line, 0 while the model is loaded.
    Raises `InvalidInputError` as `predict` does, and for `steps` that are no whole number from 1.
    """
    _, size, gpu = question(tape, gpu, batch, accumulation)
    settings, repeats = settings or Settings(), micro_steps(tape, accumulation)
    most_steps = MOST_STEPS if steps is None else whole("steps", steps)
    within = replays(tape, gpu, repeats, settings)(size, "lenient", True) is not None
    capacity_bytes = gpu.usable_bytes if within else BOUNDLESS
    names = (name for name, _ in tape.program(most_steps, repeats))
    allocator = _Traced(capacity_bytes, settings, max(gpu.memory_bytes, capacity_bytes), tape, names)
    train(allocator, tape, tape.sizes(size, gpu).tolist(), repeats, tape.workspaces if within else (), most_steps=most_steps)
    return {
        "segments": [_segment(segment, allocator, settings) for segment in allocator.blocks()],
        "device_traces": [allocator.trace],
        "allocator_settings": _configuration(settings),
        "external_annotations": [],
    }


def pickled(found: dict[str, Any]) -> bytes:
    """The content of the file that `torch.cuda.memory._dump_snapshot` would write."""
    return pickle.dumps(found, PROTOCOL)


class _Traced(CachingAllocator):
    """The allocator with a list of all it did, `trace`; by address, the frames and the category of who holds a block, and the frames of who grew a segment."""

    def __init__(self, capacity_bytes: int, settings: Settings, total_bytes: int, tape: Tape, names: Iterable[str]) -> None:
        super().__init__(capacity_bytes, settings, total_bytes=total_bytes)
        self.trace: list[dict[str, Any]] = []
        self.holders: dict[int, tuple[_Frames, str]] = {}
        self.growers: dict[int, _Frames] = {}
        self._stacks, self._names, self._tensor = _Stacks(tape), iter(names), 0

    def run(self, operations: Iterable[int], sizes: Sequence[int], optional: Container[int] = (), streams: Mapping[int, int] | None = None) -> None:
        """Carry out the next block of the run, one operation at a time, so that it is known whose each block is."""
        self._stacks.begin(next(self._names))
        for operation in operations:
            self._tensor = operation
            super().run((operation,), sizes, optional, streams or {})

    def malloc(self, requested_bytes: int, stream: int = 0) -> Block:
        """Allocate, and note what was asked of the driver and what came of it."""
        asked, frames = len(self.segment_events), self._stacks.of(self._tensor)
        try:
            block = super().malloc(requested_bytes, stream)
        except OutOfMemoryError:
            self._note_segments(asked, frames)
            self._note("oom", {"device_free": self.spare_bytes}, requested_bytes, stream, frames)
            raise
        self._note_segments(asked, frames)
        category = self._stacks.tape.categories[self._tensor]
        self.holders[block.address] = frames, category
        self._note("alloc", {"addr": block.address}, block.size_bytes, stream, frames, category)
        return block

    def free(self, block: Block) -> None:
        """Free, and note it."""
        frames, category = self.holders.pop(block.address)
        for action in ("free_requested", "free_completed"):
            self._note(action, {"addr": block.address}, block.size_bytes, block.pool.stream, frames, category)
        super().free(block)

    def _note_segments(self, asked: int, frames: _Frames) -> None:
        for action, address, size_bytes, stream in self.segment_events[asked:]:
            if action in ("segment_alloc", "segment_map"):
                self.growers[address] = frames
            self._note(action, {"addr": address}, size_bytes, stream, frames)

    def _note(self, action: str, where: dict[str, int], size_bytes: int, stream: int, frames: _Frames, category: str = _UNKNOWN) -> None:
        self.trace.append(
            {
                "action": action,
                **where,
                "size": size_bytes,
                "stream": stream,
                "time_us": len(self.trace),
                "compile_context": "N/A",
                "user_metadata": "",
                "pool_id": _NO_POOL,
                "category": category,
                "frames": frames,
            }
        )


class _Stacks:
    """The frames of allocations; those that look alike are one list, and so one in a pickle."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._found: dict[tuple[str, ...], _Frames] = {}
        self._frames: dict[tuple[str, str], dict[str, Any]] = {}
        self._step, self._loading = 0, True

    def begin(self, block: str) -> None:
        """Go on to a block of the run."""
        self._loading = block == "init"
        if block in _BEGINNINGS:
            self._step += 1
            self._found.clear()

    def of(self, tensor: int) -> _Frames:
        """The frames of an allocation, the innermost first."""
        tape = self.tape
        phase = "loading the model" if self._loading else tape.phases[tensor]
        words = (tape.categories[tensor], tape.operators[tensor], tape.modules[tensor], phase)
        found = self._found.get(words)
        if found is None:
            category, operator, module, _ = words
            paths = [module.rsplit(".", up)[0] for up in range(module.count(".") + 1)] if module else []
            inner = [self._frame(category, operator), *(self._frame("module", path) for path in paths), self._frame("model", tape.name)]
            found = self._found[words] = [*inner, {"filename": "step", "line": self._step, "name": phase}]
        return found

    def _frame(self, filename: str, name: str) -> dict[str, Any]:
        return self._frames.setdefault((filename, name), {"filename": filename, "line": 0, "name": name})


def _segment(segment: Segment, allocator: _Traced, settings: Settings) -> dict[str, Any]:
    """A segment as a snapshot has it, with its blocks by address."""
    blocks, address = [], segment.address
    for size_bytes, requested_bytes in segment.blocks:
        blocks.append(
            {
                "address": address,
                "size": size_bytes,
                "requested_size": requested_bytes,
                "state": "active_allocated" if requested_bytes else "inactive",
                "frames": allocator.holders[address][0] if requested_bytes else [],
            }
        )
        address += size_bytes
    held_bytes = sum(size_bytes for size_bytes, requested_bytes in segment.blocks if requested_bytes)
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.size_bytes,
        "allocated_size": held_bytes,
        "active_size": held_bytes,
        "requested_size": sum(requested_bytes for _, requested_bytes in segment.blocks),
        "stream": segment.stream,
        "segment_type": "small" if segment.page_bytes == SMALL_SEGMENT else "large",
        "segment_pool_id": _NO_POOL,
        "is_expandable": settings.expandable_segments,
        "frames": allocator.growers.get(segment.address, []),
        "blocks": blocks,
    }


def _configuration(settings: Settings) -> dict[str, Any]:
    """The settings as a snapshot has them; those that change nothing here are as PyTorch's own defaults."""
    return {
        "PYTORCH_CUDA_ALLOC_CONF": spelled(settings),
        "max_split_size": -1 if settings.max_split_size_bytes is None else settings.max_split_size_bytes,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "expandable_segments": settings.expandable_segments,
        "pinned_num_register_threads": 1,
        "release_lock_on_cudamalloc": False,
        "pinned_use_cuda_host_register": False,
        "graph_capture_record_stream_reuse": False,
        "roundup_power2_divisions": {str(1 << interval): number for interval, number in enumerate(settings.divisions)},
    }
