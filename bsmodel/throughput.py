# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: a roofline over the recorded kernels, in closed form in the batch.

Each kernel takes the larger of its arithmetic and its memory time, and a moment to start; the step takes the longer of the device's
work and the host's launches. Nothing here is fitted to step times: rates and shares are measured elsewhere, in `hardware/` and the tables below.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu, runtime
from bsmodel.memory import require_same_kernels
from bsmodel.operations import Operations
from bsmodel.tape import Tape

Array = NDArray[np.float64]

# Rows and columns of the output that one thread block of a matrix product computes, and the share of the best rate such blocks reach.
# Shares by hand from kernel times in the NeuSight repository (sitar-lab/NeuSight, linear layers on five GPUs).
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.97), (128, 64, 0.9), (64, 128, 0.9), (64, 64, 0.8), (32, 32, 0.55))
# Steps of the contraction that pass before a tile's pipeline runs: (stages - 1) x depth of a thread block's shape
# (CUTLASS, include/cutlass/gemm/device/default_gemm_configuration.h: 3 stages of 64 in half precision and of 32 in TF32 from Ampere on,
# 2 stages of 32 before, 2 of 8 on the float32 units).
FILL = {"fp16": 128, "bf16": 128, "tf32": 64, "fp32": 8}
_SPLIT_K = 512  # a thread block keeps at least this much of the contraction when a product with few tiles is split along it
_BANDWIDTH_SHARE = 0.85  # of the peak, for cards without a measured one: the median of those in the catalogue
_POWER_LIMITED = 0.55  # of the measured matmul rate, sustained: L4 at 28 % of its float32 peak over a run, 51 % in short tests (NeuSight)
_ANY_EFFICIENCY = [0.6, 0.8, 0.95]  # of an architecture of which no card was measured: the spread over all that were


@dataclass(frozen=True)
class Kind:
    """What distinguishes one class of kernels: its share of the copy bandwidth, and what it computes on the float32 units.

    A fused attention computes its products at the matmul rate and, beside them, `score_flops` per score (scaling, maximum, exponential,
    sums) at the float32 rate; a depthwise convolution two per tap. `matmul_share` is what its products reach of the card's best.
    """

    source: str
    bandwidth_share: float = 1.0
    score_flops: float = 0.0
    matmul_share: float = 1.0


