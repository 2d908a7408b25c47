# SPDX-License-Identifier: Apache-2.0
"""One recording, under what is assumed of values that nobody knows: of one run with three micro-steps, of a run for each batch, or sample by sample."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from bsmodel import tape as tapes
from bsmodel.errors import UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.parallel import PRESETS
from bsmodel.recording import alignment, checks, devices, lent, said, samples
from bsmodel.recording.allocation import Allocation, owner
from bsmodel.recording.assumed import Assumed
from bsmodel.recording.quantized import by_rules, elements, is_packed
from bsmodel.recording.run import Run, joined, running, two_steps, two_steps_apart
from bsmodel.recording.torchao import in_float8_of
from bsmodel.recording.values import Values
from bsmodel.tape import Collective, Operations, Polynomial, Row, Tape, Term, Workspace
from bsmodel.training import OPTIMIZERS, QUANTIZED, Training
from bsmodel.workloads import Workload

BATCHES = (2, 3, 5)  # at a batch of 1 many models take other code paths; the third size checks that two points make a line
_APART = (3, 5, 7, 9)  # of steps that do something for every sample: odd, so that no alignment differs, and of one round more it is hard to tell whose it is
FURTHER = 7  # checks that three points make a parabola, where some size is one
_PAIRED = "samples are paired within a micro-batch: accumulation and more devices do not make the pairs of the effective batch"
_LEFT = "{:,} parameters are not quantized, being no linear layers: embeddings, norms, experts that are one tensor; nor is the head"
_AS_PUBLISHED = "weights are in {}, as the model's quantization_config has them; weights bf16 would have them whole"
_FLOAT8 = (
    "{} of {} linear layers multiply in float8: not the head, nor those with a side that is no multiple of 16; "
    "their casts are kernels of their own, which torch.compile would fuse"
)
_BY_RULE = "bitsandbytes is not installed: weights in four bits are recorded by their layout, as its version 0.50 holds and unpacks them"
_DEEPSPEED = (
    "{} is recorded by the rules of DeepSpeed 0.19's engine with the optimizer of torch: what it allocates and frees is re-enacted, and its package, its own "
    "kernels and offloading are not in it"
)
_UPCAST = "weights that are not quantized are in float32, as peft's prepare_model_for_kbit_training leaves them; without upcast they are as published"
Recorded = tuple[Tape, Values]
_BY_SAMPLE = f"what the step does for every sample apart is counted as often as there are samples; recordings at batches {_APART[0]} to {_APART[-1]} agree"
_NEARLY = "sizes that are rounded up to whole rows are taken for the polynomial above them, at most a hundredth larger"
_PRESET = "devices share the work as {} has it: {}; what the recipe says itself goes before that"
_MICRO_STEPS = ("first", "micro", "accumulate")
_NO_STEP = "a call of step came by in which no optimizer made a step, whose state may then lack; one call is to be a whole optimizer step"


class OneRun(NamedTuple):
    """What two steps of one run say of every batch: which allocations are the same one, their sizes, kernels and collectives of a micro-step."""

    groups: list[alignment.Group]
    sizes: dict[int, alignment.Size]
    batches: tuple[int, ...]
    work: Operations
    said: tuple[Collective, ...]


def recording_of(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> tuple[Tape, Values]:
    """A tape, and what it was recorded to hold."""
    with running(workload, training, gpu, assumed) as run:
        made = in_one_run(run)
        if made is not None:
            return checked(run, tape_of(run, gpu, made.sizes, made.batches, made.work, made.said), made.sizes, gpu), run.recorder.values
    try:
        return _traced_in_full(workload, training, gpu, assumed)
    except alignment.OtherPathError as refusal:
        found = _traced_by_sample(workload, training, gpu, assumed)
        if found is None:
            raise refusal from None
        return found


def in_one_run(run: Run) -> OneRun | None:
    """Two steps at three batches, or four, and what they say of every batch.

    None where the first step differs from later ones, micro-steps from the last one, or the third disagrees.
    """
    checks.require_sized(run.loop.workload)
    if not _synchronized(run.loop.training):
        return None
    two_steps(run, BATCHES)
    name, sizes = run.loop.workload.name, None
    groups = alignment.grouped([run.allocated(block) for block in _MICRO_STEPS], run.released(), BATCHES)
    with contextlib.suppress(UntraceableError):  # said by those that record each batch apart, if it is so there
        sizes = None if groups is None else alignment.sizes_of_groups(groups, name)
    if groups is None or sizes is None:
        return None
    blocks, batches = tuple[str, ...](_MICRO_STEPS), tuple[int, ...](BATCHES)
    if _pairs_samples(sizes):
        if not checks.Agreement(run, sizes)(FURTHER):
            return None
        blocks, batches = (*blocks, "check"), (*batches, FURTHER)
    work = tapes.through([apart(run.rows[block])[0] for block in blocks], batches)
    return None if work is None else OneRun(groups, sizes, batches, work, said.through([run.said[block] for block in blocks], batches))


def _traced_in_full(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> tuple[Tape, Values]:
    """For models whose first step differs from later ones: record every step at every batch."""
    recordings, spoken = [], []
    for batches in ((2,), (2, 3), BATCHES, (*BATCHES, FURTHER)):
        with _at(batches[-1], workload, training, gpu, assumed) as run:
            recordings.append(_all_steps(run))
            spoken.append(run.said["micro"])
            if len(batches) < len(BATCHES):
                continue
            sizes = alignment.sizes([allocated for allocated, _ in recordings], batches, workload.name)
            if batches == BATCHES and _pairs_samples(sizes):
                continue
            work = tapes.through([rows for _, rows in recordings], batches)
            assert work is not None, "allocations agree and operations do not"
            return checked(run, tape_of(run, gpu, sizes, batches, work, said.through(spoken, batches)), sizes, gpu), run.recorder.values
    raise AssertionError("four batches decide")


def _traced_by_sample(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> tuple[Tape, Values] | None:
    """For steps that do something for every sample apart: the structure of the smallest batch, with what larger ones do more often."""
    batches = _APART
    runs: list[Run] = []
    for batch in (BATCHES[0], *reversed(batches)):
        with _at(batch, workload, training, gpu, assumed) as run:
            runs.insert(0, run)
    if not samples.same_kinds(runs.pop().recorder.allocations, runs[0].recorder.allocations):
        return None
    refusal = None
    for by_size in (False, True):
        rows = samples.works([apart(run.rows["micro"])[0] for run in runs], batches, by_size)
        steps = _by_sample(runs, batches, by_size)
        work = None if rows is None else tapes.through(rows, batches)
        if steps is None or work is None:
            continue
        for fit, remark in ((alignment.exactly, ()), (alignment.nearly, (_NEARLY,))):
            try:
                found = alignment.sizes(steps, batches, workload.name, fit)
                tape = tape_of(runs[0], gpu, found, batches, work, said.through([run.said["micro"] for run in runs], batches))
            except UntraceableError as error:
                refusal = error
                continue
            if checks.same_peak(tape, runs[-1], batches[-1]):
                return replace(tape, remarks=(*tape.remarks, _BY_SAMPLE, *remark)), run.recorder.values
    if isinstance(refusal, alignment.NoClosedFormError):
        raise refusal
    return None


def _by_sample(runs: list[Run], batches: tuple[int, ...], by_size: bool) -> list[list[tuple[int, Allocation]]] | None:
    """What is allocated at every batch in the structure of the first, block by block; what is repeated told apart by its size, or not."""
    steps: list[list[tuple[int, Allocation]]] = [[] for _ in batches]
    for block in runs[0].blocks():
        parts = samples.structured([run.allocated(block) for run in runs], [run.recorder.events for run in runs], batches, by_size)
        if parts is None:
            return None
        steps = [[*step, *part] for step, part in zip(steps, parts, strict=True)]
    return steps


def _pairs_samples(sizes: Mapping[int, alignment.Size]) -> bool:
    return any(size.pairs_samples for size in sizes.values())


def _synchronized(training: Training) -> bool:
    """Whether every micro-step sums its gradients over the devices, where there are several."""
    return training.parallel is None or training.parallel.sync_each_micro_step


@contextlib.contextmanager
def _at(batch: int, workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> Iterator[Run]:
    """A run of two steps at a batch, and in it, where only the last micro-step sums gradients over the devices, another of such steps."""
    apart = None
    if not _synchronized(training):
        with running(workload, training, gpu, assumed) as apart:
            two_steps_apart(apart, batch)
    with running(workload, training, gpu, assumed) as run:
        two_steps(run, (batch,) * 3)
        if apart is not None:
            joined(run, apart)
        yield run


def _all_steps(run: Run) -> tuple[list[tuple[int, Allocation]], list[Row]]:
    """All that is allocated in two steps, and the kernels of a micro-step."""
    return list(enumerate(run.recorder.allocations)), apart(run.rows["micro"])[0]


def checked(run: Run, tape: Tape, sizes: dict[int, alignment.Size], gpu: Gpu) -> Tape:
    """The tape with what a recording near the largest batch says of it."""
    up_to, remark = checks.same_path(run, tape, sizes, gpu)
    return replace(tape, same_path_up_to=up_to, remarks=(*tape.remarks, *([remark] if remark else [])))


def apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows that every micro-step has, and those that keep or add up gradients."""
    return [row for row in rows if row.phase != "gradient"], [row for row in rows if row.phase == "gradient"]


