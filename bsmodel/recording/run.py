# SPDX-License-Identifier: Apache-2.0
"""One training loop on a pretended device, from the model's constructor to its second optimizer step, and what goes wrong in it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_leaves

from bsmodel.errors import BsmodelError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import devices, frames, leftovers, loop, placement, said
from bsmodel.recording.allocation import Allocation, owner
from bsmodel.recording.assumed import Assumed
from bsmodel.recording.chance import decided
from bsmodel.recording.cuda_like import flash, machine, offload, wrappers
from bsmodel.recording.cuda_like.pretence import lending, pretend_cuda, resizing
from bsmodel.recording.cuda_like.recurrent import as_cudnn
from bsmodel.recording.loop import Loop
from bsmodel.recording.recorder import Recorder
from bsmodel.recording.said import Said
from bsmodel.recording.values import Values
from bsmodel.tape import APART, BLOCKS, Row
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
    said: dict[str, list[Said]] = field(default_factory=dict)
    reached: dict[str, list[int]] = field(default_factory=dict)  # by block, for each of its events: how many of its kernels that keep no gradients come before
    remarks: tuple[str, ...] = ()
    stepped: dict[type, int] = field(default_factory=dict)  # how many steps optimizers of each class have made
    idle: bool = False  # whether a call of the user's own step came by without any

    @contextlib.contextmanager
    def block(self, name: str) -> Iterator[None]:
        start, first_row, first = len(self.recorder.events), len(self.recorder.rows), len(self.recorder.said)
        yield
        recorded = self.recorder.rows[first_row:]
        self.rows[name] = as_cudnn(recorded, self.recorder.recurrent)
        done = said.counted(recorded, self.rows[name])
        self.said[name] = said.within(self.recorder.said[first:], done, first_row)
        self.reached[name] = [done[row - first_row] for row in self.recorder.reached[start:]]
        self.spans[name] = (start, len(self.recorder.events))

    def events(self, block: str) -> list[int]:
        start, end = self.spans[block]
        return self.recorder.events[start:end]

    def blocks(self) -> dict[str, list[int]]:
        """Events of all blocks that a tape has."""
        return {name: self.events(name) for name in (*BLOCKS, *APART) if name in self.spans}

    def allocated(self, block: str) -> list[tuple[int, Allocation]]:
        """Numbers and records of what a block allocates, in order."""
        return [(number, self.recorder.allocations[number]) for number in self.events(block) if number >= 0]

    def released(self) -> set[int]:
        """Numbers of everything given back so far."""
        return {~event for event in self.recorder.events if event < 0}


@contextlib.contextmanager
def running(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> Iterator[Run]:
    """A run before its first step, with what is assumed of values that nobody knows.

    Raises `UntraceableError` with file and line for whatever the user's code, or a library under it, raises; `ComplaintError` where that is a
    complaint about such a value.
    """
    values: list[Values] = []
    try:
        with _run(workload, training, gpu, assumed) as run:
            values.append(run.recorder.values)
            yield run
    except BsmodelError:
        raise
    except SystemExit as error:
        raise UntraceableError(f"{workload.name} ends the process while it is recorded, at {frames.raising_line(error) or 'an unknown line'}") from error
    except Exception as error:
        place = f"at {line}" if (line := frames.raising_line(error)) else f"in {_backward_of(workload, training, gpu)}"
        message = f"{workload.name} fails while it is recorded, {place}: {frames.first_line(error)}"
        if values and (line := frames.complaint(error, [*values[0].asked])):
            raise ComplaintError(message, line, values[0].asked[line]) from error
        raise UntraceableError(message + _reads(values)) from error


class ComplaintError(UntraceableError):
    """The step complains about this answer to what is asked at `line` about values that nobody knows."""

    def __init__(self, message: str, line: str, answer: bool) -> None:
        super().__init__(message)
        self.line, self.answer = line, answer


def _reads(values: list[Values]) -> str:
    """What a failing step has read that nobody knows, for its message."""
    lines = list(values[0].reads) if values else []
    return f"; values read at {', '.join(lines)} are not known" if lines else ""


@contextlib.contextmanager
def _run(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> Iterator[Run]:
    with _undisturbed(), flash.pretended(), devices.group(training.parallel):
        leftovers.clear()
        with placement.weights_nowhere():
            model, remarks = placement.build(workload, training)
            model = placement.adapt(model, workload, training)
        recorder = Recorder(gpu.capability, assumed)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(pretend_cuda(gpu, recorder.follows, recorder.uncounted.add))
                stack.enter_context(resizing(recorder.resized))
                stack.enter_context(offload.followed(recorder.follows))
                stack.enter_context(decided(recorder.values.decided))
                stack.enter_context(lending(recorder.lent.lend))
                watch = machine.Watch(lambda: len(recorder.rows), lambda: len(recorder.events), recorder.joined, recorder.lent.wait)
                stack.enter_context(machine.watched(watch))
                stack.enter_context(recorder)
                run = _prepared(recorder, model, left_to_chance(workload, recorder.values), training, remarks)
                with _optimizers_of(run):
                    yield run
        finally:
            recorder.retire()


def left_to_chance(workload: Workload, values: Values) -> Workload:
    """The workload, in whose batches nothing is decided, and whose samples are counted."""

    def batch(size: int) -> Any:
        values.samples = size
        with values.aside():
            return workload.batch(size)

    return replace(workload, batch=batch)


def _backward_of(workload: Workload, training: Training, gpu: Gpu) -> str:
    """The line of the forward pass whose backward fails: found in another run, in which autograd keeps every operation's stack."""
    with warnings.catch_warnings(record=True) as caught, contextlib.suppress(Exception):
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True, check_nan=False), _run(workload, training, gpu, Assumed()) as run:
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
        kept = [dict(state) for state in _accelerate()]
        for state in _accelerate():
            state.clear()
        sys._current_frames = lambda: {thread: _outermost(frame) for thread, frame in current_frames().items()}
        try:
            yield
        finally:
            sys._current_frames = current_frames
            for state, before in itertools.zip_longest(_accelerate(), kept):  # none where accelerate was imported meanwhile
                state.clear()
                state.update(before or {})
            if collecting:
                gc.enable()


