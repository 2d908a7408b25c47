# SPDX-License-Identifier: Apache-2.0
"""Makes the runs of a validation: predicts here, measures in children, appends a row for each, and goes on where a file stops."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bsmodel
from bsmodel.errors import BsmodelError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, Peak, Settings
from bsmodel.tape import Tape
from bsmodel.timing import step_time
from bsmodel.training import Training
from bsmodel.validation import child, rows
from bsmodel.validation.cases import Case, batch_at, recipe_words
from bsmodel.validation.environment import allocator_settings
from bsmodel.workloads import Workload

SLOWEST_CASE_S = 300.0


@dataclass(frozen=True)
class Bench:
    """What all runs of one command share."""

    out: Path
    gpu: Gpu
    environment: dict[str, Any]
    deadline: float
    python: tuple[str, ...] = ()
    case_seconds: float = SLOWEST_CASE_S
    retry: bool = False
    uuid: str | None = None
    tapes: dict[str, Tape] = field(default_factory=dict)
    waiting: list[Any] = field(default_factory=list)  # the process for the next job, which imports its libraries meanwhile

    @property
    def settings(self) -> Settings:
        """The allocator settings of the runs, which the predictions follow."""
        return Settings.parse(allocator_settings())

    def child(self, job: dict[str, Any]) -> dict[str, Any]:
        """The result of a job; `OutOfBudgetError` where the time of the command ends before the time of a case."""
        remaining = self.deadline - time.monotonic()
        try:
            process = self.waiting.pop() if self.waiting else child.start(self.python)
            self.waiting.append(child.start(self.python))
            return child.finish(process, {**job, "uuid": self.uuid}, max(1.0, min(self.case_seconds, remaining)))
        except child.OutOfTimeError:
            if remaining < self.case_seconds:
                raise OutOfBudgetError from None
            raise

    def close(self) -> None:
        """End the process that waits for a job which will not come."""
        while self.waiting:
            child.stop(self.waiting.pop())


class OutOfBudgetError(Exception):
    """The time of the command is spent; the case it cut off gets no row and is run again next time."""


@dataclass(frozen=True)
class Outcome:
    """How many rows a pass wrote, and how many cases are left for another."""

    written: int
    left: int


Runner = Callable[[Bench, Case], Iterable[rows.Row]]


def run(bench: Bench, kind: str, cases: Sequence[Case], runner: Runner) -> Outcome:
    """Run every case of a kind that the file has no row for until the time is spent. An error of one case is that case's row."""
    known = rows.read(bench.out) if bench.out.exists() else []
    done = {case for case, _ in rows.done(known, kind, bench.retry)}
    waiting = [case for case in cases if case.key not in done]
    say(f"{kind}: {len(cases) - len(waiting)} of {len(cases)} cases are in {bench.out}, {len(waiting)} to run")
    try:
        return _run(bench, kind, waiting, runner)
    finally:
        bench.close()


def _run(bench: Bench, kind: str, waiting: Sequence[Case], runner: Runner) -> Outcome:
    written = 0
    for position, case in enumerate(waiting, 1):
        if time.monotonic() >= bench.deadline:
            return Outcome(written, len(waiting) - position + 1)
        say(f"[{position}/{len(waiting)}] {case.key}")
        try:
            found = list(runner(bench, case))
        except OutOfBudgetError:
            return Outcome(written, len(waiting) - position + 1)
        except (child.ChildFailedError, BsmodelError) as error:
            found = [_row(bench, kind, case, rows.FAILED, reason=str(error))]
        for item in found:
            say("    " + summary(item))
            rows.append(bench.out, item)
            written += 1
    return Outcome(written, 0)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def summary(item: rows.Row) -> str:
    """One line of progress about a row."""
    if item["status"] == rows.FAILED:
        return f"failed: {item['reason']}"
    predicted, measured = item.get("predicted") or {}, item.get("measured") or {}
    if item["kind"] == "step" and not measured["out_of_memory"]:
        pairs = [(name, predicted[f"{name}_bytes"] / measured[f"{name}_bytes"] - 1) for name in ("allocated", "reserved")]
        return ", ".join(f"{name} {error:+.2%}" for name, error in pairs)
    if item["kind"] == "step":
        return f"out of memory; predicted: {'fits' if predicted['fits'] else 'out of memory'}"
    if item["kind"] == "largest":
        return f"predicted {predicted['batch']}, {measured['batch']} survives, {measured['first_failure']} does not"
    if item["kind"] == "accumulation":
        agree = {True: "agree", False: "DIFFER", None: "not compared"}[measured["gradients"]["agree"]]
        return f"{item['micro_batch']} x {item['accumulation']} {'survives' if measured['survives'] else 'runs out of memory'}, gradients {agree}"
    if item["kind"] == "side-by-side":
        error = predicted["predicted_bytes"] / measured["allocated_bytes"] - 1
        return f"{item['rival']}: {error:+.1%}, recommends {predicted['recommended_batch']}, survives: {measured['recommended_survives']}"
    if item["kind"] == "workspaces":
        taken = rows.kinds_taken(item)
        return f"{sum(taken.values())} of {len(taken)} kinds of workspace are taken"
    return ", ".join(f"{name} {value}" for name, value in measured.items())


