# SPDX-License-Identifier: Apache-2.0
"""What a trial tries and what it saw: rungs of the ladder, optimizer steps, runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.planning import NoiseScale, noise_scale
from bsmodel.training import Training

Status = Literal["finished", "reached", "stopped", "diverged", "out of memory"]
_WARM = 1  # steps that are not timed: the first makes the optimizer's state, and loads kernels


@dataclass(frozen=True)
class Rung:
    """One batch that is tried: `batch` samples an optimizer step, `micro_batch x accumulation x devices`.

    `steps` at most are made, the learning rate rising over the first `warmup`.
    Predicted bytes and seconds are those of the card it runs on, None where it runs on none that can be predicted.
    """

    batch: int
    micro_batch: int
    accumulation: int
    devices: int
    learning_rate: float
    steps: int
    warmup: int = 0
    predicted_allocated_bytes: int | None = None
    predicted_reserved_bytes: int | None = None
    predicted_step_seconds: float | None = None


@dataclass(frozen=True)
class Update:
    """One optimizer step: `samples` and `seconds` are those of the run up to and with it, without what loading and evaluating took.

    `loss` is the mean over its samples before the step, and squares are those of gradients' norms: the mean of the micro-batches' and that of their mean,
    before clipping.
    """

    step: int
    samples: int
    seconds: float
    loss: float
    learning_rate: float
    micro_square: float | None = None
    accumulated_square: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class Run:
    """A rung with one seed: `status` says why it ended, and peaks are what `torch.cuda` counted in this `environment`, None elsewhere."""

    rung: Rung
    seed: int
    status: Status
    updates: tuple[Update, ...]
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    environment: Mapping[str, Any] | None = None

    @property
    def step_seconds(self) -> float | None:
        """The median of its optimizer steps but the first; None of fewer than two."""
        took = np.diff([update.seconds for update in self.updates])[_WARM - 1 :]
        return float(np.median(took)) if len(took) else None

    def noise_scale(self, first: float = 0.0, last: float = 1.0) -> NoiseScale:
        """The gradient noise scale from this share of its steps to that one; raises `InvalidInputError` where they have no micro-batches to compare."""
        return noise_of([self], first, last)


def noise_of(runs: list[Run], first: float = 0.0, last: float = 1.0) -> NoiseScale:
    """The noise scale of several runs of one rung, each from one share of its steps to another.

    Across devices a micro-batch is that of one device, and their mean that of all. Raises `InvalidInputError` for a step of one micro-batch.
    """
    rung = runs[0].rung
    small, large = rung.micro_batch, rung.batch
    if small == large:
        raise InvalidInputError(
            f"a step of {large} is one micro-batch: the noise scale compares several with their mean; give --micro-batch {max(1, large // 2)} or less"
        )
    chosen = [update for run in runs for update in run.updates[round(first * len(run.updates)) : round(last * len(run.updates))]]
    squares = [
        (update.micro_square, update.accumulated_square) for update in chosen if update.micro_square is not None and update.accumulated_square is not None
    ]
    means: NDArray[np.float64] = np.array(squares, np.float64).reshape(-1, 2)
    return noise_scale(means[:, 0], means[:, 1], small, large // small)


Watch = Callable[[Rung, int, Update], None]  # what is called after every optimizer step: its rung, its seed, and the step


def recipe_of(training: Training) -> dict[str, Any]:
    """The fields of a recipe as JSON has them, its optimizer by name."""
    return {**training.model_dump(mode="json", exclude={"optimizer"}), "optimizer": training.optimizer_name}
