# SPDX-License-Identifier: Apache-2.0
"""What a head gives: the tensors of a sample, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bsmodel.workloads.batches import Field

Tensors = dict[str, Field]
Asked = Mapping[str, int]  # the options `seq_len` and `image_size` that are given
OWN = "write a Workload in a Python file and give FILE.py:NAME"


@dataclass(frozen=True)
class Made:
    """The tensors of a sample, what is to be said of them, and how many tokens a sample has."""

    tensors: Tensors
    remarks: tuple[str, ...] = ()
    tokens_per_sample: int = 1
