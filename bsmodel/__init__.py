# SPDX-License-Identifier: Apache-2.0
"""Predicts, without a GPU, how large a batch trains on which GPU, and how the batch should be split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, Footprint, Peak, Settings, breakdown, fit, footprint, predict
from bsmodel.planning import Plan, Price, ladder, plan
from bsmodel.studies import Goal, Row, Study, study
from bsmodel.tape import Envelope, ModuleRow, OperatorRow, Polynomial, Tape, by_module, by_operator
from bsmodel.timing import StepTime, step_time
from bsmodel.training import OPTIMIZERS, PRECISIONS, Training
from bsmodel.workloads import Source, Workload

if TYPE_CHECKING:
    from bsmodel.recording import trace

__version__ = "0.1.0"

__all__ = (
    "OPTIMIZERS",
    "PRECISIONS",
    "BsmodelError",
    "Envelope",
    "Fit",
    "Footprint",
    "Goal",
    "Gpu",
    "InvalidInputError",
    "ModuleRow",
    "OperatorRow",
    "Peak",
    "Plan",
    "Polynomial",
    "Price",
    "Row",
    "Settings",
    "Source",
    "StepTime",
    "Study",
    "Tape",
    "Training",
    "UnknownNameError",
    "UntraceableError",
    "Workload",
    "breakdown",
    "by_module",
    "by_operator",
    "fit",
    "footprint",
    "ladder",
    "plan",
    "predict",
    "step_time",
    "study",
    "trace",
)


if not TYPE_CHECKING:  # checkers would take any misspelt name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "trace":  # the only call that needs torch, which takes two seconds to import
            from bsmodel.recording import trace

            return trace
        raise AttributeError(f"module 'bsmodel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
