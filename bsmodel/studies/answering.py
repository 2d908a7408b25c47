# SPDX-License-Identifier: Apache-2.0
"""The work of a study, as functions that any executor can run anywhere: record one family, answer for one card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bsmodel.errors import BsmodelError, InternalError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, fit, footprint, on_devices
from bsmodel.planning import ladder, plan, trains_in_part
from bsmodel.recording import new_tape, recorded, recorded_lengths
from bsmodel.studies.grid import Goal, Recipe
from bsmodel.studies.rows import Recorded, Row, of_fit, of_plan
from bsmodel.tape import Lengths, Tape, require_agreement
from bsmodel.workloads import Source, Workload

Ask = tuple[int, Goal]  # a number of devices, and what is to be reached on them


def record(subject: Source | Workload, changes: Mapping[str, Any], gpu: Gpu, caching: bool | None) -> Tape:
    """The recording of a workload for the kernels of this card, kept where it may be. Every error can be sent to another process."""
    with _can_be_sent():
        return recorded(subject, changes, gpu, caching) if isinstance(subject, Source) else new_tape(subject, changes, gpu)


def record_lengths(source: Source, changes: Mapping[str, Any], gpu: Gpu, span: tuple[int, int], caching: bool | None) -> Lengths:
    """The recordings of a workload from a number of tokens to another, kept where they may be. Every error can be sent to another process."""
    with _can_be_sent():
        return recorded_lengths(source, changes, gpu, span, caching)


@contextlib.contextmanager
def _can_be_sent() -> Iterator[None]:
    """Errors of libraries become such of this one, which another process can read."""
    try:
        yield
    except BsmodelError:
        raise
    except Exception as error:
        raise InternalError.of(error) from None


def answer(label: str, recipe: Recipe, tape: Tape, gpu: Gpu, asks: Sequence[Ask]) -> list[Row]:
    """The rows of one recording on one card: the largest batch once for one device and once for several, then a plan for each ask."""
    known: dict[bool, tuple[dict[str, Any], Fit | BsmodelError]] = {}  # however many there are, each takes the same
    rows = []
    for ask in asks:
        try:
            shared = on_devices(tape, ask[0])
        except BsmodelError as error:
            rows.append(replace(refused(label, recipe, gpu, ask, error), recorded=Recorded.of(tape)))
            continue
        several = ask[0] > 1
        head, found = known[several] = known.get(several) or _largest(recipe, shared, gpu)
        empty = replace(refused(label, recipe, gpu, ask, found if isinstance(found, BsmodelError) else ""), **head)
        rows.append(empty if isinstance(found, BsmodelError) else _row(empty, found, ask[1]))
    return rows


def _largest(recipe: Recipe, tape: Tape, gpu: Gpu) -> tuple[dict[str, Any], Fit | BsmodelError]:
    """The fields that all rows of a tape on a card share, and its largest batch, or why there is none."""
    head: dict[str, Any] = {"recorded": Recorded.of(tape), "closed_form": footprint(tape, gpu=gpu)}
    try:
        require_agreement(tape, dict(recipe.changes))
        found = fit(tape, gpu)
    except BsmodelError as error:
        return head, error
    return {**head, **of_fit(found)}, found


def refused(label: str, recipe: Recipe, gpu: Gpu, ask: Ask, reason: BaseException | str) -> Row:
    """The row of a question that cannot be answered, with the reason in one line."""
    line = (str(reason).strip().splitlines() or [""])[0]
    return Row(label, recipe.document, gpu.id, ask[0], ask[1].target_batch, "refused", line)


def _row(empty: Row, found: Fit, goal: Goal) -> Row:
    if found.batch == 0:
        return replace(empty, status="does not fit", verdict=found.verdict)
    rate, at = _rate(found.tape, goal)
    try:
        made = plan(found, goal.target_batch, empty.devices, goal.samples, goal.epochs, rate, at, goal.offers(found.gpu.id))
    except UnreachableTargetError as error:
        return replace(empty, status="does not fit", verdict=f"does not fit on {found.gpu.id}: {error}")
    except BsmodelError as error:
        return replace(empty, verdict=str(error))
    rungs = tuple(rung.peak for rung in ladder(found)) if goal.ladder else ()
    return replace(empty, status="plan", verdict=found.verdict, ladder=rungs, **of_plan(made))


def _rate(tape: Tape, goal: Goal) -> tuple[float | None, int | None]:
    """The learning rate that is known at some batch: the one that is given, else the published one, where that is for what is trained."""
    if goal.base_lr is not None:
        return goal.base_lr, goal.base_batch
    return (None, None) if trains_in_part(tape) or tape.base_lr is None else (tape.base_lr, tape.base_batch)