def record(workload: Workload, training: Training, gpu: Gpu, batch: int) -> Tape:
    """Record the same run directly at `batch`; every size is then fixed. The laws compare this with `trace`."""
    with _at(batch, workload, training, gpu, Assumed()) as run:
        allocated, rows = _all_steps(run)
        sizes = alignment.sizes([allocated], (batch,), workload.name)
        return tape_of(run, gpu, sizes, (batch,), tapes.fixed(rows), said.through([run.said["micro"]], (batch,)))


def tape_of(run: Run, gpu: Gpu, sizes: dict[int, alignment.Size], batches: tuple[int, ...], micro_step: Operations, spoken: tuple[Collective, ...]) -> Tape:
    recorded, period = run.recorder.allocations, alignment.periodic(run.blocks(), run.recorder.allocations)
    checks.require_steady(period, sizes, recorded, run.loop.workload.name)
    allocations = [recorded[number] for number in period.kept]
    found = [sizes.get(number, alignment.Size(Polynomial(recorded[number].size_bytes, 0))) for number in period.kept]
    optimizer, family = _optimizer(run)
    return Tape(
        name=run.loop.workload.name,
        precision=run.loop.training.precision,
        optimizer=optimizer,
        optimizer_family=family,
        gpu=gpu,
        accumulation=run.loop.training.accumulation,
        versions=_versions(run.loop.model),
        recorded_batches=batches,
        parameter_count=sum(elements(p) for _, p in devices.parameters(run.loop.model)),
        trained_parameter_count=sum(elements(p) for _, p in devices.parameters(run.loop.model) if p.requires_grad),
        tokens_per_sample=run.loop.workload.tokens_per_sample,
        fixed_bytes=np.array([size.bytes.fixed for size in found], np.int64),
        per_sample_bytes=np.array([size.bytes.per_sample for size in found], np.int64),
        per_pair_bytes=np.array([size.bytes.per_pair for size in found], np.int64),
        operators=tuple(a.operator for a in allocations),
        modules=tuple(a.owner or a.module for a in allocations),
        phases=tuple(a.phase for a in allocations),
        categories=tuple(a.category for a in allocations),
        terms={index: Term(size.formula, size.parameters) for index, size in enumerate(found) if size.formula},
        **_streams(run, period.kept),
        workspaces={index: Workspace(size.kind, size.excess) for index, size in enumerate(found) if size.kind},
        blocks=period.blocks,
        **_work(run, micro_step),
        uncounted_operators=tuple(sorted(run.recorder.uncounted_operators)),
        uncounted=tuple(sorted(run.recorder.uncounted)),
        recipe=run.loop.training.model_dump(mode="json", exclude={"optimizer"}),
        base_lr=run.loop.workload.base_lr if run.loop.training.optimizer_family == run.loop.workload.training.optimizer_family else None,
        base_batch=run.loop.workload.base_batch,
        collectives=(*spoken, *said.through([run.said["step"]], (1,))),
        own_step=run.loop.workload.step is not None,
        parameters=_parameters(run.loop.model),
        remarks=_remarks(run, sizes),
    )


