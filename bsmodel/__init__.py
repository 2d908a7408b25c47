# SPDX-License-Identifier: Apache-2.0
"""Predicts, without a GPU, how large a batch trains on which GPU, and how the batch should be split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError, UntraceableError
from bsmodel.hardware import Gpu
from bsmodel.lines import Envelope, Line
from bsmodel.memory import Fit, Footprint, Peak, breakdown, fit, footprint, predict
from bsmodel.modules import ModuleRow, OperatorRow, by_module, by_operator
from bsmodel.planning import Plan, Price, ladder, plan
from bsmodel.settings import Settings
from bsmodel.tape import Tape
from bsmodel.throughput import StepTime, step_time
from bsmodel.training import OPTIMIZERS, PRECISIONS, Training
from bsmodel.workloads import Workload

if TYPE_CHECKING:
    from bsmodel.tracing import trace

__version__ = "0.1.0"

__all__ = (
    "OPTIMIZERS",
    "PRECISIONS",
    "BsmodelError",
    "Envelope",
    "Fit",
    "Footprint",
    "Gpu",
    "InvalidInputError",
    "Line",
    "ModuleRow",
    "OperatorRow",
    "Peak",
    "Plan",
    "Price",
    "Settings",
    "StepTime",
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
    "trace",
)


def __getattr__(name: str) -> Any:
    if name == "trace":  # the only call that needs torch, which takes two seconds to import
        from bsmodel.tracing import trace

        return trace
    raise AttributeError(f"module 'bsmodel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
