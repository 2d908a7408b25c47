# SPDX-License-Identifier: Apache-2.0
"""What each class of kernels reaches of a card, and how long a matrix product takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsmodel.hardware import Gpu
from bsmodel.timing.rates import Rates, peak_flops_per_s

Array = NDArray[np.float64]


# Rows and columns of the output that one thread block of a matrix product computes, and the share of the best rate such blocks reach.
# Shares by hand from kernel times in the NeuSight repository (sitar-lab/NeuSight, linear layers on five GPUs).
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.97), (128, 64, 0.9), (64, 128, 0.9), (64, 64, 0.8), (32, 32, 0.55))
# Steps of the contraction that pass before a tile's pipeline runs: (stages - 1) x depth of a thread block's shape
# (CUTLASS, include/cutlass/gemm/device/default_gemm_configuration.h: 3 stages of 64 in half precision and float8, and of 32 in TF32 from Ampere on,
# 2 stages of 32 before, 2 of 8 on the float32 units).
FILL = {"fp8": 128, "fp16": 128, "bf16": 128, "tf32": 64, "fp32": 8}
_SPLIT_K = 512  # a thread block keeps at least this much of the contraction when a product with few tiles is split along it


@dataclass(frozen=True)
class Kind:
    """What distinguishes one class of kernels: its share of the copy bandwidth, and what it computes on the float32 units.

    A fused attention computes its products at the matmul rate and, beside them, `score_flops` per score (scaling, maximum, exponential,
    sums) at the float32 rate; a depthwise convolution two per tap. `matmul_share` is what its products reach of the card's best, `saves` how
    many times less arithmetic its algorithm needs than the product. `tap_instructions` are what the card issues for one multiply-add of a
    depthwise convolution, `block` the side of the blocks that it multiplies whole, and `step_seconds` what each of its `groups` takes
    before it multiplies, where they run one after the other. `block_bytes_per_s` is what one thread block moves where there are only `groups`.
    """

    source: str
    bandwidth_share: float = 1.0
    score_flops: float = 0.0
    matmul_share: float = 1.0
    saves: float = 1.0
    tap_instructions: float = 0.0
    block: int = 0
    step_seconds: float = 0.0
    block_bytes_per_s: float = math.inf


_FLASH_2 = "Dao 2023, arXiv 2307.08691: 73 % of an A100's peak forward, 63 % backward at width 128; the rest of the time per score, in float32 FLOPs"
_FLASH_1 = "Dao 2023, arXiv 2307.08691: kernels of the first generation at 25 to 40 % of an A100's peak; the rest per score, in float32 FLOPs"
_FLASH_3 = "Shah 2024, arXiv 2407.08608: cuDNN near flash attention 3 on Hopper"
_WINOGRAD = (
    "Lavin 2015, arXiv 1509.09308: F(2x2, 3x3) needs 2.25 times fewer multiplications, forward and for the gradient of the input; cuDNN developer guide, "
    "cudnnConvolutionBwdFilterAlgo_t: the fused one is not implemented for that of the filter"
)
_TIMM = "timm, results/benchmark-infer-amp-*.csv"
_BATCH_NORM = (
    "xwang233/code-snippet, batchnorm3d-channels-last, contiguous, 32 and 64 channels of 0.1 to 20 M elements, half precision, cuDNN 8.2, A100 and V100: 7.3 "
    "to 11 GB/s a channel forward and 3.9 to 5.6 backward at three and five passes, n = 52 each; bandwidth as other norms"
)
_GROUPED = (
    f"{_TIMM} of torch 1.13 to 2.9 but channels-last 1.13: nine RegNetX of 24 to 168 channels a group on four cards, whole models at 0.86 to 1.18 of what is "
    "measured with a tile of 128 for each group, n = 72; checked on the training tables"
)
_NARROW_GROUPED = (
    f"{_TIMM} nhwc of torch 1.13 and 2.4: four ResNeXt and three RegNetX of 4 to 32 channels a group, where groups packed into blocks of 32 take 1 to 8 times "
    "their arithmetic; measured 0 to 10, most of it within what the rest of the model leaves open"
)
_NATIVE_DEPTHWISE = (
    f"{_TIMM} nchw of torch 1.13 to 2.9 without dynamo, three convmixers (7 x 7, 9 x 9) on RTX 3090, 4090, 5090: 20 to 28 instructions a tap, median 26, "
    "n = 15 (34 to 37 on an RTX PRO 6000 held to 300 W, n = 3); checked on the training tables"
)
_DEPTHWISE = (
    f"{_TIMM} dynamo of torch 2.4 and 2.9, convmixer 7 x 7 on RTX 4090, 5090 and PRO 6000: 1.6 to 5.5 instructions a tap, median 2.5, n = 4; without dynamo "
    "6.5 to 9.9 are an upper bound, n = 3"
)
_RNN = "xwang233/code-snippet, cudnn-rnn-bench-62143 (pytorch pull request 62143, torch 1.11)"
_RECURRENCE = f"{_RNN}: 8 to 15 us a step of one layer, n = 8; DeepBench NV_V100: weights come from memory at two thirds of its bandwidth"
_FURTHER_RECURRENCE = f"{_RNN}: layers overlap, four take 22 to 27 us a step, n = 10"
_RECURRENCE_ON_CHIP = f"{_RNN}: 0.6 to 2.6 us a step and layer, n = 11"
KINDS: dict[str, Kind] = {
    "elementwise": Kind("RRZE gpu-benches and NeuSight: PyTorch's elementwise kernels reach the copy bandwidth"),
    "beside convolution": Kind("as copies: NVIDIA, Convolutional Layers User's Guide (layouts); aten/src/ATen/native/Convolution.cpp (biases)"),
    "norm": Kind("NeuSight kernels: layer norm and softmax at .59 to .72 of the peak where copies reach .87", bandwidth_share=0.75),
    "contiguous batch norm": Kind(_BATCH_NORM, bandwidth_share=0.75, block_bytes_per_s=8.7e9),
    "contiguous batch norm backward": Kind(_BATCH_NORM, bandwidth_share=0.75, block_bytes_per_s=5.1e9),
    "matmul": Kind("`matmul_efficiency` of the catalogue, see `TILES`"),
    "convolution": Kind("as an implicit matrix product: cuDNN developer guide, tensor-core kernels"),
    "winograd convolution": Kind(_WINOGRAD, saves=3 / (2 / 2.25 + 1)),  # over the three products of a step
    "grouped convolution": Kind(_GROUPED, block=128),
    "narrow grouped convolution": Kind(_NARROW_GROUPED, block=32),
    "native depthwise convolution": Kind(_NATIVE_DEPTHWISE, tap_instructions=26.0, matmul_share=math.inf),
    "depthwise convolution": Kind(_DEPTHWISE, tap_instructions=2.5, matmul_share=math.inf),
    "recurrence": Kind(_RECURRENCE, bandwidth_share=2 / 3, step_seconds=12e-6),
    "further recurrence": Kind(_FURTHER_RECURRENCE, bandwidth_share=2 / 3, step_seconds=5e-6),
    "recurrence on chip": Kind(_RECURRENCE_ON_CHIP, step_seconds=1.5e-6),
    "sequence product": Kind("as a matrix product: cuDNN developer guide, recurrent layers"),
    "flash attention": Kind(_FLASH_2, score_flops=6.8),
    "flash attention backward": Kind(_FLASH_2, score_flops=33.0),
    "efficient attention": Kind(_FLASH_1, score_flops=21.0),
    "efficient attention backward": Kind(_FLASH_1, score_flops=86.0),
    "cudnn attention": Kind(_FLASH_3, score_flops=6.8),
    "cudnn attention backward": Kind(_FLASH_3, score_flops=33.0),
}


def kind_of(name: str) -> Kind:
    return KINDS.get(name, KINDS["elementwise"])


def product_seconds(columns: list[Array], kinds: list[Kind], gpu: Gpu, rates: Rates, dtype: str) -> Array:
    """Arithmetic time of matrix products: whole tiles in whole waves over the multiprocessors, at the best tile."""
    groups, m, n, k = (np.maximum(1, column) for column in columns)
    step_seconds = np.array([kind.step_seconds for kind in kinds])
    steps, side_by_side = np.where(step_seconds > 0, groups, 1), np.where(step_seconds > 0, 1, groups)
    matmul_share = np.array([kind.matmul_share * kind.saves for kind in kinds])
    score_seconds = np.array([kind.score_flops / rates.scalar_flops_per_s + kind.tap_instructions / rates.instructions_per_s for kind in kinds])
    peak_flops_per_s(gpu, dtype)  # which says so where there is none
    tiles = _tile_seconds([side_by_side, m, n, k], kinds, gpu, rates.matmul_flops_per_s[dtype], dtype)
    return np.asarray(steps * (step_seconds + tiles / matmul_share) + score_seconds * groups * m * n)


def _tile_seconds(columns: list[Array], kinds: list[Kind], gpu: Gpu, flops_per_s: float, dtype: str) -> Array:
    """By the best tile, or in blocks of one side, of which there are always enough to fill a card."""
    groups, m, n, k = columns
    multiprocessors = gpu.sm_count or 108
    fill = FILL[dtype] if gpu.capability >= (8, 0) else min(FILL[dtype], 32)
    most = np.maximum(1, k / _SPLIT_K)
    best = np.full(np.broadcast_shapes(*(column.shape for column in columns)), np.inf)
    for rows, wide, share in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / wide) * groups
        split = np.clip(np.floor(multiprocessors / tiles), 1, most)
        waves = np.ceil(tiles * split / multiprocessors)
        executed = waves * (k / split + fill) * (multiprocessors * rows * wide * 2 / (flops_per_s * share))
        np.minimum(best, executed, out=best)
    side = np.array([kind.block or 1 for kind in kinds])
    in_blocks = groups * np.ceil(m / side) * np.ceil(n / side) * side**2 * k * (2 / flops_per_s)
    return np.where(np.array([kind.block > 0 for kind in kinds]), in_blocks, best)
