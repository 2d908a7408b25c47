# SPDX-License-Identifier: Apache-2.0
"""Memory that a stream beside its own uses, too, and what the host waits for: a device that lags behind gives it back later than one that is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from bsmodel.tape import Wait


class Waited(NamedTuple):
    """After so many events the host goes on: streams, by their numbers, are through with the first so many."""

    events: int
    reached: Mapping[int, int]


@dataclass
class Lent:
    """Which allocations are lent to which streams, and what is waited for, as a recording goes on."""

    streams: dict[int, set[int]] = field(default_factory=dict)
    waited: list[Waited] = field(default_factory=list)

    def to(self, allocation: int, stream: int) -> None:
        """An allocation of another stream is used by this one, too."""
        self.streams.setdefault(allocation, set()).add(stream)


def by_block(lent: Lent, events: Sequence[int], spans: Mapping[str, tuple[int, int]]) -> dict[str, tuple[Wait, ...]]:
    """What is waited for within each block of the events that there are, where anything is."""
    found = {name: _waits(lent, events, start, end) for name, (start, end) in spans.items()} if lent.streams else {}
    return {name: waits for name, waits in found.items() if waits}


def _waits(lent: Lent, events: Sequence[int], start: int, end: int) -> tuple[Wait, ...]:
    """What is waited for within a block of the events, each with the position in it up to which releases are through; 0 is all before the block.

    Where only a part of those before the block are through, a lagging device is taken to be through with none of them.
    """
    found: list[Wait] = []
    known: dict[int, int] = {}
    before = {stream: _last_release(lent.streams, events[:start], stream) for stream in set[int]().union(*lent.streams.values())}
    for position, reached in lent.waited:
        for stream in sorted(before) if start <= position <= end else ():
            until = reached.get(stream, 0) - start
            if until >= 0 or reached.get(stream, 0) > before[stream] >= 0:
                until = max(until, 0)
                if until > known.get(stream, -1):
                    known[stream] = until
                    found.append(Wait(position - start, stream, until))
    return tuple(found)


def _last_release(streams: Mapping[int, Set[int]], events: Sequence[int], stream: int) -> int:
    """The index of the last release of what is lent to a stream, -1 where there is none."""
    return max((index for index, event in enumerate(events) if event < 0 and stream in streams.get(~event, ())), default=-1)
