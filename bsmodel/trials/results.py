# SPDX-License-Identifier: Apache-2.0
"""What a trial found: a row for each batch, the noise scale, steps as a function of the batch, and the batch that is worth having."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bsmodel.errors import InvalidInputError, UnreachableTargetError
from bsmodel.memory import Fit
from bsmodel.planning import NoiseScale, Plan, Timing, plan
from bsmodel.prices import Price
from bsmodel.shown import Charted
from bsmodel.trials import folder as files
from bsmodel.trials.curves import StepsLaw, loss_at, reached, steps_law, validated
from bsmodel.trials.values import Run, Rung, Status, Update, noise_of

NEARLY = 1.1  # of the least time or money
FAILED: tuple[Status, ...] = ("diverged", "out of memory")


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, with the least and the most."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread | None:
        """Of those that are known and numbers, which losses of runs that diverged are not; None where none is."""
        known = [float(value) for value in values if value is not None and math.isfinite(value)]
        return Spread(float(np.mean(known)), min(known), max(known)) if known else None


@dataclass(frozen=True)
class TrialRow:
    """One batch over all its seeds: what was predicted, what was measured, and how the loss fell.

    Losses are smoothed over as many samples for every batch; `loss_at_samples` is where the run with the fewest samples ended, and `loss_at_seconds` where
    the quickest did, of those that neither diverged nor ran out of memory. Steps, samples and seconds to the target are None where no seed reached it.
    """

    rung: Rung
    seeds: tuple[int, ...]
    status: str
    loss_at_samples: Spread | None
    loss_at_seconds: Spread | None
    final_loss: Spread | None
    validation_loss: Spread | None
    steps_to_target: Spread | None
    samples_to_target: Spread | None
    seconds_to_target: Spread | None
    seeds_at_target: int
    step_seconds: float | None
    samples_per_s: float | None
    allocated_bytes: int | None
    reserved_bytes: int | None
    noise_scale: NoiseScale | None


@dataclass(frozen=True)
class Choice:
    """What a batch costs to the target: its optimizer steps and their seconds, and US dollars where there is a price."""

    batch: int
    steps: float
    seconds: float
    usd: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """The smallest batch that takes at most a tenth more than the least time, or money where there is a price, and what all that were tried take.

    Without a target, steps are in units of the fewest, those of an endless batch, and so are seconds and dollars. For another card, `gpu` is its id and
    `price` what it costs there, or `unpriced` why nothing on offer holds its devices.
    """

    batch: int
    by: str
    choices: tuple[Choice, ...]
    gpu: str | None = None
    price: Price | None = None
    unpriced: str = ""


@dataclass(frozen=True)
class Trial(Charted):
    """Short runs of several batches: `question` is what was asked, `runs` what came of it."""

    question: Mapping[str, Any]
    runs: tuple[Run, ...]

    @staticmethod
    def load(folder: str | Path) -> Trial:
        """The trial in a folder, as far as it has come; raises `InvalidInputError` where there is none."""
        return Trial(files.question_in(Path(folder)), tuple(files.runs(Path(folder))))

    @property
    def target_loss(self) -> float | None:
        """The loss that is to be reached."""
        target: float | None = self.question.get("target_loss")
        return target

    @cached_property
    def validates(self) -> bool:
        """Whether losses of validation decide: those of training are never held against them, also where a run broke off before its first validation."""
        return any(validated(run.updates) for run in self.runs)

    def reached(self, run: Run) -> Update | None:
        """The step at which a run was at the target; None where it never was, or there is none."""
        return None if self.target_loss is None else reached(run, self.target_loss, self.window_samples, self.validates)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What it rests on."""
        return tuple(self.question.get("remarks", ()))

    @cached_property
    def by_rung(self) -> dict[Rung, list[Run]]:
        """The runs of each batch, the smallest first."""
        found: dict[Rung, list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: (run.rung.batch, run.seed)):
            found.setdefault(run.rung, []).append(run)
        return found

    @property
    def window_samples(self) -> int:
        """Over how many samples losses are smoothed: those of the largest batch that is asked for."""
        return max(rung["batch"] for rung in self.question["rungs"])

    @property
    def equal_samples(self) -> int | None:
        """How many samples every run has seen that did not fail: where losses are compared."""
        return min((run.updates[-1].samples for run in self._compared), default=None)

    @property
    def equal_seconds(self) -> float | None:
        """How long every run has trained that did not fail."""
        return min((run.updates[-1].seconds for run in self._compared), default=None)

    @property
    def _compared(self) -> list[Run]:
        return [run for run in self.runs if run.updates and run.status not in FAILED]

    @cached_property
    def rows(self) -> tuple[TrialRow, ...]:
        """One for each batch."""
        return tuple(self._row(rung, runs) for rung, runs in self.by_rung.items())

    def _row(self, rung: Rung, runs: Sequence[Run]) -> TrialRow:
        window, samples, seconds = self.window_samples, self.equal_samples, self.equal_seconds
        there = [update for run in runs if (update := self.reached(run)) is not None]
        evaluated = [updates[-1] for run in runs if (updates := validated(run.updates))]
        step_seconds = _median(run.step_seconds for run in runs)
        return TrialRow(
            rung=rung,
            seeds=tuple(run.seed for run in runs),
            status=", ".join(sorted({run.status for run in runs})),
            loss_at_samples=Spread.of(loss_at(run, window, samples=samples) for run in runs),
            loss_at_seconds=Spread.of(loss_at(run, window, seconds=seconds) for run in runs),
            final_loss=Spread.of(loss_at(run, window, samples=run.updates[-1].samples) for run in runs if run.updates),
            validation_loss=Spread.of(update.validation_loss for update in evaluated),
            steps_to_target=Spread.of(update.step for update in there),
            samples_to_target=Spread.of(update.samples for update in there),
            seconds_to_target=Spread.of(update.seconds for update in there),
            seeds_at_target=len(there),
            step_seconds=step_seconds,
            samples_per_s=rung.batch / step_seconds if step_seconds else None,
            allocated_bytes=_most(run.allocated_bytes for run in runs),
            reserved_bytes=_most(run.reserved_bytes for run in runs),
            noise_scale=_noise(runs),
        )

    @cached_property
    def noise_scale(self) -> NoiseScale | None:
        """The noise scale of the batch whose steps have the most micro-batches, over all its seeds; None where every step is one micro-batch."""
        known = [(rung.batch // rung.micro_batch, noise) for rung, runs in self.by_rung.items() if (noise := _noise(runs)) is not None]
        return max(known, key=lambda each: each[0])[1] if known else None

    @cached_property
    def law(self) -> StepsLaw | None:
        """Steps to the target as a function of the batch; None where fewer than two batches reached it."""
        seeds = sorted({run.seed for run in self.runs})
        steps = {rung.batch: dict.fromkeys(seeds, math.inf) for rung in self.by_rung}
        for run in self.runs:
            if (update := self.reached(run)) is not None:
                steps[run.rung.batch][run.seed] = update.step
        try:
            return steps_law(list(steps), [list(counts.values()) for counts in steps.values()])
        except InvalidInputError:
            return None

    @cached_property
    def recommended(self) -> Recommendation | None:
        """For the device that it ran on, by measured seconds a step; None where neither two batches reached the target nor a noise scale is known."""
        return self._recommended({row.rung.batch: (row.step_seconds, None) for row in self.rows if row.step_seconds}, "measured seconds a step")

    def recommended_on(self, fit: Fit, devices: int = 1, price: Price | Sequence[Price] | None = None) -> Recommendation | None:
        """For another card, by predicted seconds a step at the batches that were tried, and by money where there is a price (default: the catalogue's).

        Raises `InvalidInputError` where no time can be predicted on it.
        """
        found, reasons = dict[int, Timing](), ["no batch was tried yet"]
        for rung in self.by_rung:
            try:
                found[rung.batch] = _timing(plan(fit, rung.batch, devices, price=price))
            except (InvalidInputError, UnreachableTargetError) as error:  # larger ones may be split
                reasons.append(str(error))
        if not found:
            raise InvalidInputError(reasons[-1])
        steps = {batch: (timing.step.seconds, _usd(timing)) for batch, timing in found.items()}
        made = self._recommended(steps, f"seconds a step predicted for {fit.gpu.id}")
        return made and replace(made, gpu=fit.gpu.id, price=found[made.batch].price, unpriced=found[made.batch].unpriced)

    def _recommended(self, seconds: Mapping[int, tuple[float | None, float | None]], by: str) -> Recommendation | None:
        steps = {row.rung.batch: count for row in self.rows if (count := self._steps(row)) is not None}
        choices = [
            Choice(batch, steps[batch], steps[batch] * each, None if usd is None else steps[batch] * usd)
            for batch, (each, usd) in sorted(seconds.items())
            if each is not None and batch in steps
        ]
        if not choices:
            return None
        priced = all(choice.usd is not None for choice in choices)
        costs = [choice.usd if priced and choice.usd is not None else choice.seconds for choice in choices]
        batch = next(choice.batch for choice, cost in zip(choices, costs, strict=True) if cost <= NEARLY * min(costs))
        return Recommendation(batch, f"money, {by}" if priced else by, tuple(choices))

    def _steps(self, row: TrialRow) -> float | None:
        """What a batch takes to the target; None where nothing tells, or where the batch is none to recommend.

        That is one with a run that failed, or one of which no seed reached the target although it made the steps of the law, or stopped for good.
        """
        batch, runs = row.rung.batch, self.by_rung[row.rung]
        if any(run.status in FAILED for run in runs):
            return None
        if self.law is None:
            noise = self.noise_scale
            return None if noise is None or math.isinf(noise.samples) else noise.steps_at(batch)
        steps = float(self.law.steps(batch))
        given_up = any(run.status == "stopped" or len(run.updates) >= steps for run in runs)
        return None if given_up and not row.seeds_at_target else steps


def _timing(made: Plan) -> Timing:
    """The times of a plan; raises `InvalidInputError` where the batch is not hit, or no time is known."""
    if made.timing is None or not made.exact:
        raise InvalidInputError(made.untimed or f"batch {made.target_batch} cannot be split over {made.split.devices} devices of {made.fit.gpu.id}")
    return made.timing


def _usd(timing: Timing) -> float | None:
    """What an optimizer step costs."""
    return None if timing.price is None else timing.step.seconds / 3600 * timing.price.usd_per_hour * timing.rented


def _noise(runs: Sequence[Run]) -> NoiseScale | None:
    try:
        return noise_of(list(runs))
    except InvalidInputError:  # steps of one micro-batch, or too few of them
        return None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