_FLASH_2 = "Dao 2023, arXiv 2307.08691: 73 % of an A100's peak forward, 63 % backward at width 128; the rest of the time per score, in float32 FLOPs"
_FLASH_1 = "Dao 2023, arXiv 2307.08691: kernels of the first generation at 25 to 40 % of an A100's peak; the rest per score, in float32 FLOPs"
_FLASH_3 = "Shah 2024, arXiv 2407.08608: cuDNN near flash attention 3 on Hopper"
KINDS: dict[str, Kind] = {
    "elementwise": Kind("RRZE gpu-benches and NeuSight: PyTorch's elementwise kernels reach the copy bandwidth"),
    "norm": Kind("NeuSight kernels: layer norm and softmax at .59 to .72 of the peak where copies reach .87", bandwidth_share=0.75),
    "matmul": Kind("`matmul_efficiency` of the catalogue, see `TILES`"),
    "convolution": Kind("as an implicit matrix product: cuDNN developer guide, tensor-core kernels"),
    "winograd convolution": Kind("Lavin 2015, arXiv 1509.09308: F(2x2, 3x3) needs 2.25 times fewer multiplications", matmul_share=2.25),
    "depthwise convolution": Kind("float32 units: cuDNN and aten/src/ATen/native/cuda/DepthwiseConv2d.cu", score_flops=2.0, matmul_share=math.inf),
    "flash attention": Kind(_FLASH_2, score_flops=6.8),
    "flash attention backward": Kind(_FLASH_2, score_flops=33.0),
    "efficient attention": Kind(_FLASH_1, score_flops=21.0),
    "efficient attention backward": Kind(_FLASH_1, score_flops=86.0),
    "cudnn attention": Kind(_FLASH_3, score_flops=6.8),
    "cudnn attention backward": Kind(_FLASH_3, score_flops=33.0),
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of `accumulation` micro-steps, each field a number or an array as `batch` is one.

    `low_seconds` and `high_seconds` enclose what is not known of the card: an unmeasured matmul efficiency, throttling of power-limited
    cards, the host's time per launch. `flops` are those of forward and backward, without recomputation; at the card's peaks they would
    take `ideal_seconds`, each product at that of the arithmetic it runs in.
    """

    batch: Any
    accumulation: Any
    seconds: Any
    low_seconds: Any
    high_seconds: Any
    device_seconds: Any
    host_seconds: Any
    launches: Any  # kernels in the step
    phases: dict[str, Any]  # device seconds of forward, backward, recompute and step
    flops: Any
    ideal_seconds: Any
    tokens_per_sample: int

    @property
    def samples_per_s(self) -> Any:
        """Throughput."""
        return self.batch * self.accumulation / self.seconds

    @property
    def tokens_per_s(self) -> Any:
        """Throughput in tokens."""
        return self.samples_per_s * self.tokens_per_sample

    @property
    def mfu(self) -> Any:
        """Model FLOPs utilisation: the time that forward and backward take at the card's peak rates, over that of the step (Chowdhery 2022)."""
        return self.ideal_seconds / self.seconds


@dataclass(frozen=True)
class _Rates:
    """What a card reaches: FLOP/s by dtype, and bytes per second."""

    matmul_flops_per_s: dict[str, float]
    scalar_flops_per_s: float
    bytes_per_s: float


def step_time(tape: Tape, gpu: Gpu, batch: ArrayLike, accumulation: ArrayLike | None = None) -> StepTime:
    """Time of one optimizer step at micro-batch `batch`, with `accumulation` micro-steps (default: the recipe's); both may be arrays.

    t_kernel = max(arithmetic, bytes / bandwidth) + kernel_seconds;  t_step = max(sum of t_kernel, launches x launch_seconds), where the
    arithmetic of a product is that of whole tiles in whole waves: ceil(tiles / SMs) SMs a b 2(k + fill) / (peak efficiency share), over the
    best tile a x b.
    Raises `InvalidInputError` for a batch below 1, a card without a bandwidth or a peak rate, or a tape of another compute capability.
    """
    if np.any(np.asarray(batch) < 1):
        raise InvalidInputError(f"batch is {np.asarray(batch)}; expected at least 1")
    require_same_kernels(tape, gpu)
    micro_steps = np.asarray(tape.accumulation if accumulation is None else accumulation)
    likely, fast, slow = (_rates(gpu, tape.precision, end) for end in ("likely", "low", "high"))
    work = _Work(*tape.operations.distinct)
    phases = _whole_step(work.seconds(gpu, likely, batch), micro_steps)
    ends = [phases if rates == likely else _whole_step(work.seconds(gpu, rates, batch), micro_steps) for rates in (likely, fast, slow)]
    totals = [sum(end.values()) for end in ends]
    launches = sum(_whole_step(work.launches(batch), micro_steps).values())
    hosts = [launches * seconds for seconds in _launch_seconds(gpu)]
    seconds = [np.maximum(device, host) for device, host in zip(totals, hosts, strict=True)]
    flops, ideal_seconds = work.useful(gpu, likely, batch)
    return StepTime(
        batch=np.asarray(batch),
        accumulation=micro_steps,
        seconds=seconds[0],
        low_seconds=seconds[1],
        high_seconds=seconds[2],
        device_seconds=totals[0],
        host_seconds=hosts[0],
        launches=launches,
        phases=phases,
        flops=micro_steps * flops,
        ideal_seconds=micro_steps * ideal_seconds,
        tokens_per_sample=tape.tokens_per_sample,
    )


def curve(tape: Tape, gpu: Gpu, largest: int, accumulation: int | None = None) -> StepTime:
    """Step times at up to 512 micro-batches from 1 to `largest`, evenly spread."""
    return step_time(tape, gpu, np.unique(np.linspace(1, largest, min(largest, 512)).astype(np.int64)), accumulation)


def knee(times: StepTime, share: float = 0.9) -> int:
    """The smallest micro-batch of a curve with `share` of its best throughput; larger ones cost memory and gain little."""
    return int(times.batch[np.argmax(times.samples_per_s >= share * np.max(times.samples_per_s))])


# -- kernels ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """The distinct kernels of a tape, and how often each phase runs each of them."""

    operations: Operations
    counts: dict[str, Array]

    def seconds(self, gpu: Gpu, rates: _Rates, batch: ArrayLike) -> dict[str, Array]:
        """Device seconds of one pass through each phase."""
        kinds, dtypes = self.operations.kinds, self.operations.dtypes
        times = self.operations.column("moved_bytes", batch) / (rates.bytes_per_s * np.array([_kind(kind).bandwidth_share for kind in kinds]))
        products = np.flatnonzero(self.operations.column("m", 1))
        wanted = np.array([_rate_dtype(kinds[i], dtypes[i], rates) for i in products])
        for dtype in set(wanted):
            rows = products[wanted == dtype]
            columns = [self.operations.column(name, batch, rows) for name in ("groups", "m", "n", "k")]
            arithmetic = _product_seconds(columns, [_kind(kinds[i]) for i in rows], gpu, rates, dtype)
            times[..., rows] = np.maximum(times[..., rows], arithmetic)
        times += runtime().kernel_seconds * self.operations.column("launches", batch)
        return self._by_phase(times)

    def launches(self, batch: ArrayLike) -> dict[str, Array]:
        """Kernels launched in one pass through each phase."""
        return self._by_phase(self.operations.column("launches", batch))

    def _by_phase(self, values: Array) -> dict[str, Array]:
        sums = values @ np.stack(list(self.counts.values()), axis=1)
        return {phase: sums[..., position] for position, phase in enumerate(self.counts)}

    def useful(self, gpu: Gpu, rates: _Rates, batch: ArrayLike) -> tuple[Array, Array]:
        """FLOPs of the products of forward and backward, and their seconds at the peak rates."""
        groups, m, n, k = (self.operations.column(name, batch) for name in ("groups", "m", "n", "k"))
        flops = 2 * groups * m * n * k * (self.counts["forward"] + self.counts["backward"])
        words = zip(self.operations.kinds, self.operations.dtypes, self.operations.column("m", 1), strict=True)
        peaks = np.array([_peak(gpu, _rate_dtype(kind, dtype, rates)) if rows else 1.0 for kind, dtype, rows in words])
        return flops.sum(-1), (flops / peaks).sum(-1)


def _whole_step(passes: dict[str, Array], micro_steps: NDArray[np.int64]) -> dict[str, Array]:
    """One optimizer step from one pass through each phase: all micro-steps but the first add their gradients to those that are there."""
    return {
        "forward": micro_steps * passes["forward"],
        "backward": micro_steps * passes["backward"] + passes["gradient"] + (micro_steps - 1) * passes["accumulation"],
        "recompute": micro_steps * passes["recompute"],
        "step": passes["step"],
    }


def _product_seconds(columns: list[Array], kinds: list[Kind], gpu: Gpu, rates: _Rates, dtype: str) -> Array:
    """Arithmetic time of matrix products: whole tiles in whole waves over the multiprocessors, at the best tile."""
    groups, m, n, k = (np.maximum(1, column) for column in columns)
    multiprocessors = gpu.sm_count or 108
    fill = FILL[dtype] if gpu.capability >= (8, 0) else min(FILL[dtype], 32)
    most = np.maximum(1, k / _SPLIT_K)
    best = np.full(np.broadcast_shapes(*(column.shape for column in columns)), np.inf)
    for rows, wide, share in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / wide) * groups
        split = np.clip(np.floor(multiprocessors / tiles), 1, most)
        waves = np.ceil(tiles * split / multiprocessors)
        executed = waves * (k / split + fill) * (multiprocessors * rows * wide * 2 / (rates.matmul_flops_per_s[dtype] * share))
        np.minimum(best, executed, out=best)
    matmul_share = np.array([kind.matmul_share for kind in kinds])
    score_flops = np.array([kind.score_flops for kind in kinds])
    return np.asarray(best / matmul_share + score_flops * groups * m * n / rates.scalar_flops_per_s)


