# SPDX-License-Identifier: Apache-2.0
"""The work of a study, as functions that any executor can run anywhere: record one family, answer for one card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bsmodel.errors import BsmodelError, InternalError, UnreachableTargetError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, fit, footprint
from bsmodel.planning import ladder, plan
from bsmodel.recording import new_tape, recorded
from bsmodel.studies.grid import Goal, Recipe
from bsmodel.studies.rows import Recorded, Row, of_fit, of_plan
from bsmodel.tape import Tape
from bsmodel.workloads import Source, Workload

Ask = tuple[int, Goal]  # a number of devices, and what is to be reached on them


def record(subject: Source | Workload, changes: Mapping[str, Any], gpu: Gpu, caching: bool | None) -> Tape:
    """The recording of a workload for the kernels of this card, kept where it may be. Every error can be sent to another process."""
    try:
        if isinstance(subject, Source):
            return recorded(subject, changes, gpu, caching)
        return new_tape(subject, changes, gpu)
    except BsmodelError:
        raise
    except Exception as error:
        raise InternalError.of(error) from None


def answer(label: str, recipe: Recipe, tape: Tape, gpu: Gpu, asks: Sequence[Ask]) -> list[Row]:
    """The rows of one recording on one card: the largest batch once, then a plan for each number of devices and goal."""
    head: dict[str, Any] = {"recorded": Recorded.of(tape), "closed_form": footprint(tape)}
    try:
        found = fit(tape, gpu)
    except BsmodelError as error:
        return [replace(refused(label, recipe, gpu, ask, error), **head) for ask in asks]
    return [_row(refused(label, recipe, gpu, ask, ""), found, ask[1], {**head, **of_fit(found)}) for ask in asks]


def refused(label: str, recipe: Recipe, gpu: Gpu, ask: Ask, reason: BaseException | str) -> Row:
    """The row of a question that cannot be answered, with the reason in one line."""
    line = (str(reason).strip().splitlines() or [""])[0]
    return Row(label, recipe.document, gpu.id, ask[0], ask[1].target_batch, "refused", line)


def _row(empty: Row, found: Fit, goal: Goal, known: dict[str, Any]) -> Row:
    if found.batch == 0:
        return replace(empty, status="does not fit", verdict=found.verdict, **known)
    tape, price = found.tape, dict(goal.prices).get(found.gpu.id)
    rate, at = (tape.base_lr, goal.base_batch or tape.base_batch) if goal.base_lr is None else (goal.base_lr, goal.base_batch)
    try:
        made = plan(found, goal.target_batch, empty.devices, goal.samples, goal.epochs, rate, at, price)
    except UnreachableTargetError as error:
        return replace(empty, status="does not fit", verdict=f"does not fit on {found.gpu.id}: {error}", **known)
    except BsmodelError as error:
        return replace(empty, verdict=str(error), **known)
    rungs = tuple(rung.peak for rung in ladder(found)) if goal.ladder else ()
    return replace(empty, status="plan", verdict=found.verdict, ladder=rungs, **known, **of_plan(made))
