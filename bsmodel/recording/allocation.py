# SPDX-License-Identifier: Apache-2.0
"""One allocation as it is written down while a step is recorded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Allocation:
    """One storage on the device, or one buffer inside a kernel."""

    size_bytes: int
    operator: str
    module: str
    phase: str  # "forward", "backward" (recomputation included) or "step"
    category: str
    owner: str = ""  # the module of a parameter, and of its gradient and optimizer state
    formula: str = ""  # of `bsmodel.tape.workspaces`, for what comes on top of `size_bytes` and is no polynomial in the batch
    parameters: tuple[int, ...] = ()
    kind: str = ""  # of a workspace that a library sizes by rules nobody publishes
    excess_bytes: int = 0  # how much larger that may be
    stream: int = 0  # of whose blocks the allocator takes it: 0 is the default one's
