# SPDX-License-Identifier: Apache-2.0
"""Sizes of buffers inside CUDA kernels that are no polynomial in the batch: formulas over shapes and the device, torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bsmodel.hardware import Gpu, rule_of

_LEAST_PIXELS = 1 << 10  # that a share of a convolution's weight gradient sums over


@dataclass(frozen=True)
class Formula:
    """Bytes of one buffer from its shape parameters and the device, and where the formula stands."""

    size_bytes: Callable[..., int]
    source: str
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of parameters that are no sizes; those are from 0 on


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _last_power(value: int) -> int:
    return 1 << (max(1, value).bit_length() - 1)


def _reduction(gpu: Gpu, outputs: int, inputs: int, along_rows: int, dense: int) -> int:
    """Staging memory of a reduction that is split over thread blocks, float32 accumulators.

    `along_rows` is 1 where the fastest dimension is kept (a sum over rows) and each thread block then stages its whole width. A thread writes as
    many of up to 4 outputs at once as divide the `dense` elements of that dimension that lie side by side (1: they do not).
    """
    vector = next(width for width in (4, 2, 1) if dense % width == 0)
    if outputs < 1 or inputs < 1:
        return 0
    kept, reduced = (_up(outputs, vector), inputs) if along_rows else (inputs, outputs)
    limit = 512 // (vector if along_rows else 1)
    wide, high = (min(limit, _last_power(size)) for size in (kept, reduced))
    width = min(wide, 32)
    height = min(high, limit // width)
    width = min(wide, limit // height)
    step_input, step_output = (1, width) if along_rows else (width, 1)
    if _up(inputs, step_input) < min(16 * height, 256):
        return 0
    step_input *= height
    target = (gpu.sm_count or 108) * (gpu.threads_per_sm // (width * height))
    grid = _up(_up(outputs, vector) if along_rows else outputs, step_output)
    values = _up(inputs, step_input)
    if values < 256 or grid > target:
        return 0
    blocks = max(min(_up(target, grid), _up(values, 16)), _up(values, 256))
    return 0 if blocks < 2 else 4 * outputs * blocks * (width * vector if along_rows else 1)


def _halves(gpu: Gpu, outputs: int, inputs: int, along_rows: int, dense: int) -> int:
    """The same with accumulators of 16 bits."""
    return _reduction(gpu, outputs, inputs, along_rows, dense) // 2


def _embedding_partials(gpu: Gpu, indices: int, rows: int, columns: int) -> int:
    """Partial gradients of a sorted embedding backward: one float32 row per segment of equal indices or per ten indices."""
    return 0 if indices <= 3072 else (indices // 10 + min(indices, rows)) * columns * 4


def _embedding_indices(gpu: Gpu, indices: int, rows: int, columns: int) -> int:
    """Sorted indices, their origins and counts, and the sort's double buffers."""
    return 0 if indices <= 3072 else 6 * indices * 8


def _filter_gradient(gpu: Gpu, rows: int, columns: int, pixels: int) -> int:
    """float32 partial sums of a convolution's weight gradient, split until its 128 x 128 tiles occupy every multiprocessor.

    Each share sums over at least a thousand pixels.
    """
    tiles = _up(rows, 128) * _up(columns, 128)
    splits = min((gpu.sm_count or 108) // max(1, tiles), pixels // _LEAST_PIXELS)
    return splits * rows * columns * 4 if splits > 1 else 0


def _batch_norm_partials(gpu: Gpu, rows: int, channels: int, values: int) -> int:
    """float32 sums, `values` a channel, of each of up to 128 thread blocks that share the rows; fewer than 8 do not share."""
    width = min(_last_power(channels), 32)
    height = min(_last_power(_up(rows, 16)), 512 // width)
    blocks = min(_up(rows, height * 16), 128)
    return 4 * values * channels * blocks if blocks >= 8 else 0


def _depthwise_copies(gpu: Gpu, everything: int, gradient_of: int, width: int) -> int:
    """Channels-last copies of all operands of a depthwise convolution of float16, forward (0) or for the gradient of its input (1) or filters (2).

    Consumer cards have kernels that need none for the first, and for the second where filters are narrow.
    """
    own = gpu.capability in ((8, 6), (8, 7), (8, 9)) and (gradient_of == 0 or (gradient_of == 1 and width <= 3))
    return 0 if own else everything


FORMULAS: dict[str, Formula] = {
    "reduction": Formula(_reduction, "aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig and global_memory_size", {"along_rows": (0, 1)}),
    "reduction of halves": Formula(_halves, "aten/src/ATen/native/cuda/Reduce.cuh, global_memory_size", {"along_rows": (0, 1)}),
    "embedding partials": Formula(_embedding_partials, "aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu"),
    "embedding indices": Formula(_embedding_indices, "aten/src/ATen/native/cuda/Embedding.cu, embedding_dense_backward_cuda"),
    "batch norm partials": Formula(_batch_norm_partials, "aten/src/ATen/native/cuda/Normalization.cuh, flexible_launch_configs"),
    "depthwise copies": Formula(_depthwise_copies, "cuDNN 9.19 plans as the library reports them, over 160 shapes on four cards", {"gradient_of": (0, 2)}),
    "filter gradient": Formula(_filter_gradient, "cuDNN 9.19 plans as the library reports them; splits derived from occupancy"),
}


def is_taken(kind: str, gpu: Gpu) -> bool:
    """Whether a card's library likely takes the workspace that its planner wants for a convolution of this kind."""
    return (gpu.workspaces or {}).get(kind, rule_of(kind, gpu.compute_capability).taken)


def buffer_bytes(name: str, parameters: tuple[int, ...], gpu: Gpu) -> int:
    """Bytes of the buffer `name` for these parameters on this device; none without a name."""
    return FORMULAS[name].size_bytes(gpu, *parameters) if name else 0
