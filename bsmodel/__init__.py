# SPDX-License-Identifier: Apache-2.0
"""Predicts, without a GPU, how large a batch trains on which GPU, and how the batch should be split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bsmodel.configs import Emitted, emit
from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError, UntraceableError
from bsmodel.gate import Allowance, Baseline, Verdict, check
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, Footprint, Peak, Settings, breakdown, fit, footprint, longest, predict, snapshot
from bsmodel.parallel import Parallel
from bsmodel.planning import NoiseScale, Plan, ladder, noise_scale, plan
from bsmodel.prices import Price
from bsmodel.studies import Goal, Row, Study, study
from bsmodel.tape import Envelope, Lengths, ModuleRow, OperatorRow, Polynomial, Tape, by_module, by_operator
from bsmodel.timing import MemoryTimeline, StepTime, Timeline, memory_timeline, step_time, timeline
from bsmodel.training import OPTIMIZERS, PRECISIONS, Training
from bsmodel.workloads import Source, Workload

if TYPE_CHECKING:
    from bsmodel.recording import trace, trace_lengths
    from bsmodel.trials import RateRange, Trial, find_batch, lr_range, trial

__version__ = "0.1.0"

__all__ = (
    "OPTIMIZERS",
    "PRECISIONS",
    "Allowance",
    "Baseline",
    "BsmodelError",
    "Emitted",
    "Envelope",
    "Fit",
    "Footprint",
    "Goal",
    "Gpu",
    "InvalidInputError",
    "Lengths",
    "MemoryTimeline",
    "ModuleRow",
    "NoiseScale",
    "OperatorRow",
    "Parallel",
    "Peak",
    "Plan",
    "Polynomial",
    "Price",
    "RateRange",
    "Row",
    "Settings",
    "Source",
    "StepTime",
    "Study",
    "Tape",
    "Timeline",
    "Training",
    "Trial",
    "UnknownNameError",
    "UntraceableError",
    "Verdict",
    "Workload",
    "breakdown",
    "by_module",
    "by_operator",
    "check",
    "emit",
    "find_batch",
    "fit",
    "footprint",
    "ladder",
    "longest",
    "lr_range",
    "memory_timeline",
    "noise_scale",
    "plan",
    "predict",
    "snapshot",
    "step_time",
    "study",
    "timeline",
    "trace",
    "trace_lengths",
    "trial",
)


_HOMES = {
    "trace": "recording",
    "trace_lengths": "recording",
    **dict.fromkeys(("RateRange", "Trial", "find_batch", "lr_range", "trial"), "trials"),
}

if not TYPE_CHECKING:  # checkers would take any misspelt name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _HOMES:  # the only calls that need torch, which takes two seconds to import
            import importlib

            return getattr(importlib.import_module(f"bsmodel.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'bsmodel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