def _kind(name: str) -> Kind:
    return KINDS.get(name, KINDS["elementwise"])


# -- rates -----------------------------------------------------------------------------------------------------------------------------


def _rate_dtype(kind: str, dtype: str, rates: _Rates) -> str:
    """The arithmetic a product runs in: float32 convolutions are TF32 by default where there is any, matmuls only when asked."""
    if dtype == "fp32" and "tf32" in rates.matmul_flops_per_s and (kind == "convolution" or "asked tf32" in rates.matmul_flops_per_s):
        return "tf32"
    return dtype


def _peak(gpu: Gpu, dtype: str) -> float:
    rate = gpu.peak_flops_per_s(dtype)
    if rate is None:
        field = "fp32_flops_per_s" if dtype == "fp32" else f"{dtype}_dense_flops_per_s"
        raise InvalidInputError(f"{gpu.id} has no {field}; step time needs it, add it to the row")
    return rate


def _rates(gpu: Gpu, precision: str, end: str) -> _Rates:
    """What the card reaches, likely or at either end of what is not known ("low" and "high" seconds)."""
    if gpu.bandwidth_bytes_per_s is None:
        raise InvalidInputError(f"{gpu.id} has no bandwidth_bytes_per_s; step time needs it, add it to the row")
    present = [dtype for dtype in ("fp32", "tf32", "fp16", "bf16") if gpu.peak_flops_per_s(dtype)]
    reached: dict[str, float] = {dtype: _peak(gpu, dtype) * _efficiency(gpu, dtype, end) for dtype in present}
    if precision == "tf32" and "tf32" in reached:
        reached["asked tf32"] = reached["tf32"]
    bandwidth = gpu.bandwidth_bytes_per_s * (gpu.bandwidth_efficiency or _BANDWIDTH_SHARE)
    return _Rates(reached, reached["fp32"], bandwidth)


