# SPDX-License-Identifier: Apache-2.0
"""Batches and micro-steps that a recording can be asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.tape.tape import Tape
from bsmodel.units import whole, wholes


def micro_batches(tape: Tape, batch: Any) -> NDArray[np.int64]:
    """One or several micro-batches; raises `InvalidInputError` for what is no whole number of at least 1, or where the step takes another path."""
    batches = wholes("batch", batch)
    if tape.same_path_up_to is not None and batches.size and batches.max() > tape.same_path_up_to:
        raise InvalidInputError(f"batch is {batches.max()}; {another_path(tape)}, so nothing is known of it")
    return batches


def another_path(tape: Tape) -> str:
    """A clause that says where a recording ends to hold."""
    return "" if tape.same_path_up_to is None else f"the step takes another path from batch {tape.same_path_up_to + 1:,} on"


def micro_steps(tape: Tape, accumulation: Any = None) -> int:
    """Micro-steps per optimizer step, the recipe's own by default; raises `InvalidInputError` for more than one of a step of the workload's own."""
    if accumulation is None:
        return 1 if tape.own_step else tape.accumulation
    return require_accumulates(tape, whole("accumulation", accumulation))


def require_accumulates(tape: Tape, micro_steps: int) -> int:
    """The number of micro-steps, where the step can be repeated so."""
    if tape.own_step and micro_steps > 1:
        raise InvalidInputError(f"accumulation is {micro_steps}; expected 1, for the own step of {tape.name} does not accumulate gradients")
    return micro_steps
