# SPDX-License-Identifier: Apache-2.0
"""Measures real peaks on a CUDA device: the same loop that is recorded without one."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from bsmodel import loop, placement
from bsmodel.errors import InvalidInputError
from bsmodel.training import Training
from bsmodel.workloads import Workload

_STEPS = 3


@dataclass(frozen=True)
class Measurement:
    """What `torch.cuda` reported for a run."""

    batch: int
    allocated_bytes: int
    reserved_bytes: int
    phases: tuple[tuple[str, int, int], ...]  # name, peak allocated, peak reserved
    retries: int
    out_of_memory: bool


def measure(workload: Workload, training: Training, batch: int, steps: int = _STEPS) -> Measurement:
    """Run real training steps on the CUDA device and read the allocator's peaks.

    Raises `InvalidInputError` where there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise InvalidInputError("no CUDA device here: run this on the machine with the GPU")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    phases: list[tuple[str, int, int]] = []
    peaks = [0, 0]

    def mark(name: str) -> None:
        phases.append((name, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
        peaks[0], peaks[1] = max(peaks[0], phases[-1][1]), max(peaks[1], phases[-1][2])
        torch.cuda.reset_peak_memory_stats()

    failed = False
    try:
        running = _started(workload, training)
        mark("init")
        for step in range(1, steps + 1):
            for _ in range(training.accumulation):
                loop.micro_step(running, batch)
            mark(f"micro {step}")
            loop.optimizer_step(running)
            mark(f"step {step}")
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        failed = True
        mark("out of memory")
    retries = int(torch.cuda.memory_stats().get("num_alloc_retries", 0))
    return Measurement(batch, peaks[0], peaks[1], tuple(phases), retries, failed)


def _started(workload: Workload, training: Training) -> loop.Loop:
    model = placement.adapt(placement.build(workload.model, training), training)
    model = model.to("cuda", **({"memory_format": torch.channels_last} if training.channels_last else {}))  # type: ignore[call-overload]
    if training.precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    optimizer = placement.make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], training)
    return loop.start(model, optimizer, workload, training, lambda tensor: tensor.to("cuda"))
