# SPDX-License-Identifier: Apache-2.0
"""`bsmodel.trial`: from a workload and a range of batches to a trial that is run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.memory import Fit
from bsmodel.planning import power_of_two_at_most
from bsmodel.training import Training
from bsmodel.trials.data import Data, of_samples, synthetic
from bsmodel.trials.finding import fitted_on
from bsmodel.trials.ladder import Course, Rate, powers, rungs
from bsmodel.trials.results import Trial
from bsmodel.trials.run import Asked, Watch, run
from bsmodel.trials.training import processes
from bsmodel.trials.values import Rung, Update
from bsmodel.units import finite, whole
from bsmodel.validation import card_here
from bsmodel.workloads import Workload

_VALIDATED = 64  # samples at once, at most
_TRIED = 5  # batches where none are given: the largest that fits in powers of two, and four halvings
_NOTHING_PREDICTED = "there is no CUDA device here: memory and seconds are not predicted for what it ran on"


def trial(
    workload: Workload,
    training: Training | None = None,
    *,
    data: Any = None,
    validation: Any = None,
    batches: tuple[int, int] | None = None,
    effective_batches: tuple[int, int] | None = None,
    steps: int | None = None,
    samples: int | None = None,
    seeds: int = 1,
    base_lr: float | None = None,
    base_batch: int | None = None,
    warmup: int | None = None,
    micro_batch: int | None = None,
    target_loss: float | None = None,
    evaluate_every: int = 10,
    patience: int | None = None,
    split: float = 0.0,
    track: Sequence[str] = (),
    offline: bool = False,
    out: str | Path | None = None,
    watch: Watch | None = None,
) -> Trial:
    """Short real runs of powers of two, on the devices at hand: how the loss falls with each batch, and which is worth having.

    `batches`: from a micro-batch to another, each on every device (default: the largest power of two that is predicted to fit, and four halvings);
    `effective_batches`: samples of an optimizer step, accumulated where they do not fit at once. Each run has `steps` (default 200), or as many as see
    `samples`. The learning rate of each batch follows by the optimizer's rule from `base_lr` at `base_batch` (default: the workload's own), after
    `warmup` steps (default: a tenth). `micro_batch`: at most so many at once, so that a step has several and the noise scale is known.
    `data`: a `Dataset`, sequence, Hugging Face dataset or iterable (default: the workload's own, else its example batches, which teach nothing);
    `validation` the same, or `split` of the data, evaluated every `evaluate_every` steps; after `patience` times without a lower loss a run is over, and
    once it is at `target_loss`. `track`: names of `bsmodel.trials.TRACKERS`. `out`: the folder of the trial, which goes on where it was interrupted.

    Raises `InvalidInputError` for what cannot be run so: a workload with a step of its own, no learning rate, numbers that are none.
    """
    recipe = workload.recipe(training)
    require_trainable(workload, recipe)
    kept = own_samples(workload) if data is None else (data, None)
    given = kept[0], kept[1] if validation is None else validation
    devices, card = processes(), card_here() if torch.cuda.is_available() else None
    fitted = None if card is None else fitted_on(card, workload, recipe, devices)
    sample = data_of(workload, given, 0, split)
    if patience is not None and sample.validation is None:
        raise InvalidInputError("patience waits for a lower loss in validation, and there are no samples to validate with; give validation or a split")
    course = Course(200 if steps is None and samples is None else steps, samples, warmup, sample.length)
    tried, remarks = _batches(batches, effective_batches, fitted, devices, micro_batch)
    ladder = rungs(tried, recipe, _rate(workload, recipe, base_lr, base_batch), course, devices, micro_batch, fitted)
    together = min(_VALIDATED, max(rung.micro_batch for rung in ladder.rungs))  # which fits where it trains, and is the same for all
    asked = Asked(
        workload,
        recipe.model_copy(update={"accumulation": 1}),
        ladder.rungs,
        tuple(range(whole("seeds", seeds))),
        lambda seed: data_of(workload, given, seed, split, together),
        whole("evaluate_every", evaluate_every),
        None if target_loss is None else finite("target loss", target_loss),
        None if patience is None else whole("patience", patience),
        tuple(track),
        offline,
        (*remarks, *ladder.remarks, *(() if fitted else (_NOTHING_PREDICTED,))),
    )
    if out is not None:
        return run(asked, Path(out), watch or in_silence)
    with tempfile.TemporaryDirectory(prefix="bsmodel-trial-") as folder:
        return run(asked, Path(folder), watch or in_silence)


def require_trainable(workload: Workload, training: Training) -> None:
    """Raises `InvalidInputError` for what a trial cannot train: a step of the workload's own, or work that the recipe shares over devices."""
    if workload.step is not None:
        raise InvalidInputError(f"{workload.name} has a step of its own, which a trial cannot split into micro-batches; give it a loss instead")
    if training.ema:
        raise InvalidInputError("a trial keeps no average of the weights; leave ema out of the recipe")
    if training.parallel is not None:
        raise InvalidInputError("a trial shares its work as `accelerate launch` says; leave parallel out of the recipe, and launch it with so many processes")


def _rate(workload: Workload, training: Training, base_lr: float | None, base_batch: int | None) -> Rate:
    """The learning rate that is known to work, and the batch it is for."""
    if base_lr is not None:
        return Rate(finite("base learning rate", base_lr, above=0), 256 if base_batch is None else whole("base batch", base_batch))
    if workload.base_lr is None or training.optimizer_name != workload.training.optimizer_name:
        known = "" if workload.base_lr is None else f" with {training.optimizer_name}"
        raise InvalidInputError(f"no learning rate is known for {workload.name}{known}; give one that works and its batch, or look for one with lr_range")
    return Rate(workload.base_lr, workload.base_batch or 256)


def _batches(
    batches: tuple[int, int] | None, effective: tuple[int, int] | None, fitted: Fit | None, devices: int, micro_batch: int | None
) -> tuple[list[int], tuple[str, ...]]:
    """The batches of an optimizer step to try, and what is to be said of those that are not."""
    if batches is not None and effective is not None:
        raise InvalidInputError("batches and effective_batches are both given; give micro-batches, or samples of an optimizer step")
    if effective is not None:
        return powers(*effective), ()
    if batches is None:
        if fitted is None:
            raise InvalidInputError("batches are not given, and without a CUDA device nothing says what fits; give the smallest and the largest")
        largest = power_of_two_at_most(fitted.batch)
        batches = max(1, largest >> _TRIED - 1), max(1, largest)
    tried = powers(*batches)
    if fitted is None or micro_batch is not None:
        return [batch * devices for batch in tried], ()
    left = [batch for batch in tried if batch > fitted.batch]
    said = f"{', '.join(map(str, left))} left out: {fitted.gpu.id} has room for {fitted.batch} at once; effective batches are accumulated"
    return [batch * devices for batch in tried if batch <= fitted.batch], (said,) if left else ()


def own_samples(workload: Workload) -> tuple[Any, Any]:
    """The workload's own samples, to train on and to validate with."""
    found = None if workload.data is None else workload.data()
    return found if isinstance(found, tuple) and len(found) == 2 else (found, None)


def data_of(workload: Workload, given: tuple[Any, Any], seed: int, split: float = 0.0, validation_batch: int = _VALIDATED) -> Data:
    """The samples that are given, to train on and to validate with, in the order of a seed; without any the workload's own example batches."""
    return synthetic(workload) if given[0] is None else of_samples(given[0], seed, given[1], validation_batch, split)


def in_silence(rung: Rung, seed: int, update: Update) -> None:
    """For callers who do not watch."""
