# SPDX-License-Identifier: Apache-2.0
"""One training loop on a pretended device, from the model's constructor to its second optimizer step, and what goes wrong in it."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch.utils._pytree import tree_leaves

from bsmodel.errors import BsmodelError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import frames, loop, placement
from bsmodel.recording.cuda_like import flash, offload
from bsmodel.recording.cuda_like.pretence import pretend_cuda
from bsmodel.recording.cuda_like.recurrent import as_cudnn
from bsmodel.recording.loop import Loop
from bsmodel.recording.recorder import Allocation, Recorder
from bsmodel.tape import Row
from bsmodel.training import Training
from bsmodel.workloads import Workload

_ALONE = threading.RLock()  # while a recording runs, the whole process seems to have a CUDA device


@dataclass
class Run:
    """One training loop on a pretended device, and where each block of its recording starts and ends."""

    recorder: Recorder
    loop: Loop
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @contextlib.contextmanager
    def block(self, name: str) -> Iterator[None]:
        start, first_row = len(self.recorder.events), len(self.recorder.rows)
        yield
        self.spans[name] = (start, len(self.recorder.events))
        self.rows[name] = as_cudnn(self.recorder.rows[first_row:], self.recorder.recurrent)

    def events(self, block: str) -> list[int]:
        start, end = self.spans[block]
        return self.recorder.events[start:end]

    def allocated(self, block: str) -> list[tuple[int, Allocation]]:
        """Numbers and records of what a block allocates, in order."""
        return [(number, self.recorder.allocations[number]) for number in self.events(block) if number >= 0]

    def released(self) -> set[int]:
        """Numbers of everything given back so far."""
        return {~event for event in self.recorder.events if event < 0}


@contextlib.contextmanager
def running(workload: Workload, training: Training, gpu: Gpu, stand_in: int = 0) -> Iterator[Run]:
    """A run before its first step. `stand_in` is what the step reads where nobody knows the value.

    Raises `UntraceableError` with file and line for whatever the user's code, or a library under it, raises.
    """
    try:
        with _run(workload, training, gpu, stand_in) as run:
            yield run
    except BsmodelError:
        raise
    except SystemExit as error:
        raise UntraceableError(f"{workload.name} ends the process while it is recorded, at {frames.raising_line(error) or 'an unknown line'}") from error
    except Exception as error:
        place = f"at {line}" if (line := frames.raising_line(error)) else f"in {_backward_of(workload, training, gpu)}"
        raise UntraceableError(f"{workload.name} fails while it is recorded, {place}: {frames.first_line(error)}") from error


@contextlib.contextmanager
def _run(workload: Workload, training: Training, gpu: Gpu, stand_in: int) -> Iterator[Run]:
    with _undisturbed(), flash.pretended():
        with placement.weights_nowhere():
            model, remarks = placement.build(workload.model, training)
            model = placement.adapt(model, training)
        recorder = Recorder(gpu.capability, stand_in)
        with pretend_cuda(gpu, recorder.follows), offload.followed(recorder.follows), recorder:
            yield _prepared(recorder, model, workload, training, remarks)


def _backward_of(workload: Workload, training: Training, gpu: Gpu) -> str:
    """The line of the forward pass whose backward fails: found in another run, in which autograd keeps every operation's stack."""
    with warnings.catch_warnings(record=True) as caught, contextlib.suppress(Exception):
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True, check_nan=False), _run(workload, training, gpu, 0) as run:
            recorder = run.recorder
            two_steps(run, (2, 2, 2))
    line = next((line for warning in caught if (line := frames.line_in(str(warning.message)))), None)
    return f"the backward pass of {line} (module {recorder.module_at(line) or 'model'})" if line else "a backward pass"


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


def _prepared(recorder: Recorder, model: torch.nn.Module, workload: Workload, training: Training, remarks: tuple[str, ...]) -> Run:
    """The model on the device, its optimizer and loop made, nothing run."""
    placement.place(model, training, recorder)
    optimizer = placement.make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], training)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = recorder.to_device(tensor, "to", "batch")
        recorder.values.set(moved, tensor)
        return moved

    run = Run(recorder, loop.start(model, optimizer, workload, training, move), remarks=remarks)
    for tensor in run.loop.average:
        recorder.categorize(tensor, "optimizer state", "")
    run.spans["init"] = (0, len(recorder.events))
    return run


def two_steps(run: Run, batches: tuple[int, ...]) -> None:
    """Two optimizer steps: the first makes the optimizer's state; the second finds it, and accumulates over two micro-steps."""
    for block, batch in zip(("first", "first_step", "micro", "accumulate", "step"), (batches[0], 0, batches[1], batches[2], 0), strict=True):
        with run.block(block):
            if batch:
                micro_step(run, batch)
            else:
                _optimizer_step(run)


def micro_step(run: Run, batch_size: int) -> None:
    run.recorder.phase = "forward"
    with run.recorder.following(run.loop.model):
        loop.micro_step(run.loop, batch_size)
    for name, parameter in run.loop.model.named_parameters():
        if parameter.grad is not None:
            run.recorder.categorize(parameter.grad, "gradient", name.rpartition(".")[0])
    if run.loop.workload.step is not None:
        _categorize_state(run)
        _require_used(run)


def _require_used(run: Run) -> None:
    """Raises `UntraceableError` where the user's own step trains something else than the model it is given, or trains it on the host."""
    name = run.loop.workload.name
    if not run.recorder.entered:
        raise UntraceableError(f"the step of {name} never calls the model it is given; call that one, so that its memory is seen")
    for parameter_name, parameter in run.loop.model.named_parameters():
        if not parameter.is_cuda:
            line = run.recorder.left_at or "an unknown line"
            raise UntraceableError(f"the step of {name} takes {parameter_name} from the device to the host, at {line}; leave the model where it is")


def _optimizer_step(run: Run) -> None:
    run.recorder.phase = "step"
    loop.optimizer_step(run.loop)
    _categorize_state(run)


def _categorize_state(run: Run) -> None:
    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in run.loop.model.named_parameters()}
    for parameter, state in run.loop.optimizer.state.items():
        for tensor in tree_leaves(state):
            if isinstance(tensor, torch.Tensor):
                run.recorder.categorize(tensor, "optimizer state", owners.get(id(parameter), ""))
