# SPDX-License-Identifier: Apache-2.0
"""What a page says of a trial in words and tables, as plain text: what was asked, what came of it, and a line for each batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsmodel.pages import Column, Table, number
from bsmodel.training import Training
from bsmodel.trials.drawn import BY_MONEY, interval, spread, way
from bsmodel.trials.rates import RateRange
from bsmodel.trials.results import NEARLY, Recommendation, Trial, TrialRow
from bsmodel.trials.values import recipe_of
from bsmodel.units import GiB

_SAID = {"schema_version", "workload", "recipe", "data", "rungs", "seeds", "evaluate_every", "target_loss", "patience", "remarks"}
_MS = 1e-3


def facts(trial: Trial) -> list[tuple[str, str]]:
    """What was asked, each with its name."""
    question, rungs = trial.question, list(trial.by_rung)
    devices = sorted({rung.devices for rung in rungs})
    seeds = question.get("seeds", ())
    asked = len(question.get("rungs", rungs)) * len(seeds or {run.seed for run in trial.runs})
    found = [
        ("Workload", str(question.get("workload", "–"))),
        ("Recipe", recipe(question.get("recipe", {}))),
        ("Data", str(question.get("data", "–"))),
        ("Devices", ", ".join(map(str, devices)) or "–"),
        ("Batches", ", ".join(f"{rung.batch:,}" for rung in rungs) or "–"),
        ("Seeds", ", ".join(map(str, seeds)) or "–"),
        ("Runs", f"{len(trial.runs)} of {asked} are over" if len(trial.runs) < asked else f"{len(trial.runs)}, all over"),
        ("Target loss", "none" if trial.target_loss is None else number(trial.target_loss)),
    ]
    if every := question.get("evaluate_every"):
        patience = question.get("patience")
        found.append(("Validation", f"every {every} steps" + (f", over after {patience} times without a lower loss" if patience else "")))
    found += [(name.replace("_", " ").capitalize(), str(value)) for name, value in question.items() if name not in _SAID and value is not None]
    return found


def recipe(given: Any) -> str:
    """Optimizer, precision, and what is not as it is by default."""
    usual = Training().model_dump(mode="json", exclude={"optimizer"})
    named = [str(given[name]) for name in ("optimizer", "precision") if name in given]
    others = [f"{name} {value}" for name, value in given.items() if name not in ("optimizer", "precision") and value != usual.get(name)]
    return ", ".join([*named, *others]) or "–"


def findings(trial: Trial, recommended: Sequence[Recommendation]) -> list[str]:
    """What came of it, one sentence each."""
    found = [f"Recommended batch: {each.batch:,}, by {each.by}." for each in recommended]
    if found:
        found.append(f"That is the smallest that takes at most {NEARLY - 1:.0%} more than the least time, or money.")
    else:
        found.append("No batch is recommended: the target was not reached with two batches, and no noise scale is known.")
    if recommended and trial.law is None:
        found.append("Steps are those that the noise scale tells, in units of the fewest: the target was not reached with two batches, or there is none.")
    if trial.target_loss is not None:
        there = [f"{row.rung.batch:,} ({row.seeds_at_target} of {len(row.seeds)} seeds)" for row in trial.rows if row.seeds_at_target]
        found.append(f"The target loss {number(trial.target_loss)} was reached with {', '.join(there)}." if there else "No batch reached the target loss.")
    if trial.law is not None:
        low, high = trial.law.low, trial.law.high
        between = f" (laws of single seeds: {number(low)} to {number(high)})" if low < high else ""
        endless = ": steps fell as batches grew, however large" if math.isinf(trial.law.critical_batch) else ""
        found.append(f"Critical batch by steps to the target: {number(trial.law.critical_batch)} samples{between}{endless}.")
    if (noise := trial.noise_scale) is not None:
        found.append(f"Gradient noise scale: {interval(noise)} samples, the interval at 95%, from {noise.steps:,} steps of the batch with most micro-batches.")
    if out := [f"{row.rung.batch:,}" for row in trial.rows if "out of memory" in row.status]:
        found.append(f"Out of memory with batch {', '.join(out)}.")
    if broken := [f"{row.rung.batch:,}" for row in trial.rows if "diverged" in row.status]:
        found.append(f"The loss diverged with batch {', '.join(broken)}.")
    return found


def of_batches(trial: Trial) -> Table:
    """A line for each batch; columns of which nothing is known are left out."""
    rows = trial.rows
    made = {rung.batch: [len(run.updates) for run in runs] for rung, runs in trial.by_rung.items()}
    columns: list[tuple[str, Callable[[TrialRow], str]]] = [
        ("Learning rate", lambda row: number(row.rung.learning_rate)),
        ("Steps made", lambda row: _steps(made[row.rung.batch], row.rung.steps)),
        (f"Loss after {number(trial.equal_samples)} samples", lambda row: spread(row.loss_at_samples)),
        (f"Loss after {number(trial.equal_seconds)}\u00a0s", lambda row: spread(row.loss_at_seconds)),
        ("Loss at the end", lambda row: spread(row.final_loss)),
        ("Validation loss", lambda row: spread(row.validation_loss)),
        ("Steps to target", lambda row: spread(row.steps_to_target)),
        ("Samples to target", lambda row: spread(row.samples_to_target)),
        ("Seconds to target [s]", lambda row: spread(row.seconds_to_target)),
        ("Seeds at target", lambda row: f"{row.seeds_at_target} of {len(row.seeds)}" if trial.target_loss is not None else "–"),
        ("Step, measured [ms]", lambda row: number(row.step_seconds and row.step_seconds / _MS)),
        ("Step, predicted [ms]", lambda row: _ratio(row.rung.predicted_step_seconds, row.step_seconds, _MS)),
        ("Samples a second", lambda row: number(row.samples_per_s)),
        ("Allocated, measured [GiB]", lambda row: number(row.allocated_bytes and row.allocated_bytes / GiB)),
        ("Allocated, predicted [GiB]", lambda row: _ratio(row.rung.predicted_allocated_bytes, row.allocated_bytes, GiB)),
        ("Reserved, measured [GiB]", lambda row: number(row.reserved_bytes and row.reserved_bytes / GiB)),
        ("Reserved, predicted [GiB]", lambda row: _ratio(row.rung.predicted_reserved_bytes, row.reserved_bytes, GiB)),
        ("Noise scale [samples], 95%", lambda row: interval(row.noise_scale)),
    ]
    told = [Column(heading, tuple(map(cell, rows))) for heading, cell in columns]
    fixed = (Column("Batch", tuple(f"{row.rung.batch:,}" for row in rows)), Column("Split", tuple(map(_split, rows)), right=False))
    ended = Column("Ended", tuple(row.status for row in rows), right=False)
    caption = "A line for each batch: means over seeds, the least and the most of them in brackets; split is micro-batch × accumulation × devices."
    return Table("batches", caption, (*fixed, ended, *(column for column in told if set(column.cells) != {"–"})), tuple(row.rung.batch for row in rows))


def of_costs(trial: Trial, found: Sequence[Recommendation]) -> Table:
    """What each batch takes to the target, in each way of telling it."""
    batches = tuple(dict.fromkeys(choice.batch for each in found for choice in each.choices))
    columns = [Column("Batch", tuple(f"{batch:,}" for batch in batches))]
    for each in found:
        known, money = {choice.batch: choice for choice in each.choices}, each.by.startswith(BY_MONEY)
        seconds = {batch: choice.seconds for batch, choice in known.items()}
        columns.append(Column(f"{way(each)} [s]", _marked(batches, seconds, None if money else each.batch)))
        if any(choice.usd is not None for choice in each.choices):
            usd = {batch: choice.usd for batch, choice in known.items()}
            columns.append(Column(f"{way(each)} [$]", _marked(batches, usd, each.batch if money else None)))
    of = "to the target" if trial.law is not None else "for each of the fewest steps"
    return Table(
        "costs", f"Seconds and US dollars {of}, with each batch and by each way of telling the seconds of a step; ★ is recommended.", tuple(columns), batches
    )


def facts_of_rates(name: str, training: Training, found: RateRange) -> list[tuple[str, str]]:
    """What a learning rate range test was asked, each with its name."""
    rates = f"{number(found.rates[0])} to {number(found.rates[-1])}"
    return [
        ("Workload", name),
        ("Recipe", recipe(recipe_of(training))),
        ("Batch", f"{found.batch:,}"),
        ("Steps", f"{len(found.rates):,}"),
        ("Learning rates", rates),
    ]


def of_rates(found: RateRange) -> Table:
    """A line for each step of a learning rate range test."""
    columns = (("Learning rate", found.rates), ("Loss", found.losses), ("Smoothed loss", found.smoothed))
    steps = Column("Step", tuple(f"{place:,}" for place, _ in enumerate(found.rates, start=1)))
    return Table("rates", "A line for each step.", (steps, *(Column(heading, tuple(map(number, values))) for heading, values in columns)))


def _marked(batches: Sequence[int], known: Mapping[int, float | None], chosen: int | None) -> tuple[str, ...]:
    return tuple(number(known.get(batch)) + (" ★" if batch == chosen else "") for batch in batches)


def _split(row: TrialRow) -> str:
    return "\u00a0×\u00a0".join(f"{each:,}" for each in (row.rung.micro_batch, row.rung.accumulation, row.rung.devices))


def _steps(made: Sequence[int], asked: int) -> str:
    least, most = min(made), max(made)
    return f"{least:,} of {asked:,}" if least == most else f"{least:,} to {most:,} of {asked:,}"


def _ratio(predicted: float | None, measured: float | None, unit: float) -> str:
    """A prediction, and how far it is off where it was measured."""
    if predicted is None:
        return "–"
    return number(predicted / unit) + (f" ({predicted / measured - 1:+.1%})" if measured else "")
