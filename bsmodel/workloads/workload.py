# SPDX-License-Identifier: Apache-2.0
"""A model, its batches and its loss, as plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.training import Training


@dataclass(frozen=True)
class Workload:
    """A model, its batches and its loss, as three functions.

    * `model() -> torch.nn.Module`
    * `batch(size)` -> any nesting of host tensors, `size` samples in it; where samples differ in size, all of them of the mean
    * `worst_batch(size)` -> the same at its worst: the longest texts, the largest graphs. What it takes is the upper end of what the step takes
    * `loss(model, batch)` -> scalar tensor, or (scalar tensor, outputs); outputs live on where `Training.keep_outputs` says so
    * `step(model, optimizer, batch)` -> anything, instead of `loss`: a whole training step of your own; what it returns lives until the
      next one returns. It moves the host batch to `"cuda"` itself and calls the optimizer.
    * `setup(model)` -> what `step` gets in the optimizer's place, made once, with the model on the device: two optimizers in a dict, an object
      with a loss scaler, an average of the weights, an Accelerator. Without it `step` gets the optimizer of the recipe.
    * `weights`: the dtype in which trained weights of the model are published, such as "bfloat16": under adapters they are kept in half precision.
    * `quantized`: fields of the recipe that say how weights are held that are published in fewer bits, such as `{"weights": "nf4", "double_quant": True}`.
    * `training`: the recipe where none is given. `base_lr` at `base_batch`: a learning rate known to train it.
    * `tokens_per_sample`: tokens in each sample, 1 where it is no text; tokens a second are counted by it.
    * `data()` -> samples to train on in a trial, or a pair of those and of samples to validate with: a `torch.utils.data.Dataset`, any sequence, a
      Hugging Face dataset, or an iterable that can be gone through again. A batch of them, collated, is what `loss` takes.
    * `options`: those that its name was asked with, such as `seq_len`, which `Workload.named` keeps.
    * `remarks`: sentences that an answer rests on and nobody asked for; read when a recording is over, so that `loss` may add what it chose.
    """

    model: Callable[[], Any]
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], Any] | None = None
    step: Callable[[Any, Any, Any], Any] | None = None
    name: str = "model"
    training: Training = field(default_factory=Training)
    tokens_per_sample: int = 1
    base_lr: float | None = None
    base_batch: int | None = None
    remarks: Sequence[str] = field(default=(), compare=False)
    setup: Callable[[Any], Any] | None = None
    worst_batch: Callable[[int], Any] | None = None
    weights: str | None = None
    quantized: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.step is None):
            raise InvalidInputError(f"workload {self.name!r} needs exactly one of loss=(model, batch) -> scalar and step=(model, optimizer, batch)")
        if self.setup is not None and self.step is None:
            raise InvalidInputError(f"workload {self.name!r} has a setup=(model) and no step=(model, what setup returns, batch) that takes what it makes")

    def recipe(self, training: Training | None = None) -> Training:
        """The recipe, by default its own; weights that are published in fewer bits stay so where it does not say what they are held in.

        Raises `InvalidInputError` where these would be trained themselves, and not adapters.
        """
        found = training or self.training
        return Training(**{**dict(found), **self.quantized}) if self.quantized and found.weights is None else found

    @staticmethod
    def named(name: str, **options: object) -> Workload:
        """The workload called `name`.

        `name` is one of `bsmodel.workloads.NAMED`, `timm:NAME`, `torchvision:NAME`, a transformers or diffusers `config.json` or its folder,
        `module:attribute` or `path.py:attribute` (a `Workload`, or a function that returns one; with `input="3x224x224"`, the shape of one
        sample, an `nn.Module`, whose `loss` is "cross-entropy", "mse", "bce" or "mean", by default what suits its output). Other options:
        `seq_len`, `image_size`, `attention` ("sdpa", "eager", "flash_attention_2" or "flash_attention_3"); one that the workload does not know is refused.
        Raises `UnknownNameError` with the nearest names, `InvalidInputError` for a file or option that cannot be used.
        """
        from bsmodel.workloads.sources import Source

        return Source.of(name, **options).workload()
