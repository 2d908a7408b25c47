# SPDX-License-Identifier: Apache-2.0
"""From a tape to seconds: the time of its kernels on a card, of a whole step, and the batch from which more gains little."""

from bsmodel.timing.kernels import KINDS
from bsmodel.timing.step import StepTime, curve, knee, step_time

__all__ = (
    "KINDS",
    "StepTime",
    "curve",
    "knee",
    "step_time",
)
