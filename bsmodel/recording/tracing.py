# SPDX-License-Identifier: Apache-2.0
"""Workload + training + GPU -> tape: runs the real step on pretended device tensors at three batch sizes, or four."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from bsmodel import tape as tapes
from bsmodel.errors import BsmodelError, InvalidInputError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import alignment, checks, loop, samples
from bsmodel.recording.assumed import ALL, CHANCE, EVENLY, Assumed
from bsmodel.recording.leftovers import CachedError
from bsmodel.recording.quantized import elements, is_packed
from bsmodel.recording.recorder import Allocation
from bsmodel.recording.run import ComplaintError, Run, running, two_steps
from bsmodel.recording.torchao import in_float8_of
from bsmodel.recording.values import Values
from bsmodel.tape import BLOCKS, Operations, Polynomial, Row, Tape, Term, Workspace
from bsmodel.training import OPTIMIZERS, QUANTIZED, Training, require_arithmetic
from bsmodel.units import format_bytes
from bsmodel.workloads import Workload

BATCHES = (2, 3, 5)  # at a batch of 1 many models take other code paths; the third size checks that two points make a line
_APART = (3, 5, 7, 9)  # of steps that do something for every sample: odd, so that no alignment differs, and of one round more it is hard to tell whose it is
FURTHER = 7  # checks that three points make a parabola, where some size is one
_PAIRED = "samples are paired within a micro-batch: accumulation and more devices do not make the pairs of the effective batch"
_LEFT = "{:,} parameters are not quantized, being no linear layers: embeddings, norms, experts that are one tensor; nor is the head"
_UPCAST = "weights that are not quantized are in float32, as peft's prepare_model_for_kbit_training leaves them; without upcast they are as published"
_FLOAT8 = (
    "{} of {} linear layers multiply in float8: not the head, nor those with a side that is no multiple of 16; "
    "their casts are kernels of their own, which torch.compile would fuse"
)
Recorded = tuple[Tape, Values]
Recording = Callable[[Assumed], Recorded]
_BY_SAMPLE = f"what the step does for every sample apart is counted as often as there are samples; recordings at batches {_APART[0]} to {_APART[-1]} agree"
_NEARLY = "sizes that are rounded up to whole rows are taken for the polynomial above them, at most a hundredth larger"
_MICRO_STEPS = ("first", "micro", "accumulate")
_MOST_CHECKS = 50
_MOST_QUESTIONS = 6  # each a recording more
_ANOTHER_VALUE = 1_000_003  # for what the step reads and nobody knows: large, odd, and true

_RIGHT = "checks at {} are answered as where nothing is wrong"
_MOST = "what values at {} decide is taken as it takes the most memory"
_NO = "what values at {} decide is taken as they answer with no, and was not tried otherwise"
_WORST = "the upper end has every batch as worst_batch gives it; what sizes that change from step to step leave in fragments is not counted"
_NO_STEP = "a call of step came by in which no optimizer made a step, whose state may then lack; one call is to be a whole optimizer step"


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
    recording = partial(_traced, workload, training, gpu)
    tape, values = _whole_or_shares(recording, workload)
    if CHANCE in values.noted:
        tape, values = _most_by_chance(recording, (tape, values), gpu)
    questions = [line for line in values.asked if line not in values.assumed.answers]
    tape, values, decided = _most_by_answer(recording, (tape, values), questions[:_MOST_QUESTIONS], gpu)
    if EVENLY in values.noted:
        crowded, _ = _healthy(recording, replace(values.assumed, crowded=True))
        tape = replace(tape, worst=crowded)
    notes = [f"assumed at {', '.join(lines)}: {what}" for what, lines in values.noted.items()]
    checked = [line for line in values.assumed.answers if line not in decided]
    for what, lines in ((_RIGHT, checked), (_MOST, decided), (_NO, questions[_MOST_QUESTIONS:])):
        notes += [what.format(", ".join(lines))] if lines else []
    if values.reads:
        _compare(recording, tape, values, workload.name)
        notes.append(f"values read at {', '.join(values.reads)} are not known; 0 and {_ANOTHER_VALUE} gave the same recording")
    tape = replace(tape, remarks=(*tape.remarks, *notes))
    if workload.worst_batch is None:
        return tape
    worst = trace(replace(workload, batch=workload.worst_batch, worst_batch=None), training, gpu)
    return _with_worst(tape, worst, workload.name, gpu)


def _with_worst(tape: Tape, worst: Tape, name: str, gpu: Gpu) -> Tape:
    """The tape, whose upper end is what the step takes for the worst batch. Raises `InvalidInputError` where that takes less than the usual one."""
    batch = min(checks.LARGEST, checks.about_the_largest(tape, checks.roomiest(gpu)))
    usual, most = checks.envelope(tape)(batch), checks.envelope(worst)(batch)
    if most < usual:
        few, many = map(format_bytes, (most, usual))
        raise InvalidInputError(f"worst_batch({batch}) of {name} takes {few}, less than batch({batch}) with {many}; expected the worst there is")
    paths = [each.same_path_up_to for each in (tape, worst) if each.same_path_up_to is not None]
    remarks = dict.fromkeys((*tape.remarks, *worst.remarks, _WORST))
    return replace(tape, worst=worst.worst or worst, same_path_up_to=min(paths, default=None), remarks=tuple(remarks))


def _whole_or_shares(recording: Recording, workload: Workload) -> Recorded:
    """A recording in which the largest of a batch are as many as are asked for, or all, where such a share has no closed form."""
    try:
        return _healthy(recording, Assumed())
    except alignment.OtherPathError:
        checks.require_even(workload)
        raise
    except alignment.NoClosedFormError as refusal:
        checks.require_even(workload)
        with contextlib.suppress(BsmodelError):
            tape, values = _healthy(recording, Assumed(whole=True))
            if ALL in values.noted:
                return tape, values
        raise refusal from None


def _most_by_answer(recording: Recording, first: Recorded, questions: list[str], gpu: Gpu) -> tuple[Tape, Values, list[str]]:
    """The recording that takes the most memory of those in which questions about unknown values are answered otherwise, one by one, and which these are."""
    decided: list[str] = []
    for line in questions:
        first, differs = _answered(recording, first, line, gpu)
        decided += [line] if differs else []
    return *first, decided


def _answered(recording: Recording, first: Recorded, line: str, gpu: Gpu) -> tuple[Recorded, bool]:
    """The recording that takes more memory, of this and one in which a question is answered with yes, and whether they differ."""
    asked = first[1].assumed
    try:
        other = _healthy(recording, replace(asked, answers={**asked.answers, line: True}))
    except ComplaintError as complaint:
        if complaint.line != line:
            raise
        first[1].assumed = replace(asked, answers={**asked.answers, line: False})  # a check after all
        return first, False
    if checks.same_memory(first[0], other[0]):
        return first, False
    return _larger(first, other, gpu), True


def _larger(first: Recorded, other: Recorded, gpu: Gpu) -> Recorded:
    """The recording that takes more memory: there is room for fewer samples, or else all that is allocated is more."""
    return min((first, other), key=lambda found: (checks.about_the_largest(found[0], checks.roomiest(gpu)), -sum(map(sum, found[0].coefficients()))))


def _most_by_chance(recording: Recording, first: Recorded, gpu: Gpu) -> Recorded:
    """The recording that takes more memory, of that in which chance decides everything one way and that in which it decides it the other."""
    other = _healthy(recording, replace(first[1].assumed, chance=0.0))
    if checks.same_memory(first[0], other[0]):
        del first[1].noted[CHANCE]  # nothing hangs on it
        return first
    return _larger(first, other, gpu)


def _healthy(recording: Recording, assumed: Assumed) -> tuple[Tape, Values]:
    """A recording in which every check is answered so that nothing is complained about."""
    cached = False
    for _ in range(_MOST_CHECKS):
        try:
            return recording(assumed)
        except CachedError:
            if cached:
                raise
            cached = True
        except ComplaintError as complaint:
            if complaint.line in assumed.answers:
                raise
            assumed = replace(assumed, answers={**assumed.answers, complaint.line: not complaint.answer})
    raise UntraceableError(f"the step complains about more than {_MOST_CHECKS} values that nobody knows")


def _compare(recording: Recording, tape: Tape, values: Values, name: str) -> None:
    """Raises `UntraceableError` where other numbers than those that were read give another recording."""
    where = ", ".join(values.reads)
    try:
        other, others = _healthy(recording, replace(values.assumed, stand_in=_ANOTHER_VALUE))
    except BsmodelError as error:
        raise UntraceableError(f"{name} reads values at {where}, and what it does hangs on them ({error}); do without") from None
    if not checks.same_memory(tape, other):
        where = ", ".join(dict.fromkeys([*values.reads, *others.reads]))
        raise UntraceableError(f"{name} reads values at {where}, and what it allocates hangs on them; a recording has none, so do without")


def _traced(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> tuple[Tape, Values]:
    """A tape, and what it was recorded to hold."""
    with running(workload, training, gpu, assumed) as run:
        checks.require_sized(run.loop.workload)
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
            return _checked(run, _tape(run, gpu, sizes, batches, work), sizes, gpu), run.recorder.values
    try:
        return _traced_in_full(workload, training, gpu, assumed)
    except alignment.OtherPathError as refusal:
        found = _traced_by_sample(workload, training, gpu, assumed)
        if found is None:
            raise refusal from None
        return found


def _traced_in_full(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> tuple[Tape, Values]:
    """For models whose first step differs from later ones: record every step at every batch."""
    recordings = []
    for batches in ((2,), (2, 3), BATCHES, (*BATCHES, FURTHER)):
        with running(workload, training, gpu, assumed) as run:
            recordings.append(_all_steps(run, batches[-1]))
            if len(batches) < len(BATCHES):
                continue
            sizes = alignment.sizes([allocated for allocated, _ in recordings], batches, workload.name)
            if batches == BATCHES and _pairs_samples(sizes):
                continue
            work = tapes.through([rows for _, rows in recordings], batches)
            assert work is not None, "allocations agree and operations do not"
            return _checked(run, _tape(run, gpu, sizes, batches, work), sizes, gpu), run.recorder.values
    raise AssertionError("four batches decide")


def _traced_by_sample(workload: Workload, training: Training, gpu: Gpu, assumed: Assumed) -> tuple[Tape, Values] | None:
    """For steps that do something for every sample apart: the structure of the smallest batch, with what larger ones do more often."""
    batches = _APART
    runs: list[Run] = []
    for batch in (BATCHES[0], *reversed(batches)):
        with running(workload, training, gpu, assumed) as run:
            two_steps(run, (batch,) * 3)
            runs.insert(0, run)
    if not samples.same_kinds(runs.pop().recorder.allocations, runs[0].recorder.allocations):
        return None
    refusal = None
    for by_size in (False, True):
        rows = samples.works([_apart(run.rows["micro"])[0] for run in runs], batches, by_size)
        steps = _by_sample(runs, batches, by_size)
        work = None if rows is None else tapes.through(rows, batches)
        if steps is None or work is None:
            continue
        for fit, remark in ((alignment.exactly, ()), (alignment.nearly, (_NEARLY,))):
            try:
                tape = _tape(runs[0], gpu, alignment.sizes(steps, batches, workload.name, fit), batches, work)
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
    for block in BLOCKS:
        parts = samples.structured([run.allocated(block) for run in runs], [run.recorder.events for run in runs], batches, by_size)
        if parts is None:
            return None
        steps = [[*step, *part] for step, part in zip(steps, parts, strict=True)]
    return steps


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
    with running(workload, training, gpu, Assumed()) as run:
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
        parameter_count=sum(map(elements, parameters)),
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
        parameters=_parameters(run.loop.model),
        remarks=_remarks(run, sizes),
    )


def _parameters(model: torch.nn.Module) -> dict[str, int]:
    """How many parameters each module has itself; what several share is the first one's."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        found[module] = found.get(module, 0) + elements(parameter)
    return found


def _remarks(run: Run, sizes: dict[int, alignment.Size]) -> tuple[str, ...]:
    """What an answer rests on, as far as one recording tells."""
    optimizer = run.loop.training.optimizer
    of_state = OPTIMIZERS[optimizer].remark if isinstance(optimizer, str) and run.loop.workload.setup is None else ""
    training = run.loop.training
    packed = training.weights in QUANTIZED
    whole = _LEFT.format(sum(p.numel() for p in run.loop.model.parameters() if not (p.requires_grad or is_packed(p)))) if packed else ""
    said = {
        of_state: bool(of_state),
        whole: packed,
        _UPCAST: training.packs("bitsandbytes") and training.upcast,
        _FLOAT8.format(*in_float8_of(run.loop.model)): training.float8 is not None,
        _NO_STEP: run.idle,
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
