# SPDX-License-Identifier: Apache-2.0
"""Recordings of one workload at several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsmodel.hardware import Gpu
from bsmodel.recording.tracing import trace
from bsmodel.tape import Lengths
from bsmodel.training import Training
from bsmodel.workloads import Workload


def trace_lengths(
    workload: Callable[[int], Workload],
    training: Training | None = None,
    gpu: Gpu | None = None,
    lengths: Sequence[int] = (256, 384, 512, 4096),
    option: str = "seq_len",
) -> Lengths:
    """Record a workload at a few lengths, and tell every other: `trace_lengths(...).at(1920)` is an ordinary tape.

    `workload(s)` is the workload with samples of s tokens. The first three lengths give every size as a polynomial in s, and must be multiples of what
    they are apart; further ones check it, and the last is as far as it is known to hold. Raises what `trace` and `Lengths.through` raise.
    """
    return Lengths.through([trace(workload(length), training, gpu) for length in lengths], lengths, option)