def _row(bench: Bench, kind: str, case: Case, status: str, **content: Any) -> rows.Row:
    common = {"workload": case.workload, "gpu": case.gpu, "recipe": recipe_words(case.training, case.options), "batch": case.batch}
    return rows.row(kind, case.key, status, **{**common, **content}, environment=bench.environment)


# -- predicting --------------------------------------------------------------------------------------------------------------------------


def tape_of(bench: Bench, case: Case) -> Tape:
    """The recording for a case, shared by all that differ in the batch only."""
    key = f"{case.workload} {recipe_words(case.training, case.options)}"
    if key not in bench.tapes:
        bench.tapes[key] = bsmodel.trace(Workload.named(case.workload, **case.options), case.training, bench.gpu)
    return bench.tapes[key]


def sized(bench: Bench, case: Case) -> tuple[Tape, int]:
    """The recording and the batch of a case; a share is one of the predicted largest batch."""
    tape = tape_of(bench, case)
    if case.batch is not None:
        return tape, case.batch
    assert case.share is not None
    return tape, batch_at(case.share, bsmodel.fit(tape, bench.gpu, settings=bench.settings).batch)


def peak_content(tape: Tape, gpu: Gpu, peak: Peak) -> dict[str, Any]:
    """A prediction as it stands in a row, with the ends of what is not known."""
    names = ("requested", "allocated", "reserved", "reserved_lower", "reserved_upper", "device", "device_lower", "device_upper")
    sizes = {f"{name}_bytes": getattr(peak, f"{name}_bytes") for name in names}
    return {**sizes, "fits": peak.fits, **_step_seconds(tape, gpu, peak.batch)}


def _step_seconds(tape: Tape, gpu: Gpu, batch: int) -> dict[str, float | None]:
    """The predicted step time and its ends; None where the row of the card lacks a rate."""
    names = ("step_seconds", "step_low_seconds", "step_high_seconds")
    try:
        found = step_time(tape, gpu, batch)
    except BsmodelError:
        return dict.fromkeys(names)
    return dict(zip(names, map(float, (found.seconds, found.low_seconds, found.high_seconds)), strict=True))


def job_of(case: Case, **content: Any) -> dict[str, Any]:
    """A case as a child is told of it: only what the recipe changes of the workload's own."""
    own = Workload.named(case.workload, **case.options).training
    changed = {name: getattr(case.training, name) for name in Training.model_fields if getattr(case.training, name) != getattr(own, name)}
    return {"workload": case.workload, "options": case.options, "recipe": changed, "capacity_bytes": case.capacity_bytes, **content}


# -- one case of each kind ---------------------------------------------------------------------------------------------------------------


def step(bench: Bench, case: Case) -> Iterable[rows.Row]:
    """Peaks and step time at one batch, beside what was predicted for them."""
    tape, batch = sized(bench, case)
    predicted = peak_content(tape, bench.gpu, bsmodel.predict(tape, bench.gpu, batch, settings=bench.settings))
    job = job_of(case, do="step", batch=batch)
    try:
        measured = bench.child(job)
    except child.ChildFailedError as error:
        yield _row(bench, "step", case, rows.FAILED, batch=batch, predicted=predicted, reason=str(error))
        return
    yield _row(bench, "step", case, rows.MEASURED, batch=batch, predicted=predicted, measured=measured)


