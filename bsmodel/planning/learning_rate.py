# SPDX-License-Identifier: Apache-2.0
"""The learning rate and warm-up that go with an effective batch."""

from __future__ import annotations

import math

from bsmodel.units import finite, whole

WARMUP_EPOCHS = 5  # Goyal 2017, arXiv 1706.02677: gradual warm-up over the first five epochs


def learning_rate(family: str, batch: int, base_lr: float, base_batch: int) -> tuple[float, str]:
    """The learning rate at an effective batch, from one known at another.

    SGD: `lr = base_lr * batch / base_batch` (linear; Goyal 2017, arXiv 1706.02677, shown to 8192). Adam family and layer-wise
    optimizers: `lr = base_lr * sqrt(batch / base_batch)` (Krizhevsky 2014, arXiv 1404.5997; Malladi 2022, arXiv 2205.10287).
    Returns the rate and the name of the rule. Raises `InvalidInputError` for numbers that are none, or give none. Valid
    below the gradient noise scale; beyond it neither rule holds.
    """
    base_lr = finite("base learning rate", base_lr, above=0)
    ratio = whole("batch", batch) / whole("base batch", base_batch)
    rate, rule = (base_lr * ratio, "linear") if family == "sgd" else (base_lr * math.sqrt(ratio), "square root")
    return finite("learning rate", rate, above=0), rule


def warmup_steps(per_epoch: int | None, total: int | None) -> int | None:
    """Five epochs, but at most a tenth of the run."""
    if per_epoch is None:
        return None
    return WARMUP_EPOCHS * per_epoch if total is None else min(WARMUP_EPOCHS * per_epoch, math.ceil(total / 10))
