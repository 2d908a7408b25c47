# SPDX-License-Identifier: Apache-2.0
"""What a transformers model is trained to do, and the batch that goes with it."""

from bsmodel.workloads.heads.made import Made
from bsmodel.workloads.heads.tables import HEADS, Head, head_of, made

__all__ = ("HEADS", "Head", "Made", "head_of", "made")
