# SPDX-License-Identifier: Apache-2.0
"""Memory that a stream beside its own uses, too, and what the host waits for: a device that lags behind gives it back later than one that is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

import torch

from bsmodel.recording.allocation import Allocation
from bsmodel.recording.cuda_like.machine import MAIN, Stream
from bsmodel.tape import Wait


class Waited(NamedTuple):
    """After so many events the host goes on: streams, by their numbers, are through with the first so many."""

    events: int
    reached: Mapping[int, int]


class Lent:
    """Which allocations are lent to which streams, and what is waited for, as a recording goes on."""

    def __init__(self, allocations: Sequence[Allocation], events: Sequence[int], numbers: dict[int, int], number: Callable[[torch.Tensor], int | None]) -> None:
        self._allocations, self._events, self._number = allocations, events, number
        self._numbers = numbers  # of streams, by what torch calls them
        self.streams: dict[int, set[int]] = {}  # by allocation: the numbers of those that it is lent to
        self.waited: list[Waited] = []

    def lend(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Another stream than that of a tensor's memory uses it, too."""
        allocation, user = self._number(tensor), self._numbers.setdefault(stream.stream_id, len(self._numbers))
        if allocation is not None and user != self._allocations[allocation].stream:
            self.streams.setdefault(allocation, set()).add(user)

    def give(self, tensors: Sequence[torch.Tensor], stream: Stream | None) -> None:
        """Autograd's engine gives these, made in the default stream, to a node that runs in another (torch/csrc/autograd/input_buffer.cpp)."""
        if stream is not None:
            stream.wait_stream(MAIN)
            for tensor in tensors:
                self.lend(tensor, stream)

    def wait(self, reached: Mapping[int, int]) -> None:
        """The host goes on when streams, by what torch calls them, are through with so many events."""
        self.waited.append(Waited(len(self._events), {self._numbers[stream]: event for stream, event in reached.items() if stream in self._numbers}))


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
