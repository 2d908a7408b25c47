# SPDX-License-Identifier: Apache-2.0
"""What a rank says to others while it is recorded: each collective with its group, when it may begin and when it must be done."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence
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


def within(said: Sequence[Said], done: Sequence[int], first_row: int) -> list[Said]:
    """Those of a block whose first kernel was the `first_row`-th recorded, counted in its kernels as `done` has them; the end waits for all."""

    def position(row: int | None) -> int:
        return done[-1] if row is None else done[min(max(row - first_row, 0), len(done) - 1)]

    return [Said(each.kind, each.size_bytes, each.phase, position(each.after), position(each.before), each.ranks, each.stride) for each in said]


def counted(recorded: Sequence[Row], rows: Sequence[Row]) -> list[int]:
    """How many of a block's kernels that do not keep gradients are done after none, one, two and so on of those that were recorded.

    `rows` are what runs in their place: where several stand for others, all of them come after these.
    """
    places = {id(row): place for place, row in enumerate((row for row in rows if row.phase != "gradient"), 1)}
    done = [0]
    for row in recorded:
        done.append(places.get(id(row), done[-1]))
    return [*done[:-1], len(places)]


def onto(own: Sequence[Hashable], kept: Sequence[Hashable]) -> list[int]:
    """After how many of the kernels `kept` come none, one, two and so on of a block's own: where the block has others, by the next that both have."""
    if [*own] == [*kept]:
        return [*range(len(own) + 1)]
    found: list[int] = []
    for start, place, size in difflib.SequenceMatcher(None, own, kept, autojunk=False).get_matching_blocks():
        found += [place] * (start - len(found)) + [*range(place, place + size)]
    return [*found, len(kept)]


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