def _accelerate() -> list[dict[str, Any]]:
    """What accelerate keeps for a whole process, among it the device: a recording begins without, and leaves none behind."""
    state = sys.modules.get("accelerate.state")
    return [] if state is None else [getattr(state, name)._shared_state for name in ("PartialState", "AcceleratorState", "GradientState")]


def _outermost(frame: FrameType) -> FrameType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _prepared(recorder: Recorder, model: torch.nn.Module, workload: Workload, training: Training, remarks: tuple[str, ...]) -> Run:
    """The model on the device, its optimizer and loop made, nothing run."""
    model = devices.placed(model, training, recorder)
    placed = len(recorder.events)
    optimizer = devices.set_up(model, workload, training)
    recorder.categorize_live(placed, "optimizer state")

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = recorder.to_device(tensor, "to", "batch")
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # where it shows whether it has data
            recorder.values.set(moved, tensor.clone() if tensor.numel() <= recorder.values.limit and 0 not in tensor.stride() else tensor)
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
            if block == "first_step":
                devices.settle(run.loop.model, run.loop.training, run.recorder)


def two_steps_apart(run: Run, batch: int) -> None:
    """Two optimizer steps of two micro-steps and of three, of which the last one alone sums gradients over devices."""
    for block in APART:
        with run.block(block):
            if block in ("open_step", "end"):
                _optimizer_step(run)
            else:
                with contextlib.nullcontext() if block in ("close", "last") else devices.apart(run.loop.model, run.loop.training):
                    micro_step(run, batch)
            if block == "open_step":
                devices.settle(run.loop.model, run.loop.training, run.recorder)


def joined(run: Run, other: Run) -> None:
    """Give a run the blocks of another, which begins as it does."""
    same, more = len([event for event in run.events("init") if event >= 0]), len(run.recorder.allocations)
    if run.events("init") != other.events("init"):
        raise UntraceableError(f"{run.loop.workload.name} is made otherwise when it is made again")
    run.recorder.allocations += other.recorder.allocations[same:]

    def renumbered(event: int) -> int:
        number = event if event >= 0 else ~event
        number += (more - same) * (number >= same)
        return number if event >= 0 else ~number

    for name in other.spans.keys() - run.spans.keys():
        start = len(run.recorder.events)
        run.recorder.events += map(renumbered, other.events(name))
        run.recorder.reached += [len(run.recorder.rows)] * len(other.events(name))
        run.spans[name] = (start, len(run.recorder.events))
        run.rows[name], run.reached[name] = other.rows[name], other.reached[name]


def micro_step(run: Run, batch_size: int) -> None:
    run.recorder.phase, before = "forward", sum(run.stepped.values())
    model = devices.bare(run.loop.model)
    with run.recorder.following(model):
        loop.micro_step(run.loop, batch_size)
    for name, parameter in model.named_parameters():
        for part in () if parameter.grad is None else wrappers.parts(parameter.grad):
            run.recorder.categorize(part, "gradient", owner(name))
    for module, tensor in devices.whole_gradients(run.loop.model, run.loop.training):
        run.recorder.categorize(tensor, "gradient", module)
    if run.loop.workload.step is not None:
        run.idle = run.idle or sum(run.stepped.values()) == before
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


@contextlib.contextmanager
def _optimizers_of(run: Run) -> Iterator[None]:
    """Within this context the state of every optimizer that makes a step, whoever made and calls it, is known as such."""

    def made_a_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        run.stepped[type(optimizer)] = run.stepped.get(type(optimizer), 0) + 1
        _categorize_state(run, optimizer)

    handle = register_optimizer_step_post_hook(made_a_step)
    try:
        yield
    finally:
        handle.remove()


def _categorize_state(run: Run, optimizer: torch.optim.Optimizer) -> None:
    owners = {id(parameter): owner(name) for name, parameter in devices.bare(run.loop.model).named_parameters()}
    for parameter, state in optimizer.state.items():
        for tensor in tree_leaves(state):
            for part in wrappers.parts(tensor) if isinstance(tensor, torch.Tensor) else ():
                run.recorder.categorize(part, "optimizer state", owners.get(id(parameter), ""))
