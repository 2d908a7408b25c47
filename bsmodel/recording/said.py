# SPDX-License-Identifier: Apache-2.0
"""What a rank says to others while it is recorded: each collective with its group, when it may begin and when it must be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bsmodel.tape import Collective, Polynomial, Row


@dataclass(slots=True)
class Said:
    """One collective of one recorded step; `before` is None as long as nobody waits for it."""

    kind: str
    size_bytes: int
    phase: str
    after: int
    before: int | None
    ranks: int
    stride: int


def within(said: Sequence[Said], rows: Sequence[Row], first_row: int) -> list[Said]:
    """Those of a block whose first kernel was the `first_row`-th, counted in kernels of the block that do not keep gradients; the end waits for all."""
    kept = [0]
    for row in rows:
        kept.append(kept[-1] + (row.phase != "gradient"))

    def position(row: int | None) -> int:
        return kept[-1] if row is None else kept[min(max(row - first_row, 0), len(rows))]

    return [Said(each.kind, each.size_bytes, each.phase, position(each.after), position(each.before), each.ranks, each.stride) for each in said]


def through(said: Sequence[Sequence[Said]], batches: Sequence[int]) -> tuple[Collective, ...]:
    """The collectives of recordings at several batches, their bytes as lines through the last two; as in the last one where they are not the same ones."""
    *_, low, high = said if len(said) > 1 else (*said, *said)
    step = batches[-1] - batches[-2] if len(batches) > 1 else 0
    if step == 0 or [each.kind for each in low] != [each.kind for each in high]:
        low, step = high, 1
    found = []
    for one, other in zip(low, high, strict=True):
        per_sample = (other.size_bytes - one.size_bytes) // step
        size = Polynomial(other.size_bytes - per_sample * batches[-1], per_sample)
        found.append(Collective(other.kind, size, other.phase, other.after, other.before or 0, other.ranks, other.stride))
    return tuple(found)