def largest(bench: Bench, case: Case) -> Iterable[rows.Row]:
    """The largest batch by real out-of-memory errors: on the card as it is, or limited to the capacity of the case."""
    from bsmodel.validation.searching import largest_survivor

    gpu = limited(bench.gpu, case.capacity_bytes)
    found: Fit = bsmodel.fit(tape_of(bench, case), gpu, settings=bench.settings)
    verdicts: dict[int, bool] = {}

    def survives(batch: int) -> bool:
        verdicts[batch] = bool(bench.child(job_of(case, do="trial", batch=batch))["survives"])
        say(f"    batch {batch} {'survives' if verdicts[batch] else 'runs out of memory'}")
        return verdicts[batch]

    search = largest_survivor(survives, found.batch)
    measured = {"batch": search.largest, "first_failure": search.first_failure, "trials": search.trials}
    measured["survives"] = found.batch == 0 or verdicts[found.batch]
    predicted = {"batch": found.batch, "likely_batch": found.likely_batch}
    content = {"capacity_bytes": gpu.usable_bytes, "own_capacity": case.capacity_bytes is None, "predicted": predicted, "measured": measured}
    yield _row(bench, "largest", case, rows.MEASURED, batch=found.batch, **content)


def limited(gpu: Gpu, capacity_bytes: int | None) -> Gpu:
    """The same card with `capacity_bytes` for a program; the card itself for None."""
    if capacity_bytes is None:
        return gpu
    return gpu.leaving(context_bytes=gpu.context_bytes).model_copy(update={"memory_bytes": capacity_bytes + gpu.context_bytes})


def accumulation(bench: Bench, case: Case) -> Iterable[rows.Row]:
    """Two optimizer steps of the planned micro-batch x accumulation, and its gradients against those of a full batch.

    The target is the batch of the case, by default twice the largest micro-batch.
    """
    tape = tape_of(bench, case)
    fit = bsmodel.fit(tape, bench.gpu, settings=bench.settings)
    split = bsmodel.plan(fit, target_batch=case.batch or 2 * fit.batch).split
    predicted = bsmodel.predict(tape, bench.gpu, split.micro_batch, split.accumulation, bench.settings)
    accumulating = replace(case, training=case.training.model_copy(update={"accumulation": split.accumulation}))
    measured = bench.child(job_of(accumulating, do="trial", batch=split.micro_batch, steps=2))
    try:
        small = min(2, split.micro_batch)
        measured["gradients"] = bench.child(job_of(case, do="gradients", batch=small, accumulation=min(4, max(2, split.accumulation))))
    except child.ChildFailedError as error:
        measured["gradients"] = {"agree": None, "reason": str(error)}
    content = {"predicted": peak_content(tape, bench.gpu, predicted), "measured": measured, "capacity_bytes": bench.gpu.usable_bytes}
    plan = {"micro_batch": split.micro_batch, "accumulation": split.accumulation}
    yield _row(bench, "accumulation", case, rows.MEASURED, batch=split.effective_batch, **plan, **content)


def side_by_side(bench: Bench, case: Case) -> Iterable[rows.Row]:
    """What bsmodel and every rival say of one case: bytes at the batch, recommended batch, and whether that batch really runs."""
    from bsmodel.validation.rivals import RIVALS

    gpu = limited(bench.gpu, case.capacity_bytes)
    tape, batch = sized(bench, replace(case, capacity_bytes=None))
    found = bench.child({**job_of(case, do="step", batch=batch), "capacity_bytes": None})
    fit = bsmodel.fit(tape, gpu, settings=bench.settings)
    own = {"predicted_bytes": bsmodel.predict(tape, gpu, batch, settings=bench.settings).allocated_bytes, "recommended_batch": fit.batch}
    asked = {"batch": batch, "capacity_bytes": gpu.usable_bytes}
    for name in ("bsmodel", *RIVALS):
        try:
            says = own if name == "bsmodel" else bench.child({**job_of(case, do="rival", rival=name), **asked})
            measured = {**found, **_tried(bench, case, says["recommended_batch"], fit)}
        except child.ChildFailedError as error:
            yield _row(bench, "side-by-side", case, rows.FAILED, rival=name, **asked, reason=str(error))
            continue
        yield _row(bench, "side-by-side", case, rows.MEASURED, rival=name, **asked, predicted=says, measured=measured)


def _tried(bench: Bench, case: Case, batch: int | None, fit: Fit) -> dict[str, Any]:
    """What becomes of a recommended batch; one far beyond what can fit is not run, for it need not be built to fail."""
    if not batch:
        return {"recommended_survives": None, "idle_bytes": None}
    if batch > 2 * max(1, fit.likely_batch):
        return {"recommended_survives": False, "idle_bytes": None, "not_run": f"more than twice {fit.likely_batch}, the largest that is likely to fit"}
    trial = bench.child(job_of(case, do="trial", batch=batch))
    return {"recommended_survives": trial["survives"], "idle_bytes": fit.gpu.usable_bytes - trial["reserved_bytes"] if trial["survives"] else None}
