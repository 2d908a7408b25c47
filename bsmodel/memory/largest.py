# SPDX-License-Identifier: Apache-2.0
"""The largest micro-batch that trains on one GPU, and what to change where none does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, InstanceOf, PlainSerializer

from bsmodel.hardware import Gpu
from bsmodel.memory.closed_form import footprint
from bsmodel.memory.peak import Peak, peak_at, replays, survives
from bsmodel.memory.settings import Settings
from bsmodel.tape import Tape, require_same_kernels
from bsmodel.units import format_bytes


def _id(gpu: Gpu) -> str:
    return gpu.id


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch on one GPU, and why it is no larger: `batch` is safe, `likely_batch` what probably runs too.

    In JSON the GPU is its id, and the tape is left out.
    """

    tape: Annotated[InstanceOf[Tape], Field(exclude=True)]
    gpu: Annotated[Gpu, PlainSerializer(_id)]
    accumulation: int
    settings: Settings
    batch: int
    likely_batch: int
    binding: str
    headroom_bytes: int
    verdict: str
    peak: Peak | None


def fit(tape: Tape, gpu: Gpu, accumulation: int | None = None, settings: Settings | None = None) -> Fit:
    """The largest micro-batch that trains on this GPU without end: its replay comes to rest, release-and-retry included.

    The closed form bounds it from above, `b <= largest(capacity)`; replays decide below that. `batch` survives whatever
    cuDNN chooses, `likely_batch` with what it probably does, the workspaces that do not fit left out. `batch` is 0 where nothing fits, and
    the verdict then says how much is missing.
    """
    require_same_kernels(tape, gpu)
    settings = settings or Settings()
    accumulation = tape.accumulation if accumulation is None else accumulation
    form = footprint(tape, accumulation)
    bound = min(form.largest(gpu.usable_bytes), 1 << 20)
    replay = replays(tape, gpu, accumulation, settings)
    likely = _largest(lambda candidate: replay(candidate, "lenient", True) is not None, bound)
    batch = _largest(lambda candidate: survives(candidate, replay), likely)
    peak = peak_at(form, max(batch, 1), gpu, replay)
    if batch == 0:
        missing = peak.reserved_bytes - gpu.usable_bytes
        verdict = (
            f"does not fit on {gpu.id}: one sample needs {format_bytes(peak.reserved_bytes)} of {format_bytes(gpu.usable_bytes)}, "
            f"{format_bytes(missing)} too much, at the {peak.moment}; {remedy(tape, gpu)}"
        )
        return Fit(tape, gpu, accumulation, settings, 0, likely, peak.moment, -missing, verdict, None)
    binding = str(form.binding(batch))
    headroom = gpu.usable_bytes - peak.reserved_upper_bytes
    return Fit(tape, gpu, accumulation, settings, batch, likely, binding, headroom, f"fits up to {batch}, bound by {binding}", peak)


def _largest(survives: Callable[[int], bool], bound: int) -> int:
    """The largest batch up to `bound` that survives: down in growing steps to one that does, then by bisection."""
    if bound == 0 or survives(bound):
        return bound
    low, high, step = 0, bound, max(1, bound // 32)
    while low == 0 and high > 1:
        candidate = max(1, high - step)
        step *= 2
        if survives(candidate):
            low = candidate
        else:
            high = candidate
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if survives(middle) else (low, middle)
    return low


# Recipe changes that shrink the fixed cost: what to write, and bytes per trained parameter of weights, gradients and state after it.
_REMEDIES: tuple[tuple[str, Callable[[float, float, float], float]], ...] = (
    ("optimizer=adamw-8bit", lambda p, t, w: w * p + w * t + 2.1 * t),
    ("precision=bf16", lambda p, t, w: 2 * p + 2 * t + 4 * t),
    ("precision=bf16 optimizer=adamw-8bit", lambda p, t, w: 2 * p + 2 * t + 2.1 * t),
    ("precision=bf16 optimizer=sgd", lambda p, t, w: 2 * p + 2 * t),
    ("precision=bf16 lora_rank=16", lambda p, t, w: 2 * p + 0.03 * p),
)


def remedy(tape: Tape, gpu: Gpu) -> str:
    """The mildest recipe change whose weights, gradients and optimizer state leave a tenth of the card for activations."""
    weight = 2 if tape.precision in ("fp16", "bf16") else 4
    for change, state_bytes in _REMEDIES:
        if "bf16" in change and not gpu.supports_bf16:
            change = change.replace("bf16", "fp16")
        if state_bytes(tape.parameter_count, tape.trained_parameter_count, weight) < 0.9 * gpu.usable_bytes and not tape.recipe.get("lora_rank"):
            saved = "" if tape.recipe.get("checkpointing") else " checkpointing=True"
            return f"try {change}{saved}"
    return "no change of recipe makes it fit on one such card; take one with more memory"
