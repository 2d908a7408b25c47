# SPDX-License-Identifier: Apache-2.0
"""What a card reaches: FLOP/s by dtype, bytes and launches per second, with both ends of what is not known."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu, runtime

_BANDWIDTH_SHARE = 0.85  # of the peak, for cards without a measured one: the median of those in the catalogue
_POWER_LIMITED = 0.55  # of the measured matmul rate, sustained: L4 at 28 % of its float32 peak over a run, 51 % in short tests (NeuSight)
# Of the best rate that a tensor core was measured at for moments, what may be left of it for hours at the power limit: an A100 keeps 1,305 of
# 1,410 MHz in HPL; training of GPT-like models on eight cards takes 1.08 (A100) to 1.25 times (H100) what the best rate gives
# (mosaicml/llm-foundry, scripts/train/benchmarking; benchmarks/devices.py).
_SUSTAINED, _TENSOR_CORES = 0.8, ("tf32", "fp16", "bf16", "fp8")
_ANY_EFFICIENCY = [0.6, 0.8, 0.95]  # of an architecture of which no card was measured: the spread over all that were
_BY_CUDNN = ("convolution", "grouped convolution", "narrow grouped convolution", "recurrence", "further recurrence", "recurrence on chip", "sequence product")
# Float32 units of a multiprocessor by compute capability, 128 elsewhere; four schedulers issue an instruction of 32 threads each in a cycle
# (CUDA C programming guide, throughput of native arithmetic instructions; compute capabilities).
_FLOAT32_UNITS, _ISSUED = {(7, 0): 64, (7, 5): 64, (8, 0): 64}, 128


@dataclass(frozen=True)
class Rates:
    """What a card reaches: FLOP/s by dtype, bytes per second, and instructions of single threads that its schedulers issue per second."""

    matmul_flops_per_s: dict[str, float]
    scalar_flops_per_s: float
    bytes_per_s: float
    instructions_per_s: float


def rates_of(gpu: Gpu, precision: str, end: str) -> Rates:
    """What the card reaches, likely or at either end of what is not known ("low" and "high" seconds)."""
    if gpu.bandwidth_bytes_per_s is None:
        raise InvalidInputError(f"{gpu.id} has no bandwidth_bytes_per_s; step time needs it, add it to the row")
    scalar_flops_per_s = peak_flops_per_s(gpu, "fp32")
    present = [dtype for dtype in ("fp32", "tf32", "fp16", "bf16", "fp8") if gpu.peak_flops_per_s(dtype)]
    reached: dict[str, float] = {dtype: peak_flops_per_s(gpu, dtype) * _efficiency(gpu, dtype, end) for dtype in present}
    if precision == "tf32" and "tf32" in reached:
        reached["asked tf32"] = reached["tf32"]
    bandwidth = gpu.bandwidth_bytes_per_s * (gpu.bandwidth_efficiency or _BANDWIDTH_SHARE)
    return Rates(reached, reached["fp32"], bandwidth, scalar_flops_per_s / 2 * _issued_per_multiply_add(gpu))


def rate_dtype(kind: str, dtype: str, rates: Rates) -> str:
    """The arithmetic a product runs in: float32 is TF32 by default in cuDNN where there is any, in matmuls only when asked."""
    if dtype == "fp32" and "tf32" in rates.matmul_flops_per_s and (kind in _BY_CUDNN or "asked tf32" in rates.matmul_flops_per_s):
        return "tf32"
    return dtype


def peak_flops_per_s(gpu: Gpu, dtype: str) -> float:
    rate = gpu.peak_flops_per_s(dtype)
    if rate is None:
        field = "fp32_flops_per_s" if dtype == "fp32" else f"{dtype}_dense_flops_per_s"
        raise InvalidInputError(f"{gpu.id} has no {field}; step time needs it, add it to the row")
    return rate


def _issued_per_multiply_add(gpu: Gpu) -> float:
    """Instructions that are issued in the time in which all float32 units multiply and add once, one for each unit."""
    return _ISSUED / _FLOAT32_UNITS.get(gpu.capability, 128)


def launch_seconds(gpu: Gpu) -> tuple[float, float, float]:
    """Host seconds per kernel: likely, low and high; all the same where the row has a measured one."""
    known = runtime()
    measured = gpu.launch_seconds
    return (measured, measured, measured) if measured else (known.launch_seconds, known.launch_seconds_low, known.launch_seconds_high)


def _efficiency(gpu: Gpu, dtype: str, end: str) -> float:
    """Measured matmul rate over the peak; where the row has none, the median of the same architecture's, or an end of their range."""
    known = _efficiencies(gpu).get(dtype)
    sustained = 1.0 if end != "high" else _POWER_LIMITED if gpu.power_limited else _SUSTAINED if dtype in _TENSOR_CORES else 1.0
    if known is not None:
        return known * sustained
    alike = [_efficiencies(row)[dtype] for row in Gpu.all() if dtype in _efficiencies(row) and _alike(row, gpu)] or _ANY_EFFICIENCY
    return {"likely": statistics.median(alike), "low": max(alike), "high": min(alike) * sustained}[end]


def _efficiencies(gpu: Gpu) -> dict[str, float]:
    return {str(dtype): rate for dtype, rate in (gpu.matmul_efficiency or {}).items()}


def _alike(row: Gpu, gpu: Gpu) -> bool:
    """Same architecture, and tensor cores of the same width against the float32 units (GeForce halves them)."""
    ratios = [(card.fp16_dense_flops_per_s or 0) / (card.fp32_flops_per_s or 1) for card in (row, gpu)]
    return row.capability[0] == gpu.capability[0] and 0.6 < (ratios[0] + 1e-9) / (ratios[1] + 1e-9) < 1.7
