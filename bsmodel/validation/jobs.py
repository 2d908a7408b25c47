# SPDX-License-Identifier: Apache-2.0
"""What a child process does on the device: each job takes and gives plain JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bsmodel.training import Training
from bsmodel.validation import environment, rivals
from bsmodel.workloads import NAMED, Workload

Job = dict[str, Any]
MOST_TIMED = 10
TRIAL_STEPS = 12  # at capacity fragments pile up over several steps before one fails


def recipe_of(job: Job) -> tuple[Workload, Training]:
    """The workload of a job and its training: the workload's own with what the job changes."""
    workload = Workload.named(job["workload"], **job.get("options", {}))
    return workload, workload.recipe(Training(**{**dict(workload.training), **job.get("recipe", {})}))


def unfilled(job: Job) -> bool:
    """Whether the factory leaves weights as they are in memory: bsmodel's own do, to save the time of filling them."""
    return job["workload"] in NAMED or job["workload"].endswith(".json")


def device(job: Job) -> dict[str, Any]:
    """The facts of the card."""
    return environment.device_facts()


def hardware(job: Job) -> dict[str, Any]:
    """Rates that no data sheet has."""
    from bsmodel.validation.device import hardware_rates

    return hardware_rates()


def workspaces(job: Job) -> dict[str, Any]:
    """What single convolutions allocate besides their outputs, by probe and kernel."""
    from bsmodel.recording import probes
    from bsmodel.validation.device import workspace_bytes

    return {probe.name: workspace_bytes(probe) for probe in probes.probes()}


def step(job: Job) -> dict[str, Any]:
    """Peaks, device-level memory and step time at one batch."""
    import torch

    from bsmodel.validation.device import limit_to, measure

    workload, training = recipe_of(job)
    before = environment.used_bytes(job.get("uuid"))
    limit_to(job.get("capacity_bytes"))
    found = measure(workload, training, job["batch"], most_timed=MOST_TIMED, initialise=unfilled(job))
    after = environment.used_bytes(job.get("uuid"))
    if before is not None and after is not None:
        in_use, source = after[0] - before[0], after[1]
    else:
        free, total = torch.cuda.mem_get_info()
        in_use, source = total - free, "mem_get_info, other processes included"
    context_bytes = in_use - (found.reserved_at_end_bytes or 0)
    result = {name: value for name, value in asdict(found).items() if name not in ("phases", "batch")}
    return {**result, "device_bytes": found.reserved_bytes + context_bytes, "context_bytes": context_bytes, "device_bytes_from": source}


def trial(job: Job) -> dict[str, Any]:
    """Whether training survives under a capacity."""
    from bsmodel.validation.device import limit_to, measure

    workload, training = recipe_of(job)
    limit_to(job.get("capacity_bytes"))
    found = measure(workload, training, job["batch"], job.get("steps", TRIAL_STEPS), initialise=unfilled(job))
    return {"survives": not found.out_of_memory, "allocated_bytes": found.allocated_bytes, "reserved_bytes": found.reserved_bytes}


def gradients(job: Job) -> dict[str, Any]:
    """Whether accumulated gradients are those of the full batch."""
    from bsmodel.validation.gradients import gradients_agree

    workload, _ = recipe_of(job)
    found = gradients_agree(workload, job["batch"], job["accumulation"], job.get("device", "cuda"), initialise=unfilled(job))
    return {**asdict(found), "agree": found.agree}


def rival(job: Job) -> dict[str, Any]:
    """What another estimator says."""
    workload, training = recipe_of(job)
    found = rivals.ask(rivals.RIVALS[job["rival"]], workload, training, job["batch"], job["capacity_bytes"])
    return asdict(found)


JOBS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "device": device,
    "hardware": hardware,
    "workspaces": workspaces,
    "step": step,
    "trial": trial,
    "gradients": gradients,
    "rival": rival,
}
