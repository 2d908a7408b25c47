# SPDX-License-Identifier: Apache-2.0
"""The allocator beside a device that lags behind: memory lent to another stream is taken again when the host has waited for that one, and not before.

Source: c10/cuda/CUDACachingAllocator.cpp, `insert_events` and `process_events`, read at 2.11.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Sequence

from bsmodel.memory.allocator import CachingAllocator
from bsmodel.tape import Tape

_BEFORE = -1  # the position of all that was released before the block in progress


class Lagging:
    """Runs blocks of a tape on a device that finishes only what the host waits for."""

    def __init__(self, allocator: CachingAllocator, tape: Tape) -> None:
        self.allocator, self.tape = allocator, tape
        self._queues: defaultdict[int, deque[tuple[int, int]]] = defaultdict(deque)  # by stream: lendings, each with its position, in order
        self._users: dict[int, int] = {}  # by lending: how many streams still use the block

    def run(self, name: str, sizes: Sequence[int], optional: Container[int]) -> None:
        """Carry out a block, as `CachingAllocator.run` does."""
        events, lent, streams = self.tape.blocks[name], self.tape.lent, self.tape.streams
        released = [(position, 1, position) for position, event in enumerate(events) if event < 0 and ~event in lent]
        waited = [(wait.position, 0, index) for index, wait in enumerate(self.tape.waits.get(name, ()))]
        self._queues.update({stream: deque((_BEFORE, lending) for _, lending in queue) for stream, queue in self._queues.items()})
        begin = 0
        for position, is_release, index in sorted(released + waited):
            self.allocator.run(events[begin:position], sizes, optional, streams)
            begin = position + is_release
            if is_release:
                self._release(~events[index], position)
            else:
                _, stream, until = self.tape.waits[name][index]
                self._go_on(stream, until)
        self.allocator.run(events[begin:], sizes, optional, streams)

    def _release(self, tensor: int, position: int) -> None:
        lending = self.allocator.lend(tensor)
        if lending is not None:
            self._users[lending] = len(self.tape.lent[tensor])
            for stream in self.tape.lent[tensor]:
                self._queues[stream].append((position, lending))

    def _go_on(self, stream: int, until: int) -> None:
        """The host knows that a stream is through with what was released before this position."""
        queue = self._queues[stream]
        while queue and queue[0][0] < until:
            _, lending = queue.popleft()
            self._users[lending] -= 1
            if not self._users[lending]:
                del self._users[lending]
                self.allocator.reclaim(lending)