def _work(run: Run, micro_step: Operations) -> dict[str, Any]:
    """The kernels of a micro-step, of what keeps or adds up its gradients, and of the optimizer step; how many come before each event of a repeated block."""
    added = [replace(row, phase="accumulation") for row in apart(run.rows["accumulate"])[1]]
    found = tapes.joined([micro_step, tapes.fixed(apart(run.rows["micro"])[1] + added + run.rows["step"])])
    names = [*zip(found.operators, found.modules, found.kinds, found.phases, strict=True)]
    kept = {after: [name[:3] for name in names if name[3] not in tapes.KEEPS and (name[3] == "step") == after] for after in (False, True)}
    reached = {}
    for block in (name for name in tapes.REPEATED if name in run.reached):
        own = [(row.operator, row.module, row.kind) for row in apart(run.rows[block])[0]]
        places = said.onto(own, kept[block in tapes.AFTER])
        reached[block] = tuple(places[place] for place in run.reached[block])
    return {"operations": found, "reached": reached}


def _streams(run: Run, kept: Sequence[int]) -> dict[str, Any]:
    """Whose blocks allocations take, which other streams use them, and what is waited for."""
    recorder = run.recorder
    return {
        "streams": {index: stream for index, number in enumerate(kept) if (stream := recorder.allocations[number].stream)},
        "lent": {index: tuple(sorted(streams)) for index, number in enumerate(kept) if (streams := recorder.lent.streams.get(number))},
        "waits": lent.by_block(recorder.lent, recorder.events, {name: run.spans[name] for name in run.blocks()}),
    }


