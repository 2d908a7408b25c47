# SPDX-License-Identifier: Apache-2.0
"""The gradient noise scale of a run, from the gradients of its micro-batches, and the batches that it makes worth having."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import WithJsonSchema

from bsmodel.errors import InvalidInputError
from bsmodel.shown import Shown
from bsmodel.units import finite, whole

RESAMPLES = 2000
_LEVEL = 0.95  # of the interval
_SEED = 0  # answers are the same twice
Endless = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})]  # infinite is null in JSON, which has no such number


@dataclass(frozen=True)
class NoiseScale(Shown):
    """The batch, in samples, at which the noise of a step's gradient is as large as the gradient: about where larger batches begin to save few steps.

    `low` and `high` enclose it at 95 %, as far as the steps of one run tell; `high` is infinite where the gradient itself cannot be told from noise.
    It says how many steps a batch saves at a loss, with plain SGD near a quadratic minimum (McCandlish 2018); it grows as training goes on, and
    batches that are best in time or money may be smaller or larger (Merrill 2025, arXiv 2505.23971).
    """

    samples: Endless
    low: Endless
    high: Endless
    steps: int

    def steps_at(self, batch: float) -> float:
        """Optimizer steps at a batch over the fewest, those of an endless batch: `1 + noise scale / batch`; raises `InvalidInputError` for no batch."""
        return 1 + self.samples / finite("batch", batch, above=0)

    def samples_at(self, batch: float) -> float:
        """Samples at a batch over the fewest, those of the smallest batch: `1 + batch / noise scale`; raises `InvalidInputError` for no batch.

        Infinite without noise, where one sample says all.
        """
        size = finite("batch", batch, above=0)
        return 1 + size / self.samples if self.samples else math.inf


def noise_scale(micro_squares: ArrayLike, accumulated_squares: ArrayLike, micro_batch: int, accumulation: int) -> NoiseScale:
    """The noise scale `tr(Sigma) / |G|^2` from squared norms of gradients, of micro-batches and of their means, over several optimizer steps.

    With b samples in a micro-batch and B = b a in the a of a step,
    `|G|^2 = (B E|G_B|^2 - b E|G_b|^2) / (B - b)` and `tr(Sigma) = (E|G_b|^2 - E|G_B|^2) / (1/b - 1/B)`, each averaged before the ratio is taken, since a
    mean of ratios is far off (McCandlish 2018, arXiv 1812.06162, appendix A.1). `micro_squares`: of shape (steps, a), or (steps,) of one micro-batch
    a step or the mean of them; `accumulated_squares`: (steps,). The interval is by resampling steps.

    Raises `InvalidInputError` for an accumulation of 1, which has no micro-batches to compare, fewer than two steps, shapes that do not agree, or squares
    that are none.
    """
    micro, small = whole("micro-batch", micro_batch), np.asarray(micro_squares, np.float64)
    if whole("accumulation", accumulation) < 2:
        raise InvalidInputError("accumulation is 1: the noise scale compares micro-batches with their mean; expected at least 2, or as many devices")
    large = np.asarray(accumulated_squares, np.float64)
    if small.ndim not in (1, 2) or large.ndim != 1 or len(small) != len(large) or len(large) < 2 or (small.ndim == 2 and small.shape[1] != accumulation):
        shapes = f"{small.shape} and {large.shape}"
        raise InvalidInputError(f"squared norms are of shapes {shapes}; expected (steps, {accumulation}) and (steps,), of two steps or more")
    if not (np.isfinite(small).all() and np.isfinite(large).all() and (small >= 0).all() and (large >= 0).all()):
        raise InvalidInputError("squared norms hold what is none; expected finite numbers of at least 0")
    means = np.stack([small if small.ndim == 1 else small.mean(axis=1), large])
    chosen = np.random.default_rng(_SEED).integers(0, means.shape[1], (RESAMPLES, means.shape[1]))
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(_ratio(means[:, chosen].mean(axis=-1), micro, micro * accumulation), (tail, 100 - tail), method="nearest")
    return NoiseScale(float(_ratio(means.mean(axis=-1), micro, micro * accumulation)), float(low), float(high), means.shape[1])


def _ratio(means: NDArray[Any], small: int, large: int) -> NDArray[Any]:
    """`tr(Sigma) / |G|^2` from mean squared norms of both batches; infinite where the gradient comes out below zero, and zero where the noise does."""
    gradient = (large * means[1] - small * means[0]) / (large - small)
    noise = np.maximum((means[0] - means[1]) / (1 / small - 1 / large), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gradient > 0, noise / np.where(gradient > 0, gradient, 1), math.inf)
