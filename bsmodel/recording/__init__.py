# SPDX-License-Identifier: Apache-2.0
"""From a workload and a recipe to a tape: the real step runs on pretended device tensors, and everything it allocates is written down."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsmodel.recording.cache import cache_folder, keep, kept_as, kept_tape, key_of, new_tape, recorded, tape_path, versions, with_torch

if TYPE_CHECKING:
    from bsmodel.recording.lengths import trace_lengths
    from bsmodel.recording.tracing import record, trace

__all__ = ("cache_folder", "keep", "kept_as", "kept_tape", "key_of", "new_tape", "record", "recorded", "tape_path", "trace", "trace_lengths", "versions")


def __getattr__(name: str) -> Any:
    if name in ("record", "trace"):  # these need torch
        return getattr(with_torch(), name)
    if name == "trace_lengths":
        with_torch()
        return importlib.import_module("bsmodel.recording.lengths").trace_lengths
    raise AttributeError(f"module 'bsmodel.recording' has no attribute {name!r}")