def _parameters(model: torch.nn.Module) -> dict[str, int]:
    """How many parameters each module has itself; what several share is the first one's."""
    found: dict[str, int] = {}
    for name, parameter in devices.parameters(model):
        module = owner(name)
        found[module] = found.get(module, 0) + elements(parameter)
    return found


def _remarks(run: Run, sizes: dict[int, alignment.Size]) -> tuple[str, ...]:
    """What an answer rests on, as far as one recording tells."""
    optimizer = run.loop.training.optimizer
    of_state = OPTIMIZERS[optimizer].remark if isinstance(optimizer, str) and run.loop.workload.setup is None else ""
    packed = run.loop.training.weights in QUANTIZED
    whole = _LEFT.format(sum(p.numel() for p in run.loop.model.parameters() if not (p.requires_grad or is_packed(p)))) if packed else ""
    preset = "torch" if run.loop.training.parallel is None else run.loop.training.parallel.preset
    training, published = run.loop.training, run.loop.workload.quantized
    said = {
        _AS_PUBLISHED.format(training.weights): bool(published) and published.get("weights") == training.weights,
        of_state: bool(of_state),
        whole: packed,
        _UPCAST: training.packs("bitsandbytes") and training.upcast,
        _BY_RULE: by_rules(training),
        _DEEPSPEED.format(training.parallel): training.parallel is not None and training.parallel.kind.startswith("deepspeed"),
        _FLOAT8.format(*in_float8_of(run.loop.model)): training.float8 is not None,
        _NO_STEP: run.idle,
        _PRESET.format(preset, PRESETS[preset].what): preset != "torch",
        _PAIRED: _pairs_samples(sizes),
    }
    return (*run.loop.workload.remarks, *run.remarks, *(remark for remark, applies in said.items() if applies))


def _optimizer(run: Run) -> tuple[str, str]:
    """The optimizer as printed and its family: the recipe's, or where the user's own step calls others, those that make steps."""
    if run.loop.workload.setup is None and (not run.stepped or type(run.loop.optimizer) in run.stepped):
        return run.loop.training.optimizer_name, run.loop.training.optimizer_family
    names = [found.__name__ for found in run.stepped]
    return " and ".join(names) or "no optimizer", "sgd" if names and all("sgd" in name.lower() for name in names) else "adam"


def _versions(model: torch.nn.Module) -> dict[str, str]:
    """Versions of torch and of the libraries that the model's modules and tensors come from: their code decides what is allocated."""
    found = {"torch": torch.__version__.split("+")[0]}
    for root in sorted({type(part).__module__.partition(".")[0] for part in (*model.modules(), *model.parameters())} - {"torch"}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[root] = importlib.metadata.version(root)
    return found
