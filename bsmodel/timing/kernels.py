# SPDX-License-Identifier: Apache-2.0
"""What each class of kernels reaches of a card, and how long a matrix product takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bsmodel.hardware import Gpu
from bsmodel.timing.rates import Rates

Array = NDArray[np.float64]


# Rows and columns of the output that one thread block of a matrix product computes, and the share of the best rate such blocks reach.
# Shares by hand from kernel times in the NeuSight repository (sitar-lab/NeuSight, linear layers on five GPUs).
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.97), (128, 64, 0.9), (64, 128, 0.9), (64, 64, 0.8), (32, 32, 0.55))
# Steps of the contraction that pass before a tile's pipeline runs: (stages - 1) x depth of a thread block's shape
# (CUTLASS, include/cutlass/gemm/device/default_gemm_configuration.h: 3 stages of 64 in half precision and of 32 in TF32 from Ampere on,
# 2 stages of 32 before, 2 of 8 on the float32 units).
FILL = {"fp16": 128, "bf16": 128, "tf32": 64, "fp32": 8}
_SPLIT_K = 512  # a thread block keeps at least this much of the contraction when a product with few tiles is split along it


@dataclass(frozen=True)
class Kind:
    """What distinguishes one class of kernels: its share of the copy bandwidth, and what it computes on the float32 units.

    A fused attention computes its products at the matmul rate and, beside them, `score_flops` per score (scaling, maximum, exponential,
    sums) at the float32 rate; a depthwise convolution two per tap. `matmul_share` is what its products reach of the card's best, `saves` how
    many times less arithmetic its algorithm needs than the product.
    """

    source: str
    bandwidth_share: float = 1.0
    score_flops: float = 0.0
    matmul_share: float = 1.0
    saves: float = 1.0


_FLASH_2 = "Dao 2023, arXiv 2307.08691: 73 % of an A100's peak forward, 63 % backward at width 128; the rest of the time per score, in float32 FLOPs"
_FLASH_1 = "Dao 2023, arXiv 2307.08691: kernels of the first generation at 25 to 40 % of an A100's peak; the rest per score, in float32 FLOPs"
_FLASH_3 = "Shah 2024, arXiv 2407.08608: cuDNN near flash attention 3 on Hopper"
_WINOGRAD = (
    "Lavin 2015, arXiv 1509.09308: F(2x2, 3x3) needs 2.25 times fewer multiplications, forward and for the gradient of the input; cuDNN developer guide, "
    "cudnnConvolutionBwdFilterAlgo_t: the fused one is not implemented for that of the filter"
)
KINDS: dict[str, Kind] = {
    "elementwise": Kind("RRZE gpu-benches and NeuSight: PyTorch's elementwise kernels reach the copy bandwidth"),
    "norm": Kind("NeuSight kernels: layer norm and softmax at .59 to .72 of the peak where copies reach .87", bandwidth_share=0.75),
    "matmul": Kind("`matmul_efficiency` of the catalogue, see `TILES`"),
    "convolution": Kind("as an implicit matrix product: cuDNN developer guide, tensor-core kernels"),
    "winograd convolution": Kind(_WINOGRAD, saves=3 / (2 / 2.25 + 1)),  # over the three products of a step
    "depthwise convolution": Kind("float32 units: cuDNN and aten/src/ATen/native/cuda/DepthwiseConv2d.cu", score_flops=2.0, matmul_share=math.inf),
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
    matmul_share = np.array([kind.matmul_share * kind.saves for kind in kinds])
    score_flops = np.array([kind.score_flops for kind in kinds])
    return np.asarray(best / matmul_share + score_flops * groups * m * n / rates.scalar_flops_per_s)
