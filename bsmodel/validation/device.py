# SPDX-License-Identifier: Apache-2.0
"""Measures real peaks and step times on a CUDA device: the same loop that is recorded without one."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.recording import loop, placement, probes
from bsmodel.training import Training
from bsmodel.workloads import Workload

_STEPS = 3
_MOST_SKIPPED = 20  # loss scaling skips the steps that overflow; each one halves the scale
_TIMED_SECONDS = 3.0  # steps are timed for about this long


@dataclass(frozen=True)
class Measurement:
    """What `torch.cuda` reported for a run."""

    batch: int
    allocated_bytes: int
    reserved_bytes: int
    phases: tuple[tuple[str, int, int], ...]  # name, peak allocated, peak reserved
    retries: int
    out_of_memory: bool
    reserved_at_end_bytes: int | None = None
    step_seconds: float | None = None
    timed_steps: int = 0


def measure(workload: Workload, training: Training, batch: int, steps: int = _STEPS, most_timed: int = 0, initialise: bool = False) -> Measurement:
    """Run real training steps on the CUDA device and read the allocator's peaks; then time up to `most_timed` more, median by CUDA events.

    `initialise` fills weights that a factory leaves as they are in memory, which may be no numbers at all. Steps that loss scaling skips
    are repeated: they make no optimizer state.
    Raises `InvalidInputError` where there is no CUDA device.
    """
    require_cuda()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    phases: list[tuple[str, int, int]] = []
    times: list[float] = []

    def mark(name: str) -> None:
        phases.append((name, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
        torch.cuda.reset_peak_memory_stats()

    failed = False
    try:
        running = _started(workload, training, initialise)
        mark("init")
        _steps(running, batch, steps, mark)
        times = _timed(running, batch, most_timed)
        torch.cuda.synchronize()
        if times:
            mark("timed")
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed = True
        mark("out of memory")
    retries = int(torch.cuda.memory_stats().get("num_alloc_retries", 0))
    allocated, reserved = max(phase[1] for phase in phases), max(phase[2] for phase in phases)
    step_seconds = statistics.median(times) if times and not failed else None
    return Measurement(batch, allocated, reserved, tuple(phases), retries, failed, torch.cuda.memory_reserved(), step_seconds, len(times))


def require_cuda() -> None:
    """Raises `InvalidInputError` where torch sees no CUDA device."""
    if not torch.cuda.is_available():
        raise InvalidInputError("no CUDA device here: run this on the machine with the GPU, e.g. bsmodel validate resnet50 --out rows.jsonl")


def limit_to(capacity_bytes: int | None) -> None:
    """Let the allocator of this process reserve at most `capacity_bytes`, as a smaller card would; None for no limit."""
    if capacity_bytes is None:
        return
    require_cuda()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (capacity_bytes + 0.5) / total))  # torch rounds the product down


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is used up: torch's own, or that of a library beside its allocator."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text


def _steps(running: loop.Loop, batch: int, steps: int, mark: Callable[[str], None]) -> None:
    step = taken = 0
    while taken < steps and step < steps + _MOST_SKIPPED:
        step += 1
        for _ in range(running.training.accumulation):
            loop.micro_step(running, batch)
        mark(f"micro {step}")
        scale = running.scaler.get_scale() if running.scaler else 0.0
        loop.optimizer_step(running)
        mark(f"step {step}")
        taken += not (running.scaler and running.scaler.get_scale() < scale)


def _timed(running: loop.Loop, batch: int, most: int) -> list[float]:
    """Seconds of each optimizer step, all its micro-steps in it."""
    seconds: list[float] = []
    while len(seconds) < most and (len(seconds) < 3 or sum(seconds) < _TIMED_SECONDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(running.training.accumulation):
            loop.micro_step(running, batch)
        loop.optimizer_step(running)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return seconds


def _started(workload: Workload, training: Training, initialise: bool) -> loop.Loop:
    model = placement.adapt(placement.build(workload, training)[0], workload, training)
    model = model.to("cuda", **({"memory_format": torch.channels_last} if training.channels_last else {}))  # type: ignore[call-overload]
    if initialise:
        fill_weights(model)
    if training.precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    return loop.start(model, placement.set_up(model, workload, training), workload, training, lambda tensor: tensor.to("cuda"))


@torch.no_grad()
def fill_weights(model: torch.nn.Module) -> None:
    """Small random matrices, scales of one, biases of zero, in place."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def workspace_bytes(probe: probes.Probe) -> dict[str, int]:
    """What each of the three kernels of a probe allocates besides its output, at its second call."""
    require_cuda()
    found = {}
    for direction, call in probe.calls("cuda").items():
        call()  # handles and what is loaded lazily
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        output = call()
        found[direction] = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        del output
    return found


# -- what only the hardware can tell -----------------------------------------------------------------------------------------------------


def hardware_rates() -> dict[str, Any]:
    """Best matmul rates by dtype [FLOP/s], copy bandwidth [B/s] and the time of a step too small to keep the device busy [s], measured here."""
    require_cuda()
    dtypes = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if torch.cuda.get_device_capability(0)[0] < 8:
        del dtypes["tf32"], dtypes["bf16"]
    rates = {}
    for name, dtype in dtypes.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        rates[name] = max(_matmul_flops_per_s(size, dtype) for size in (2048, 4096, 8192))
    return {"matmul_flops_per_s": rates, "copy_bytes_per_s": _copy_bytes_per_s(), "tiny_step_seconds": _tiny_step_seconds()}


def _median_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def _matmul_flops_per_s(size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * size**3 / _median_seconds(lambda: torch.mm(left, right, out=product))


def _copy_bytes_per_s(size_bytes: int = 1 << 28) -> float:
    source = torch.zeros(size_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size_bytes / _median_seconds(lambda: target.copy_(source))  # each byte is read and written


def tiny() -> Workload:
    """A transformer whose kernels have next to nothing to do, so that its step takes as long as the host needs to launch them."""

    def build() -> torch.nn.Module:
        layer = torch.nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
        return torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def loss(model: torch.nn.Module, batch: torch.Tensor) -> Any:
        return model(batch).float().square().mean()

    return Workload(build, lambda size: torch.ones(size, 16, 64), loss, name="tiny", training=Training(optimizer="adamw"))


TINY_BATCH = 2


def _tiny_step_seconds() -> float | None:
    return measure(tiny(), tiny().training, TINY_BATCH, most_timed=100).step_seconds
