# SPDX-License-Identifier: Apache-2.0
"""`bsmodel.trial`: from a workload and a range of batches to a trial that is run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.memory import Fit
from bsmodel.planning import power_of_two_at_most
from bsmodel.training import Training
from bsmodel.trials.data import Data, of_samples, synthetic
from bsmodel.trials.finding import fitted_on
from bsmodel.trials.ladder import Course, Rate, powers, rungs
from bsmodel.trials.results import Trial
from bsmodel.trials.run import Asked, run
from bsmodel.trials.trackers import require_known
from bsmodel.trials.training import processes
from bsmodel.trials.values import Rung, Update, Watch
from bsmodel.units import finite, whole
from bsmodel.validation import card_here
from bsmodel.workloads import Workload

_VALIDATED = 64  # samples at once, at most
_STEPS = 200  # of each run, where nothing is asked: the 100 to 200 of a short run
_EVERY = 10  # steps between two validations
_OF_VALIDATION = {"patience": "waits for a lower loss in validation", "evaluate_every": "is the steps between two validations"}
_TRIED = 5  # batches where none are given: the largest that fits in powers of two, and four halvings
_NOTHING_PREDICTED = "there is no CUDA device here: memory and seconds are not predicted for what it ran on"


@dataclass(frozen=True)
class Options:
    """How a trial is run: which batches, for how long, and what is written of it."""

    batches: tuple[int, int] | None = None
    """From a micro-batch to another, in powers of two, each on every device; by default the largest that is predicted to fit, and four halvings."""
    effective_batches: tuple[int, int] | None = None
    """The same in samples of an optimizer step, accumulated where they do not fit at once."""
    micro_batch: int | None = None
    """At most so many samples at once, so that a step has several micro-batches and the noise scale is known; by default as many as fit."""
    steps: int | None = None
    """Optimizer steps of each run, 200 unless samples are given."""
    samples: int | None = None
    """Samples that each run sees, instead of steps: larger batches make fewer updates."""
    seeds: int = 1
    """Runs of each batch: seeds decide weights and the order of samples."""
    base_lr: float | None = None
    """A learning rate that works, from which that of each batch follows by the optimizer's rule; by default the workload's own."""
    base_batch: int | None = None
    """The batch that it works at, 256 unless said."""
    warmup: int | None = None
    """Steps in which the rate rises; by default those of five epochs, and at most a tenth of the run."""
    target_loss: float | None = None
    """A run is over once its loss is there: that of validation, or the training loss smoothed over as many samples for every batch."""
    split: float = 0.0
    """Share of the data that is kept for validation."""
    evaluate_every: int | None = None
    """Steps between two validations, 10 unless said."""
    patience: int | None = None
    """So many validations without a lower loss end a run."""
    track: Sequence[str] = ()
    """Names of `bsmodel.trials.TRACKERS`; JSON lines are always written."""
    offline: bool = False
    """Whether trackers send nothing; mlflow and comet are refused then, which cannot be told so."""

    @staticmethod
    def of(**given: Any) -> Options:
        """Those that are given; raises `UnknownNameError` for one that is none, `InvalidInputError` for a number that is none."""
        known = [field.name for field in fields(Options)]
        for name in given:
            if name not in known:
                raise UnknownNameError("option of a trial", name, known)
        return Options(**given)

    def __post_init__(self) -> None:
        for name in ("seeds", "evaluate_every", "patience"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name)))
        if self.target_loss is not None:
            object.__setattr__(self, "target_loss", finite("target loss", self.target_loss))
        require_known(self.track, self.offline)
        if self.base_batch is not None and self.base_lr is None:
            raise InvalidInputError("base_batch is given without base_lr, and says nothing alone; give both")
        if self.batches is not None and self.effective_batches is not None:
            raise InvalidInputError("batches and effective_batches are both given; give micro-batches, or samples of an optimizer step")


def trial(
    workload: Workload,
    training: Training | None = None,
    *,
    data: Any = None,
    validation: Any = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Trial:
    """Short real runs of powers of two, on the devices at hand: how the loss falls with each batch, and which is worth having.

    `data`: samples to train on, a `Dataset`, sequence, Hugging Face dataset or iterable that can be gone through again (default: the workload's own, else its
    example batches, which teach nothing); `validation` the same. `out`: the folder of the trial, which goes on where it was interrupted (default: a
    temporary one). `watch` is called after every optimizer step. Other arguments are the fields of `bsmodel.trials.Options`.

    Raises `InvalidInputError` for what cannot be run so: a workload with a step of its own, no learning rate, numbers that are none.
    """
    recipe, given = workload.recipe(training), Options.of(**options)
    require_trainable(workload, recipe)
    kept = own_samples(workload) if data is None else (data, None)
    asked = _asked(workload, recipe, (kept[0], kept[1] if validation is None else validation), given)
    if out is not None:
        return run(asked, Path(out), watch or in_silence)
    with tempfile.TemporaryDirectory(prefix="bsmodel-trial-") as folder:
        return run(asked, Path(folder), watch or in_silence)


def _asked(workload: Workload, recipe: Training, given: tuple[Any, Any], options: Options) -> Asked:
    """The rungs on the devices at hand, and how each is run."""
    devices, card = processes(), card_here() if torch.cuda.is_available() else None
    fitted = None if card is None else fitted_on(card, workload, recipe, devices)
    sample = data_of(workload, given, 0, options.split)
    for name, what in _OF_VALIDATION.items():
        if getattr(options, name) is not None and sample.validation is None:
            raise InvalidInputError(f"{name} {what}, and there are no samples to validate with; give validation or a split")
    steps = _STEPS if options.steps is None and options.samples is None else options.steps
    tried, remarks = _batches(options, fitted, devices)
    rate, course = _rate(workload, recipe, options), Course(steps, options.samples, options.warmup, sample.length)
    ladder = rungs(tried, recipe, rate, course, devices, options.micro_batch, fitted)
    together = min(_VALIDATED, max(rung.micro_batch for rung in ladder.rungs))  # which fits where it trains, and is the same for all
    return Asked(
        workload,
        recipe.model_copy(update={"accumulation": 1}),
        ladder.rungs,
        tuple(range(options.seeds)),
        lambda seed: data_of(workload, given, seed, options.split, together),
        _EVERY if options.evaluate_every is None else options.evaluate_every,
        options.target_loss,
        options.patience,
        tuple(options.track),
        options.offline,
        (*remarks, *ladder.remarks, _room(fitted)),
    )


def _room(fitted: Fit | None) -> str:
    """The limit that memory sets, beside which a critical batch is to be seen."""
    if fitted is None:
        return _NOTHING_PREDICTED
    return f"{fitted.gpu.id} has room for {fitted.batch:,} samples at once on each device, as is predicted; larger batches are accumulated"


def require_trainable(workload: Workload, training: Training) -> None:
    """Raises `InvalidInputError` for what a trial cannot train: a step of the workload's own, or work that the recipe shares over devices."""
    if workload.step is not None:
        raise InvalidInputError(f"{workload.name} has a step of its own, which a trial cannot split into micro-batches; give it a loss instead")
    if training.ema:
        raise InvalidInputError("a trial keeps no average of the weights; leave ema out of the recipe")
    if training.parallel is not None:
        raise InvalidInputError("a trial shares its work as `accelerate launch` says; leave parallel out of the recipe, and launch it with so many processes")


