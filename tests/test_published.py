# SPDX-License-Identifier: Apache-2.0
"""Numbers that others have published."""

import pytest

from bsmodel import planning
from bsmodel.memory.allocator import CachingAllocator, round_size, segment_size
from bsmodel.recording.cuda_like.kernels import cublas_handle
from bsmodel.units import MiB


def test_linear_scaling_of_goyal_2017():
    """arXiv 1706.02677: 0.1 at 256 gives 3.2 at 8192 (section 5.1)."""
    assert planning.learning_rate("sgd", 8192, 0.1, 256) == (pytest.approx(3.2), "linear")


def test_square_root_scaling_of_you_2019():
    """arXiv 1904.00962, table 4: LAMB's BERT rate doubles from batch 512 to 2048 and again to 8192."""
    rates = [planning.learning_rate("layerwise", batch, 5e-3, 32_768)[0] for batch in (512, 2048, 8192, 32_768)]

    assert rates == pytest.approx([5e-3 / 2**3, 5e-3 / 2**2, 5e-3 / 2, 5e-3])


@pytest.mark.parametrize(
    ("requested", "rounded", "segment"),
    [
        (1, 512, 2 * MiB),
        (513, 1024, 2 * MiB),
        (MiB, MiB, 2 * MiB),
        (MiB + 1, MiB + 512, 20 * MiB),
        (10 * MiB, 10 * MiB, 10 * MiB),
        (10 * MiB + 1, 10 * MiB + 512, 12 * MiB),
    ],
)
def test_rounding_and_segment_sizes_of_the_allocator(requested, rounded, segment):
    """c10/core/AllocatorConfig.h: kMinBlockSize, kSmallSize, kLargeBuffer, kMinLargeAlloc, kRoundLarge."""
    assert (round_size(requested), segment_size(round_size(requested))) == (rounded, segment)


def test_a_large_block_keeps_up_to_a_mebibyte_of_slack():
    """11 MiB in a 12 MiB segment is not split: the remainder has to exceed 1 MiB."""
    allocator = CachingAllocator()
    allocator.malloc(11 * MiB)

    assert allocator.allocated_bytes == allocator.reserved_bytes == 12 * MiB


def test_cublas_workspaces():
    """PyTorch issue 95668: 8,519,680 bytes on an A10G; 32 MiB on Hopper since pull request 89027."""
    assert cublas_handle((8, 6)).size_bytes == 8_519_680
    assert cublas_handle((9, 0)).size_bytes == 32 * MiB
