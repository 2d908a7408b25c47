# SPDX-License-Identifier: Apache-2.0
"""What a learning rate range test saw: the loss as the rate rises, and the two rates that are read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from bsmodel.planning import Endless
from bsmodel.shown import Charted

KEPT = 0.8  # of the average at each step: its weights have a mean age of 4 steps, and 10 steps a decade can still be told apart
EXCESS = 4.0  # times the best smoothed loss: from there on a run has diverged, as in fastai's finder
_LAG = KEPT / (1 - KEPT)  # steps that the average is behind
_SETTLED = round(1 / (1 - KEPT))  # steps after which it is no longer that of a few noisy losses


def averaged(losses: list[float]) -> float:
    """The exponential average at the last of these losses, debiased: `sum(0.8**age * loss) / sum(0.8**age)`."""
    weights = KEPT ** np.arange(len(losses))[::-1]
    return float(np.average(np.array(losses, np.float64), weights=weights))


def excessive(smoothed: list[float]) -> bool:
    """Whether the last of these smoothed losses says that the run has diverged: it is no number, or above four times the best before it.

    Where the best is below zero, three times its size above it, which is the same for those that are not.
    """
    best = min(smoothed[:-1], default=math.inf)
    return not math.isfinite(smoothed[-1]) or (len(smoothed) > 1 and smoothed[-1] > best + (EXCESS - 1) * abs(best))


@dataclass(frozen=True)
class RateRange(Charted):
    """The loss of one run whose learning rate rises exponentially, by a factor from each step to the next (Smith 2015, arXiv 1506.01186).

    `losses` are those of each step before its update, at `batch` samples a step, and `smoothed` their debiased exponential averages of factor 0.8.
    The last step is the one at which the run diverged, or that of the highest rate. `remarks` are what it rests on.
    """

    batch: int
    rates: tuple[float, ...]
    losses: tuple[Endless, ...]
    smoothed: tuple[Endless, ...]
    remarks: tuple[str, ...] = field(default=())

    @property
    def diverged_at(self) -> float | None:
        """The rate at which the smoothed loss is above four times its best, or no number; None where it never is."""
        return self.rates[-1] if excessive(list(self.smoothed)) else None

    @property
    def tenth_of_divergence(self) -> float | None:
        """A tenth of that."""
        return None if self.diverged_at is None else self.diverged_at / 10

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest per decade of the rate, before its minimum; None where it does not fall.

        The first 5 steps do not count: their average is that of a few noisy losses.
        """
        known = [loss if math.isfinite(loss) else math.inf for loss in self.smoothed]
        falling = np.array(known[_SETTLED : int(np.argmin(known)) + 1])
        if len(falling) < 2:
            return None
        slopes = np.gradient(falling, np.log10(self.rates[_SETTLED : _SETTLED + len(falling)]))
        return self.rates[_SETTLED + int(np.argmin(slopes))] if slopes.min() < 0 else None

    @property
    def suggestions(self) -> tuple[str, str]:
        """Both rates, each with what it means and how far that goes."""
        return self._of_steepest(), self._of_divergence()

    @property
    def sentences(self) -> tuple[str, ...]:
        """The suggestions as they are read one after the other."""
        return tuple(f"{line[0].upper()}{line[1:]}." for line in self.suggestions)

    def _of_steepest(self) -> str:
        if self.steepest is None:
            return "steepest fall: none, the smoothed loss does not fall; give lower rates, more steps or data that can be learnt"
        late = (self.rates[1] / self.rates[0]) ** _LAG
        return (
            f"steepest fall: {self.steepest:.2g}, where a higher rate lowered the loss most in these {len(self.rates)} steps. "
            f"Smoothing shows it up to {late:.1f} times too high, and what learns fastest at first need not do so in a long run"
        )

    def _of_divergence(self) -> str:
        if self.tenth_of_divergence is None:
            return f"a tenth of divergence: unknown, the loss does not diverge up to {self.rates[-1]:.2g}; give a higher rate to end with"
        return (
            f"a tenth of divergence: {self.tenth_of_divergence:.2g}, as the smoothed loss is above {EXCESS:g} times its best at {self.diverged_at:.2g}. "
            "It shows late where losses have little noise, so a rate that stays may diverge below that; above a tenth of it many a run trains, too"
        )
