# SPDX-License-Identifier: Apache-2.0
"""Workload + training + GPU -> tape: runs the real step on pretended device tensors at three batch sizes."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import FrameType

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from bsmodel import tape as tapes
from bsmodel.errors import BsmodelError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import alignment, loop, placement
from bsmodel.recording.cuda_like.pretence import pretend_cuda
from bsmodel.recording.loop import Loop
from bsmodel.recording.recorder import Allocation, Recorder, user_line
from bsmodel.tape import BLOCKS, Operations, Row, Tape, Term
from bsmodel.training import Training, require_arithmetic
from bsmodel.workloads import Workload

_ALONE = threading.RLock()  # while a recording runs, the whole process seems to have a CUDA device
BATCHES = (2, 3, 5)  # at a batch of 1 many models take other code paths; the third size checks that two points make a line


@dataclass
class _Run:
    """One training loop on a pretended device, and where each block of its recording starts and ends."""

    recorder: Recorder
    loop: Loop
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)

    @contextlib.contextmanager
    def block(self, name: str) -> Iterator[None]:
        start, first_row = len(self.recorder.events), len(self.recorder.rows)
        yield
        self.spans[name] = (start, len(self.recorder.events))
        self.rows[name] = self.recorder.rows[first_row:]

    def events(self, block: str) -> list[int]:
        start, end = self.spans[block]
        return self.recorder.events[start:end]

    def allocated(self, block: str) -> list[tuple[int, Allocation]]:
        """Numbers and records of what a block allocates, in order."""
        return [(number, self.recorder.allocations[number]) for number in self.events(block) if number >= 0]

    def released(self) -> set[int]:
        """Numbers of everything given back so far."""
        return {~event for event in self.recorder.events if event < 0}


def trace(workload: Workload, training: Training | None = None, gpu: Gpu | None = None) -> Tape:
    """Record one training recipe of a workload, as the kernels of `gpu` would run it.

    The step runs for real, without data, at micro-batches 2 and 3: every allocation is then a line in the batch; a third batch checks
    the lines. Seconds, no GPU, no weights in memory.

    Raises `UntraceableError` where the step cannot be recorded (it names the operation, module and line) or where a size is no line in
    the batch, `InvalidInputError` where the recipe does not suit the model or the GPU (bf16 on a card without it).
    """
    training = training or workload.training
    gpu = gpu or Gpu.named("a100-40gb")
    require_arithmetic(training, gpu)
    with _recording(workload, training, gpu) as run:
        _two_steps(run, BATCHES)
        micro_steps = [run.allocated(block) for block in ("first", "micro", "accumulate")]
        lines = alignment.lines_of_steps(micro_steps, run.released(), BATCHES, workload.name)
        work = tapes.through([_apart(run.rows[block])[0] for block in ("first", "micro", "accumulate")], BATCHES)
        if lines is not None and work is not None:
            return _tape(run, gpu, lines, BATCHES, work)
    return _traced_in_full(workload, training, gpu)


def _traced_in_full(workload: Workload, training: Training, gpu: Gpu) -> Tape:
    """For models whose first step differs from later ones: record every step at every batch."""
    recordings, rows = [], []
    for batch in BATCHES:
        with _recording(workload, training, gpu) as run:
            _two_steps(run, (batch,) * 3)
            recordings.append(list(enumerate(run.recorder.allocations)))
            rows.append(_apart(run.rows["micro"])[0])
    lines = alignment.lines(recordings, BATCHES, workload.name)
    work = tapes.through(rows, BATCHES)
    assert work is not None, "allocations agree and operations do not"
    return _tape(run, gpu, lines, BATCHES, work)


def _apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that every micro-step has, and those that keep or add up gradients."""
    return [row for row in rows if row.phase != "gradient"], [row for row in rows if row.phase == "gradient"]


def record(workload: Workload, training: Training, gpu: Gpu, batch: int) -> Tape:
    """Record the same run directly at `batch`; every size is then fixed. The laws compare this with `trace`."""
    with _recording(workload, training, gpu) as run:
        _two_steps(run, (batch,) * 3)
        lines = alignment.lines([list(enumerate(run.recorder.allocations))], (batch,), workload.name)
        return _tape(run, gpu, lines, (batch,), tapes.fixed(_apart(run.rows["micro"])[0]))


@contextlib.contextmanager
def _recording(workload: Workload, training: Training, gpu: Gpu) -> Iterator[_Run]:
    try:
        with _undisturbed():
            with placement.WeightsNowhere():
                model = placement.adapt(placement.build(workload.model, training), training)
            with pretend_cuda(gpu.name, gpu.capability, gpu.memory_bytes, gpu.sm_count), Recorder(gpu.capability) as recorder:
                yield _prepared(recorder, model, workload, training)
    except BsmodelError:
        raise
    except Exception as error:  # whatever the user's code or a library under it raises
        message = (str(error).splitlines() or [""])[0]
        raise UntraceableError(f"{workload.name} fails while it is recorded, at {user_line(error)}: {type(error).__name__}: {message}") from error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """One recording at a time in a process, in which tensors die when the step lets go of them.

    No garbage collection in the middle, which would release tensors of an earlier recording; and a profiler in another thread, such as a dask
    worker has, sees where threads began and not where they are: while it looks at a frame, it keeps alive what that holds.
    """
    with _ALONE:
        collecting, current_frames = gc.isenabled(), sys._current_frames
        gc.disable()
        sys._current_frames = lambda: {thread: _outermost(frame) for thread, frame in current_frames().items()}
        try:
            yield
        finally:
            sys._current_frames = current_frames
            if collecting:
                gc.enable()


