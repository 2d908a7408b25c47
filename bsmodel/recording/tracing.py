# SPDX-License-Identifier: Apache-2.0
"""Workload + training + GPU -> tape: runs the real step on pretended device tensors at three batch sizes, or four."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from bsmodel import tape as tapes
from bsmodel.errors import BsmodelError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import alignment, checks, loop
from bsmodel.recording.recorder import Allocation
from bsmodel.recording.run import Run, running, two_steps
from bsmodel.tape import BLOCKS, Operations, Polynomial, Row, Tape, Term, Workspace
from bsmodel.training import Training, require_arithmetic
from bsmodel.workloads import Workload

BATCHES = (2, 3, 5)  # at a batch of 1 many models take other code paths; the third size checks that two points make a line
FURTHER = 7  # checks that three points make a parabola, where some size is one
_PAIRED = "samples are paired within a micro-batch: accumulation and more devices do not make the pairs of the effective batch"
_MICRO_STEPS = ("first", "micro", "accumulate")
_ANOTHER_VALUE = 1_000_003  # for what the step reads and nobody knows: large, odd, and true


def trace(workload: Workload, training: Training | None = None, gpu: Gpu | None = None) -> Tape:
    """Record one training recipe of a workload, as the kernels of `gpu` would run it.

    The step runs for real, without data, at micro-batches 2 and 3: every allocation is then a line in the batch; a third batch checks
    the lines, and one near the largest that could fit whether they hold there. Where samples are paired, three give the polynomial of
    second degree and a fourth checks it. Seconds, no GPU, no weights in memory.

    Raises `UntraceableError` where the step cannot be recorded (it names the operation, module and line), where a size is no such
    polynomial in the batch, where a step keeps more than the one before, or where what happens hangs on a value that is read; `InvalidInputError` where
    the recipe does not suit the model or the GPU (bf16 on a card without it), or the batch function ignores its size.
    """
    training = training or workload.training
    gpu = gpu or Gpu.named("a100-40gb")
    require_arithmetic(training, gpu)
    loop.require_applicable(workload, training)
    tape, reads = _traced(workload, training, gpu, 0)
    if not reads:
        return tape
    where = ", ".join(reads)
    try:
        other, _ = _traced(workload, training, gpu, _ANOTHER_VALUE)
    except BsmodelError as error:
        raise UntraceableError(f"{workload.name} reads values at {where}, and what it does hangs on them ({error}); do without") from None
    if not checks.same_memory(tape, other):
        raise UntraceableError(f"{workload.name} reads values at {where}, and what it allocates hangs on them; a recording has none, so do without")
    return replace(tape, remarks=(*tape.remarks, f"values read at {where} are not known; 0 and {_ANOTHER_VALUE} gave the same recording"))


def _traced(workload: Workload, training: Training, gpu: Gpu, stand_in: int) -> tuple[Tape, tuple[str, ...]]:
    """A tape, and the lines of the user's code that read a value nobody knows."""
    with running(workload, training, gpu, stand_in) as run:
        checks.require_sized(workload)
        two_steps(run, BATCHES)
        sizes = None
        with contextlib.suppress(UntraceableError):  # said below, if it is so at every batch alone
            sizes = alignment.sizes_of_steps([run.allocated(block) for block in _MICRO_STEPS], run.released(), BATCHES, workload.name)
        blocks, batches = tuple[str, ...](_MICRO_STEPS), tuple[int, ...](BATCHES)
        if sizes is not None and _pairs_samples(sizes):
            sizes = sizes if checks.Agreement(run, sizes)(FURTHER) else None
            blocks, batches = (*blocks, "check"), (*batches, FURTHER)
        work = tapes.through([_apart(run.rows[block])[0] for block in blocks], batches)
        if sizes is not None and work is not None:
            return _checked(run, _tape(run, gpu, sizes, batches, work), sizes, gpu), tuple(run.recorder.values.lines)
    return _traced_in_full(workload, training, gpu, stand_in)


def _traced_in_full(workload: Workload, training: Training, gpu: Gpu, stand_in: int) -> tuple[Tape, tuple[str, ...]]:
    """For models whose first step differs from later ones: record every step at every batch."""
    recordings = []
    for batches in ((2,), (2, 3), BATCHES, (*BATCHES, FURTHER)):
        with running(workload, training, gpu, stand_in) as run:
            recordings.append(_all_steps(run, batches[-1]))
            if len(batches) < len(BATCHES):
                continue
            sizes = alignment.sizes([allocated for allocated, _ in recordings], batches, workload.name)
            if batches == BATCHES and _pairs_samples(sizes):
                continue
            work = tapes.through([rows for _, rows in recordings], batches)
            assert work is not None, "allocations agree and operations do not"
            return _checked(run, _tape(run, gpu, sizes, batches, work), sizes, gpu), tuple(run.recorder.values.lines)
    raise AssertionError("four batches decide")


