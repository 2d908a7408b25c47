# SPDX-License-Identifier: Apache-2.0
"""Short real runs: how the loss falls with each batch, the gradient noise scale, and the batch that is worth having."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsmodel.trials.curves import StepsLaw
from bsmodel.trials.results import Choice, Recommendation, Spread, Trial, TrialRow
from bsmodel.trials.trackers import TRACKERS
from bsmodel.trials.values import Run, Rung, Update

if TYPE_CHECKING:
    from bsmodel.trials.asking import trial

__all__ = ("TRACKERS", "Choice", "Recommendation", "Run", "Rung", "Spread", "StepsLaw", "Trial", "TrialRow", "Update", "trial")


def __getattr__(name: str) -> Any:
    if name == "trial":  # what needs torch is imported when it is asked for
        return importlib.import_module("bsmodel.trials.asking").trial
    raise AttributeError(f"module 'bsmodel.trials' has no attribute {name!r}")