def _launch_seconds(gpu: Gpu) -> tuple[float, float, float]:
    """Host seconds per kernel: likely, low and high; all the same where the row has a measured one."""
    known = runtime()
    return (gpu.launch_seconds,) * 3 if gpu.launch_seconds else (known.launch_seconds, known.launch_seconds_low, known.launch_seconds_high)


def _efficiency(gpu: Gpu, dtype: str, end: str) -> float:
    """Measured matmul rate over the peak; where the row has none, the median of the same architecture's, or an end of their range."""
    known = _efficiencies(gpu).get(dtype)
    if known is not None:
        return known * (_POWER_LIMITED if gpu.power_limited and end == "high" else 1.0)
    alike = [_efficiencies(row)[dtype] for row in Gpu.all() if dtype in _efficiencies(row) and _alike(row, gpu)] or _ANY_EFFICIENCY
    return {"likely": statistics.median(alike), "low": max(alike), "high": min(alike)}[end]


def _efficiencies(gpu: Gpu) -> dict[str, float]:
    return {str(dtype): rate for dtype, rate in (gpu.matmul_efficiency or {}).items()}


def _alike(row: Gpu, gpu: Gpu) -> bool:
    """Same architecture, and tensor cores of the same width against the float32 units (GeForce halves them)."""
    ratios = [(card.fp16_dense_flops_per_s or 0) / (card.fp32_flops_per_s or 1) for card in (row, gpu)]
    return row.capability[0] == gpu.capability[0] and 0.6 < (ratios[0] + 1e-9) / (ratios[1] + 1e-9) < 1.7
