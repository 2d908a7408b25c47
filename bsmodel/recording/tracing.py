# SPDX-License-Identifier: Apache-2.0
"""Workload + training + GPU -> tape: runs the real step on pretended device tensors at three batch sizes, or four."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bsmodel.errors import BsmodelError, InvalidInputError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.recording import alignment, checks, loop
from bsmodel.recording.assumed import ALL, CHANCE, EVENLY, Assumed
from bsmodel.recording.leftovers import CachedError
from bsmodel.recording.recordings import Recorded, recording_of
from bsmodel.recording.run import ComplaintError
from bsmodel.recording.values import Values
from bsmodel.tape import Tape
from bsmodel.training import Training, require_arithmetic
from bsmodel.units import format_bytes
from bsmodel.workloads import Workload

Recording = Callable[[Assumed], Recorded]
_MOST_CHECKS = 50
_MOST_QUESTIONS = 6  # each a recording more
_ANOTHER_VALUE = 1_000_003  # for what the step reads and nobody knows: large, odd, and true

_RIGHT = "checks at {} are answered as where nothing is wrong"
_MOST = "what values at {} decide is taken as it takes the most memory"
_NO = "what values at {} decide is taken as they answer with no, and was not tried otherwise"
_WORST = "the upper end has every batch as worst_batch gives it; what sizes that change from step to step leave in fragments is not counted"


def trace(workload: Workload, training: Training | None = None, gpu: Gpu | None = None) -> Tape:
    """Record one training recipe of a workload, as the kernels of `gpu` would run it.

    The step runs for real, without data, at micro-batches 2 and 3: every allocation is then a line in the batch; a third batch checks
    the lines, and one near the largest that could fit whether they hold there. Where samples are paired, three give the polynomial of
    second degree and a fourth checks it. Seconds, no GPU, no weights in memory.

    Raises `UntraceableError` where the step cannot be recorded (it names the operation, module and line), where a size is no such
    polynomial in the batch, where a step keeps more than the one before, or where what happens hangs on a value that is read; `InvalidInputError` where
    the recipe does not suit the model or the GPU (bf16 on a card without it), or the batch function ignores its size.
    """
    training = workload.recipe(training)
    gpu = gpu or Gpu.named("a100-40gb")
    require_arithmetic(training, gpu)
    loop.require_applicable(workload, training)
    recording = partial(recording_of, workload, training, gpu)
    tape, values = _whole_or_shares(recording, workload)
    if CHANCE in values.noted:
        tape, values = _most_by_chance(recording, (tape, values), gpu)
    questions = [line for line in values.asked if line not in values.assumed.answers]
    tape, values, decided = _most_by_answer(recording, (tape, values), questions[:_MOST_QUESTIONS], gpu)
    if EVENLY in values.noted:
        crowded, _ = _healthy(recording, replace(values.assumed, crowded=True))
        tape = replace(tape, worst=crowded)
    notes = assumptions(values)
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


def assumptions(values: Values) -> list[str]:
    """What was assumed of values that nobody knows, and where."""
    return [f"assumed at {', '.join(lines)}: {what}" for what, lines in values.noted.items()]


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