def _outermost(frame: FrameType) -> FrameType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _prepared(recorder: Recorder, model: torch.nn.Module, workload: Workload, training: Training) -> _Run:
    placement.place(model, training, recorder)
    optimizer = placement.make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], training)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = recorder.to_device(tensor, "to", "batch")
        recorder.set_value(moved, tensor)
        return moved

    run = _Run(recorder, loop.start(model, optimizer, workload, training, move))
    for tensor in run.loop.average:
        recorder.categorize(tensor, "optimizer state", "")
    run.spans["init"] = (0, len(recorder.events))
    return run


def _two_steps(run: _Run, batches: tuple[int, ...]) -> None:
    """Two optimizer steps: the first makes the optimizer's state; the second finds it, and accumulates over two micro-steps."""
    for block, batch in zip(("first", "first_step", "micro", "accumulate", "step"), (batches[0], 0, batches[1], batches[2], 0), strict=True):
        with run.block(block):
            if batch:
                _micro_step(run, batch)
            else:
                _optimizer_step(run)


def _micro_step(run: _Run, batch_size: int) -> None:
    run.recorder.phase = "forward"
    with run.recorder.following(run.loop.model):
        loop.micro_step(run.loop, batch_size)
    for name, parameter in run.loop.model.named_parameters():
        if parameter.grad is not None:
            run.recorder.categorize(parameter.grad, "gradient", name.rpartition(".")[0])
    if run.loop.workload.step is not None:
        _categorize_state(run)


def _optimizer_step(run: _Run) -> None:
    run.recorder.phase = "step"
    loop.optimizer_step(run.loop)
    _categorize_state(run)


def _categorize_state(run: _Run) -> None:
    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in run.loop.model.named_parameters()}
    for parameter, state in run.loop.optimizer.state.items():
        for tensor in tree_leaves(state):
            if isinstance(tensor, torch.Tensor):
                run.recorder.categorize(tensor, "optimizer state", owners.get(id(parameter), ""))


def _all_operations(run: _Run, micro_step: Operations) -> Operations:
    """A micro-step, what keeps or adds up its gradients, and the optimizer step."""
    added = [replace(row, phase="accumulation") for row in _apart(run.rows["accumulate"])[1]]
    return tapes.joined([micro_step, tapes.fixed(_apart(run.rows["micro"])[1] + added + run.rows["step"])])


def _tape(run: _Run, gpu: Gpu, sizes: dict[int, alignment.Size], batches: tuple[int, ...], micro_step: Operations) -> Tape:
    recorded = run.recorder.allocations
    blocks, kept = alignment.periodic({name: run.events(name) for name in BLOCKS}, recorded)
    allocations = [recorded[number] for number in kept]
    found = [sizes.get(number, alignment.Size((recorded[number].size_bytes, 0))) for number in kept]
    parameters = list(run.loop.model.parameters())
    return Tape(
        name=run.loop.workload.name,
        precision=run.loop.training.precision,
        optimizer=run.loop.training.optimizer_name,
        optimizer_family=run.loop.training.optimizer_family,
        gpu=gpu,
        accumulation=run.loop.training.accumulation,
        versions=_versions(run.loop.model),
        recorded_batches=batches,
        parameter_count=sum(p.numel() for p in parameters),
        trained_parameter_count=sum(p.numel() for p in parameters if p.requires_grad),
        tokens_per_sample=run.loop.workload.tokens_per_sample,
        fixed_bytes=np.array([size.line[0] for size in found], np.int64),
        per_sample_bytes=np.array([size.line[1] for size in found], np.int64),
        operators=tuple(a.operator for a in allocations),
        modules=tuple(a.owner or a.module for a in allocations),
        phases=tuple(a.phase for a in allocations),
        categories=tuple(a.category for a in allocations),
        terms={index: Term(size.formula, size.parameters) for index, size in enumerate(found) if size.formula},
        excess={index: size.excess for index, size in enumerate(found) if size.excess is not None},
        blocks=blocks,
        operations=_all_operations(run, micro_step),
        uncounted_operators=tuple(sorted(run.recorder.uncounted_operators)),
        uncounted=tuple(sorted(run.recorder.uncounted)),
        recipe=run.loop.training.model_dump(mode="json", exclude={"optimizer"}),
        base_lr=run.loop.workload.base_lr,
        base_batch=run.loop.workload.base_batch,
        own_step=run.loop.workload.step is not None,
    )


def _versions(model: torch.nn.Module) -> dict[str, str]:
    """Versions of torch and of the libraries that the model's modules come from: their code decides what is allocated."""
    found = {"torch": torch.__version__.split("+")[0]}
    for root in sorted({type(module).__module__.partition(".")[0] for module in model.modules()} - {"torch"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[root] = importlib.metadata.version(root)
    return found
