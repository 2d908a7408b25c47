# SPDX-License-Identifier: Apache-2.0
"""Values in, JSON documents out; no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bsmodel.memory import Fit, Footprint, Peak
from bsmodel.planning import Plan, Rung, power_of_two_at_most
from bsmodel.tape import ModuleRow, OperatorRow, Tape

SCHEMA_VERSION = 1


def document(command: str, **content: Any) -> dict[str, Any]:
    """The shape every `--json` answer has: `schema_version`, `command`, then the answer."""
    return {"schema_version": SCHEMA_VERSION, "command": command, **content}


def tape_json(tape: Tape) -> dict[str, Any]:
    """The workload and recipe of an answer."""
    return {
        "name": tape.name,
        "parameters": tape.parameter_count,
        "trained_parameters": tape.trained_parameter_count,
        "precision": tape.precision,
        "optimizer": tape.optimizer,
        "recipe": tape.recipe,
        "torch_version": tape.torch_version,
    }


def form_json(form: Footprint) -> dict[str, Any]:
    """The closed form as data."""
    return {
        "formula": str(form),
        "lines": [
            {"fixed_bytes": line.fixed, "per_sample_bytes": line.per_sample, "moment": str(moment)}
            for line, moment in zip(form.envelope.lines, form.moments, strict=True)
        ],
    }


def peak_json(peak: Peak) -> dict[str, Any]:
    """The peak at one batch."""
    return asdict(peak)


def row_json(row: ModuleRow | OperatorRow) -> dict[str, Any]:
    """One module or operator of a table."""
    return asdict(row)


def compared_json(plan: Plan) -> dict[str, Any]:
    """One GPU of a comparison."""
    split = plan.split
    return {
        "gpu": plan.fit.gpu.id,
        "largest_batch": plan.fit.batch,
        "micro_batch": split.micro_batch,
        "accumulation": split.accumulation,
        "devices": split.devices,
        "effective_batch": split.effective_batch,
        "time": timing_json(plan),
    }


def timing_json(plan: Plan) -> dict[str, Any]:
    """Time and money of a plan, or the reason why they are unknown."""
    timing = plan.timing
    if timing is None:
        return {"unknown": plan.untimed}
    step = timing.step
    return {
        "step_seconds": float(step.seconds),
        "step_seconds_low": float(step.low_seconds),
        "step_seconds_high": float(step.high_seconds),
        "device_seconds": float(step.device_seconds),
        "host_seconds": float(step.host_seconds),
        "phases_seconds": {phase: float(seconds) for phase, seconds in step.phases.items()},
        "samples_per_s": timing.samples_per_s,
        "tokens_per_s": timing.samples_per_s * step.tokens_per_sample,
        "mfu": float(step.mfu),
        "knee": timing.knee,
        "fastest_batch": timing.fastest_batch,
        "hours_per_epoch": timing.hours_per_epoch,
        "hours": timing.hours,
        "usd_per_hour": timing.price.usd_per_hour if timing.price else None,
        "price_source": timing.price.source if timing.price else None,
        "cost_usd": timing.cost_usd,
    }


def plan_json(item: Plan | Fit, form: Footprint, rungs: Sequence[Rung]) -> dict[str, Any]:
    """One GPU of a plan."""
    fit = item if isinstance(item, Fit) else item.fit
    found: dict[str, Any] = {
        "gpu": fit.gpu.id,
        "usable_bytes": fit.gpu.usable_bytes,
        "fits": fit.batch > 0,
        "largest_batch": fit.batch,
        "likely_batch": fit.likely_batch,
        "power_of_two": power_of_two_at_most(fit.batch),
        "binding": fit.binding,
        "headroom_bytes": fit.headroom_bytes,
        "verdict": fit.verdict,
        "closed_form": form_json(form),
        "ladder": [peak_json(rung.peak) for rung in rungs],
    }
    if isinstance(item, Plan):
        found |= {
            "peak": peak_json(item.peak),
            "target_batch": item.target_batch,
            "micro_batch": item.split.micro_batch,
            "accumulation": item.split.accumulation,
            "devices": item.split.devices,
            "effective_batch": item.split.effective_batch,
            "fewest_micro_steps": {"micro_batch": item.fewest.micro_batch, "accumulation": item.fewest.accumulation},
            "time": timing_json(item),
            "exact": item.exact,
            "learning_rate": item.learning_rate,
            "learning_rate_rule": item.learning_rate_rule or None,
            "warmup_steps": item.warmup_steps,
            "steps_per_epoch": item.steps_per_epoch,
            "total_steps": item.total_steps,
            "advice": list(item.advice),
        }
    return found
