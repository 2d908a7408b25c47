# SPDX-License-Identifier: Apache-2.0
"""Loss curves of several batches, made comparable: smoothed over as many samples, and read at equal samples, at equal seconds, at a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.planning import Endless
from bsmodel.trials.values import Run, Rung, Update

_ROUNDING = 1e-9  # of the steps: less of them is none
Array = NDArray[np.float64]


def smoothed(run: Run, window_samples: int) -> Array:
    """The loss at each step, as the mean over the steps that saw the last `window_samples` samples: as many for every batch, so that noise is alike."""
    losses, wide = np.array([update.loss for update in run.updates]), max(1, round(window_samples / run.rung.batch))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - wide)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def validated(updates: Sequence[Update]) -> list[Update]:
    """The steps at which a run was evaluated."""
    return [update for update in updates if update.validation_loss is not None]


def latest(updates: Sequence[Update], rung: Rung, window_samples: int, validates: bool = False) -> float | None:
    """The loss that counts after the last of these steps: that of validation where the run `validates`, else the smoothed one.

    None at a step that is not evaluated, or before a whole window.
    """
    if validates:
        return updates[-1].validation_loss
    wide = max(1, round(window_samples / rung.batch))
    return None if len(updates) < wide else float(np.mean([update.loss for update in updates[-wide:]]))


def reached(run: Run, target: float, window_samples: int, validates: bool = False) -> Update | None:
    """The first step at which the loss is at the target or below: that of validation where the trial `validates`, else the smoothed one; None where none is.

    A smoothed loss counts once a whole window was seen.
    """
    if validates:
        known = validated(run.updates)
        return next((update for update in known if update.validation_loss is not None and update.validation_loss <= target), None)
    losses, wide = smoothed(run, window_samples), max(1, round(window_samples / run.rung.batch))
    return next((update for update, loss in zip(run.updates[wide - 1 :], losses[wide - 1 :], strict=True) if loss <= target), None)


def loss_at(run: Run, window_samples: int, samples: float | None = None, seconds: float | None = None) -> float | None:
    """The smoothed loss once so many samples were seen, or so many seconds trained; None where the run has not come so far."""
    places = np.array([update.samples if seconds is None else update.seconds for update in run.updates], np.float64)
    wanted = samples if seconds is None else seconds
    if wanted is None or not len(places) or places[-1] < wanted:
        return None
    return float(smoothed(run, window_samples)[np.searchsorted(places, wanted)])


@dataclass(frozen=True)
class StepsLaw:
    """Optimizer steps to a loss as a function of the batch: `fewest_steps + fewest_samples / batch` (McCandlish 2018, equation 2.11).

    An endless batch takes `fewest_steps`, the smallest `fewest_samples` samples; at their ratio, the critical batch, both are twice the fewest.
    `low` and `high` enclose it where there are several seeds: the least and the most of the laws of each.
    """

    fewest_steps: float
    fewest_samples: float
    low: Endless
    high: Endless

    @property
    def critical_batch(self) -> float:
        """In samples; infinite where steps fall as batches grow, however large."""
        return _ratio(self.fewest_samples, self.fewest_steps)

    def steps(self, batch: ArrayLike) -> Array:
        """Steps at one batch or several."""
        return np.asarray(self.fewest_steps + self.fewest_samples / np.asarray(batch, np.float64))

    def samples(self, batch: ArrayLike) -> Array:
        """Samples at one batch or several."""
        return np.asarray(self.fewest_steps * np.asarray(batch, np.float64) + self.fewest_samples)


def steps_law(batches: Sequence[int], steps: Sequence[Sequence[float]]) -> StepsLaw:
    """The law through steps to the target, several seeds a batch: least squares of relative errors in `steps = a + c / batch`, neither below zero.

    A seed has the same place with every batch; with those that it did not get there with, its steps are infinite. A law of its own takes two batches, and
    of laws of seeds only those count that rest on the most. Raises `InvalidInputError` for fewer than two batches.
    """
    there = [(place, batch, each) for batch, counts in zip(batches, steps, strict=True) for place, each in enumerate(counts) if math.isfinite(each)]
    known = {batch for _, batch, _ in there}
    if len(known) < 2:
        raise InvalidInputError(f"the target was reached with {len(known)} of the batches; steps as a function of the batch need two")
    fewest, samples = _line([batch for _, batch, _ in there], [each for _, _, each in there])
    seeds: dict[int, list[tuple[int, float]]] = {}
    for place, batch, each in there:
        seeds.setdefault(place, []).append((batch, each))
    most = max(map(len, seeds.values()))
    lines = [_line([batch for batch, _ in seen], [each for _, each in seen]) for seen in seeds.values() if len(seen) == most > 1]
    critical = [_ratio(samples, fewest) for fewest, samples in lines or [(fewest, samples)]]
    return StepsLaw(fewest, samples, min(critical), max(critical))


def _line(batches: Sequence[int], steps: Sequence[float]) -> tuple[float, float]:
    """`a` and `c` of `steps = a + c / batch`, by relative errors; a negative one is zero, and the other fitted alone."""
    counts = np.array(steps, np.float64)
    basis = np.stack([np.ones(len(counts)), 1 / np.array(batches, np.float64)], axis=1) / counts[:, None]
    found = np.linalg.lstsq(basis, np.ones(len(counts)), rcond=None)[0]
    for kept in (0, 1):
        if found[1 - kept] < 0:
            alone = float(basis[:, kept].sum() / (basis[:, kept] ** 2).sum())
            found = np.array([alone, 0.0] if kept == 0 else [0.0, alone])
    found[found * basis.max(axis=0) < _ROUNDING] = 0
    return float(found[0]), float(found[1])


def _ratio(samples: float, steps: float) -> float:
    return samples / steps if steps > 0 else math.inf