def _rate(workload: Workload, training: Training, options: Options) -> Rate:
    """The learning rate that is known to work, and the batch it is for."""
    if options.base_lr is not None:
        return Rate(finite("base learning rate", options.base_lr, above=0), 256 if options.base_batch is None else whole("base batch", options.base_batch))
    if workload.base_lr is None or training.optimizer_name != workload.training.optimizer_name:
        known = "" if workload.base_lr is None else f" with {training.optimizer_name}"
        raise InvalidInputError(f"no learning rate is known for {workload.name}{known}; give one that works and its batch, or look for one with lr_range")
    return Rate(workload.base_lr, workload.base_batch or 256)


def _batches(options: Options, fitted: Fit | None, devices: int) -> tuple[list[int], tuple[str, ...]]:
    """The batches of an optimizer step to try, and what is to be said of those that are not."""
    if options.effective_batches is not None:
        return powers(*options.effective_batches), ()
    batches = options.batches
    if batches is None:
        if fitted is None:
            raise InvalidInputError("batches are not given, and without a CUDA device nothing says what fits; give the smallest and the largest")
        largest = power_of_two_at_most(fitted.batch)
        batches = max(1, largest >> _TRIED - 1), max(1, largest)
    tried = powers(*batches)
    if fitted is None or options.micro_batch is not None:
        return [batch * devices for batch in tried], ()
    left = [batch for batch in tried if batch > fitted.batch]
    said = f"{', '.join(map(str, left))} left out: {fitted.gpu.id} has room for {fitted.batch} at once; effective batches are accumulated"
    if left == tried and fitted.batch >= 1:  # of no room at all `rungs` says more
        raise InvalidInputError(f"there is no batch to try; {said}")
    return [batch * devices for batch in tried if batch <= fitted.batch], (said,) if left else ()


def own_samples(workload: Workload) -> tuple[Any, Any]:
    """The workload's own samples, to train on and to validate with."""
    found = None if workload.data is None else workload.data()
    return found if isinstance(found, tuple) and len(found) == 2 else (found, None)


def data_of(workload: Workload, given: tuple[Any, Any], seed: int, split: float = 0.0, validation_batch: int = _VALIDATED) -> Data:
    """The samples that are given, to train on and to validate with, in the order of a seed; without any the workload's own example batches."""
    if given[0] is not None:
        return of_samples(given[0], seed, given[1], validation_batch, split)
    if given[1] is not None or split:
        what = "samples to validate with are" if given[1] is not None else f"a split of {split:g} is"
        raise InvalidInputError(f"{what} given, and there are none to train on: {workload.name} has only its example batches; give data, too")
    return synthetic(workload)


def in_silence(rung: Rung, seed: int, update: Update) -> None:
    """For callers who do not watch."""
