# SPDX-License-Identifier: Apache-2.0
"""From a workload and a recipe to a tape: the real step runs on pretended device tensors, and everything it allocates is written down."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsmodel.recording.cache import (
    cache_folder,
    keep,
    kept_as,
    kept_lengths,
    kept_tape,
    key_of,
    lengths_path,
    new_tape,
    recorded,
    recorded_lengths,
    tape_path,
    versions,
    with_torch,
)

if TYPE_CHECKING:
    from bsmodel.recording.lengths import trace_lengths
    from bsmodel.recording.recordings import record
    from bsmodel.recording.tracing import trace

__all__ = (
    "cache_folder",
    "keep",
    "kept_as",
    "kept_lengths",
    "kept_tape",
    "key_of",
    "lengths_path",
    "new_tape",
    "record",
    "recorded",
    "recorded_lengths",
    "tape_path",
    "trace",
    "trace_lengths",
    "versions",
)

_WITH_TORCH = {"trace": "tracing", "record": "recordings", "trace_lengths": "lengths"}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        with_torch()  # said where it is not installed
        return getattr(importlib.import_module(f"bsmodel.recording.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'bsmodel.recording' has no attribute {name!r}")