def _pairs_samples(sizes: Mapping[int, alignment.Size]) -> bool:
    return any(size.pairs_samples for size in sizes.values())


def _all_steps(run: Run, batch: int) -> tuple[list[tuple[int, Allocation]], list[Row]]:
    """All that is allocated in two steps at a batch, and the kernels of a micro-step."""
    two_steps(run, (batch,) * 3)
    return list(enumerate(run.recorder.allocations)), _apart(run.rows["micro"])[0]


def _checked(run: Run, tape: Tape, sizes: dict[int, alignment.Size], gpu: Gpu) -> Tape:
    """The tape with what a recording near the largest batch says of it."""
    up_to, remark = checks.same_path(run, tape, sizes, gpu)
    return replace(tape, same_path_up_to=up_to, remarks=(*tape.remarks, *([remark] if remark else [])))


def _apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that every micro-step has, and those that keep or add up gradients."""
    return [row for row in rows if row.phase != "gradient"], [row for row in rows if row.phase == "gradient"]


def record(workload: Workload, training: Training, gpu: Gpu, batch: int) -> Tape:
    """Record the same run directly at `batch`; every size is then fixed. The laws compare this with `trace`."""
    with running(workload, training, gpu) as run:
        allocated, rows = _all_steps(run, batch)
        return _tape(run, gpu, alignment.sizes([allocated], (batch,), workload.name), (batch,), tapes.fixed(rows))


def _all_operations(run: Run, micro_step: Operations) -> Operations:
    """A micro-step, what keeps or adds up its gradients, and the optimizer step."""
    added = [replace(row, phase="accumulation") for row in _apart(run.rows["accumulate"])[1]]
    return tapes.joined([micro_step, tapes.fixed(_apart(run.rows["micro"])[1] + added + run.rows["step"])])


def _tape(run: Run, gpu: Gpu, sizes: dict[int, alignment.Size], batches: tuple[int, ...], micro_step: Operations) -> Tape:
    recorded = run.recorder.allocations
    period = alignment.periodic({name: run.events(name) for name in BLOCKS}, recorded)
    checks.require_steady(period, sizes, recorded, run.loop.workload.name)
    allocations = [recorded[number] for number in period.kept]
    found = [sizes.get(number, alignment.Size(Polynomial(recorded[number].size_bytes, 0))) for number in period.kept]
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
        fixed_bytes=np.array([size.bytes.fixed for size in found], np.int64),
        per_sample_bytes=np.array([size.bytes.per_sample for size in found], np.int64),
        per_pair_bytes=np.array([size.bytes.per_pair for size in found], np.int64),
        operators=tuple(a.operator for a in allocations),
        modules=tuple(a.owner or a.module for a in allocations),
        phases=tuple(a.phase for a in allocations),
        categories=tuple(a.category for a in allocations),
        terms={index: Term(size.formula, size.parameters) for index, size in enumerate(found) if size.formula},
        workspaces={index: Workspace(size.kind, size.excess) for index, size in enumerate(found) if size.kind},
        blocks=period.blocks,
        operations=_all_operations(run, micro_step),
        uncounted_operators=tuple(sorted(run.recorder.uncounted_operators)),
        uncounted=tuple(sorted(run.recorder.uncounted)),
        recipe=run.loop.training.model_dump(mode="json", exclude={"optimizer"}),
        base_lr=run.loop.workload.base_lr if run.loop.training.optimizer_family == run.loop.workload.training.optimizer_family else None,
        base_batch=run.loop.workload.base_batch,
        own_step=run.loop.workload.step is not None,
        remarks=(*run.loop.workload.remarks, *run.remarks, *([_PAIRED] if _pairs_samples(sizes) else [])),
    )


def _versions(model: torch.nn.Module) -> dict[str, str]:
    """Versions of torch and of the libraries that the model's modules come from: their code decides what is allocated."""
    found = {"torch": torch.__version__.split("+")[0]}
    for root in sorted({type(module).__module__.partition(".")[0] for module in model.modules()} - {"torch"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[root] = importlib.metadata.version(root)
    return found
