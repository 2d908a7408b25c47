# SPDX-License-Identifier: Apache-2.0
"""From a workload and a recipe to a tape: the real step runs on pretended device tensors, and everything it allocates is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsmodel.recording.tracing import record, trace

__all__ = ("record", "trace")


def __getattr__(name: str) -> Any:
    if name in __all__:  # these need torch, which takes two seconds to import
        from bsmodel.recording import tracing

        return getattr(tracing, name)
    raise AttributeError(f"module 'bsmodel.recording' has no attribute {name!r}")
