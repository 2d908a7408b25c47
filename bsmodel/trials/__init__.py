# SPDX-License-Identifier: Apache-2.0
"""Short real runs: how the loss falls with each batch, the gradient noise scale, and the batch that is worth having."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsmodel.trials.curves import StepsLaw
from bsmodel.trials.drawn import interval, spread
from bsmodel.trials.rates import RateRange
from bsmodel.trials.results import Choice, Recommendation, Spread, Trial, TrialRow
from bsmodel.trials.trackers import TRACKERS
from bsmodel.trials.values import Run, Rung, Update, Watch

if TYPE_CHECKING:
    from bsmodel.trials.asking import Options, trial
    from bsmodel.trials.finding import find_batch
    from bsmodel.trials.html import loss_curves, page, picture, rate_losses, rates_page, rates_picture
    from bsmodel.trials.rising import lr_range
    from bsmodel.trials.sources import data_named
    from bsmodel.trials.tables import of_batches
    from bsmodel.trials.training import processes, speaks

__all__ = (
    "TRACKERS",
    "Choice",
    "Options",
    "RateRange",
    "Recommendation",
    "Run",
    "Rung",
    "Spread",
    "StepsLaw",
    "Trial",
    "TrialRow",
    "Update",
    "Watch",
    "data_named",
    "find_batch",
    "interval",
    "loss_curves",
    "lr_range",
    "of_batches",
    "page",
    "picture",
    "processes",
    "rate_losses",
    "rates_page",
    "rates_picture",
    "speaks",
    "spread",
    "trial",
)

_HOMES = {
    "Options": "asking",
    "data_named": "sources",
    "find_batch": "finding",
    "loss_curves": "html",
    "lr_range": "rising",
    "of_batches": "tables",
    "page": "html",
    "picture": "html",
    "processes": "training",
    "rate_losses": "html",
    "rates_page": "html",
    "rates_picture": "html",
    "speaks": "training",
    "trial": "asking",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # what needs torch is imported when it is asked for
        return getattr(importlib.import_module(f"bsmodel.trials.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bsmodel.trials' has no attribute {name!r}")
