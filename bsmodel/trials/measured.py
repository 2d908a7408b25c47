# SPDX-License-Identifier: Apache-2.0
"""What a trial measured on a CUDA device, beside what was predicted, as rows that `bsmodel validate --report` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bsmodel.trials.values import Run
from bsmodel.validation import rows


def rows_of(runs: Iterable[Run], workload: str, recipe: str, environment: Mapping[str, Any]) -> list[rows.Row]:
    """A row of kind "step" for each run whose peaks are known: one optimizer step of a micro-batch, accumulated as the case says.

    Each is of the environment that it ran in; `environment` is that of runs of older versions, which did not keep theirs.
    """
    known = [run for run in runs if run.allocated_bytes is not None and run.rung.predicted_allocated_bytes is not None]
    return [_row(run, workload, recipe, run.environment or environment) for run in known]


def _row(run: Run, workload: str, recipe: str, environment: Mapping[str, Any]) -> rows.Row:
    rung = run.rung
    words = f"{recipe} accumulation={rung.accumulation} devices={rung.devices} seed={run.seed}"
    predicted = {
        "allocated_bytes": rung.predicted_allocated_bytes,
        "reserved_bytes": rung.predicted_reserved_bytes,
        "step_seconds": rung.predicted_step_seconds,
        "fits": True,
    }
    measured = {
        "allocated_bytes": run.allocated_bytes,
        "reserved_bytes": run.reserved_bytes,
        "step_seconds": run.step_seconds,
        "out_of_memory": run.status == "out of memory",
    }
    common = {"workload": workload, "gpu": environment["gpu"], "recipe": words, "batch": rung.micro_batch}
    case = f"{workload} {environment['gpu']} b={rung.micro_batch} {words}"
    return rows.row("step", case, rows.MEASURED, **common, predicted=predicted, measured=measured, environment=dict(environment))
