# SPDX-License-Identifier: Apache-2.0
"""`bsmodel.lr_range`: one short real run whose learning rate rises until it diverges."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.training import Training
from bsmodel.trials.asking import data_of, own_samples, require_trainable
from bsmodel.trials.data import Data
from bsmodel.trials.finding import fitted_on
from bsmodel.trials.ladder import Course, Ladder, Rate, rungs
from bsmodel.trials.rates import RateRange, averaged, excessive
from bsmodel.trials.run import settings_of
from bsmodel.trials.training import accelerator, apart, processes, updates
from bsmodel.trials.values import Rung
from bsmodel.units import finite, whole
from bsmodel.validation import card_here, is_out_of_memory
from bsmodel.workloads import Workload

_LEAST_STEPS = 10


def lr_range(
    workload: Workload,
    training: Training | None = None,
    *,
    data: Any = None,
    batch: int,
    micro_batch: int | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    seed: int = 0,
) -> RateRange:
    """Trains once while the learning rate rises from `low` to `high`, and stops once it has diverged (Smith 2015, arXiv 1506.01186).

    The rate of step i of n is `low * (high / low) ** ((i - 1) / (n - 1))`, that of the first group of parameters. `batch`: samples of an optimizer step,
    split as the rungs of a trial are, into micro-batches of at most `micro_batch`. `data`: as in a trial (default: the workload's own, else its example
    batches). Weights and the order of samples depend on `seed` alone.

    Raises `InvalidInputError` for rates that do not rise, fewer than 10 steps, a loss that is no number before the first of them, a batch that runs out of
    memory, and what a trial cannot run.
    """
    recipe = workload.recipe(training)
    require_trainable(workload, recipe)
    low, high, steps = finite("lowest learning rate", low, above=0), finite("highest learning rate", high), whole("steps", steps, least=_LEAST_STEPS)
    if low >= high:
        raise InvalidInputError(f"learning rates are {low:g}:{high:g}; expected the lower one first")
    samples = data_of(workload, own_samples(workload) if data is None else (data, None), whole("seed", seed, least=0))
    batch = whole("batch", batch)
    ladder = _ladder(workload, recipe, batch, micro_batch, Rate(low, batch), steps)
    factor = (high / low) ** (1 / (steps - 1))
    with apart():
        found = _run(workload, recipe.model_copy(update={"accumulation": 1}), ladder.rungs[0], seed, samples, factor)
    return replace(found, remarks=(*ladder.remarks, *samples.remarks))


def _ladder(workload: Workload, training: Training, batch: int, micro_batch: int | None, rate: Rate, steps: int) -> Ladder:
    """The one rung, split by what is predicted to fit here."""
    devices = processes()
    fitted = fitted_on(card_here(), workload, training, devices) if torch.cuda.is_available() else None
    return rungs([batch], training, rate, Course(steps, warmup=0), devices, micro_batch, fitted)


def _run(workload: Workload, training: Training, rung: Rung, seed: int, data: Data, factor: float) -> RateRange:
    """The run up to the step at which it has diverged, or the last."""
    rates, losses, smoothed = list[float](), list[float](), list[float]()
    accelerated = accelerator(training, [])

    def rate_at(rung: Rung, step: int) -> float:
        return rung.learning_rate * factor ** (step - 1)

    try:
        with settings_of(training):
            for update in updates(accelerated, workload, training, rung, seed, data, rate_at=rate_at):
                rates.append(update.learning_rate)
                losses.append(update.loss)
                smoothed.append(averaged(losses))
                if not math.isfinite(losses[0]):
                    raise InvalidInputError(f"the loss of {workload.name} is {losses[0]} before its first update; no learning rate can mend that")
                if excessive(smoothed):
                    break
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InvalidInputError(f"a micro-batch of {rung.micro_batch} runs out of memory here; give a smaller micro_batch than that") from None
    finally:
        accelerated.free_memory()
    return RateRange(rung.batch, tuple(rates), tuple(losses), tuple(smoothed))
