# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CUDA caching allocator, as a model over a sequence of sizes.

Source: c10/cuda/CUDACachingAllocator.cpp, read at 2.11.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence

from bsmodel.errors import InvalidInputError
from bsmodel.memory.pools import Block, Pool, Pools, Segment, find_room, map_pages, mapped_stretches, merge_unmapped, stretch_bytes, unmap_pages
from bsmodel.memory.settings import INTERVALS, Settings
from bsmodel.units import MiB

MIN_BLOCK = 512  # kMinBlockSize
SMALL_SIZE = MiB  # kSmallSize: requests up to this come from the small pool
SMALL_SEGMENT = 2 * MiB  # kSmallBuffer
LARGE_SEGMENT = 20 * MiB  # kLargeBuffer
MIN_LARGE_ALLOCATION = 10 * MiB  # kMinLargeAlloc: from here on a segment is as large as the request
ROUND_LARGE = 2 * MiB  # kRoundLarge; also the driver's own granularity

_UNLIMITED = 1 << 62
_ONE_STREAM: Mapping[int, int] = {}
_UNKNOWN_TOTAL = 1 << 40  # addresses set aside for a growing segment on a device of unknown size


class OutOfMemoryError(Exception):
    """The device cannot give what an allocation needs, even after everything cached was released.

    `operation` is the index of the failing operation where the allocation came from `run`.
    """

    def __init__(self, requested_bytes: int, segment_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"out of memory: {requested_bytes} bytes requested, {segment_bytes} asked of the device, {allocated_bytes} allocated, {reserved_bytes} reserved"
        )
        self.requested_bytes, self.segment_bytes = requested_bytes, segment_bytes
        self.allocated_bytes, self.reserved_bytes = allocated_bytes, reserved_bytes
        self.operation: int | None = None


def round_size(size_bytes: int, divisions: int = 0) -> int:
    """Bytes of the block for a request: multiples of 512, or `divisions` steps between powers of two."""
    if divisions > 1 and size_bytes > MIN_BLOCK * divisions:
        step = (1 << (size_bytes.bit_length() - 1)) // divisions
        return -(-size_bytes // step) * step
    return -(-size_bytes // MIN_BLOCK) * MIN_BLOCK


def segment_size(size_bytes: int) -> int:
    """Bytes asked of the driver for a block of `size_bytes`."""
    if size_bytes <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size_bytes < MIN_LARGE_ALLOCATION:
        return LARGE_SEGMENT
    return -(-size_bytes // ROUND_LARGE) * ROUND_LARGE


class CachingAllocator:
    """The allocator of one device.

    `capacity_bytes` is what the driver can give (the card less the CUDA context), None without limit. `total_bytes` is the memory of
    the card, of which `per_process_memory_fraction` allows a part; without it, that part is of the capacity.
    `segment_events` lists what was asked of the driver: (action, address, bytes, stream), the actions named as in PyTorch's memory snapshots;
    `most_bytes` is the less of what there is and what is allowed; `forgone` are the optional tensors there was no memory for.
    """

    def __init__(self, capacity_bytes: int | None = None, settings: Settings | None = None, *, total_bytes: int | None = None) -> None:
        self.settings = settings = settings or Settings()
        total_bytes = capacity_bytes if total_bytes is None else total_bytes
        self.allocated_bytes = self.reserved_bytes = self.requested_bytes = 0
        self.max_allocated_bytes = self.max_reserved_bytes = 0
        self.retries = 0
        self.segment_events: list[tuple[str, int, int, int]] = []

        self._capacity = _UNLIMITED if capacity_bytes is None else capacity_bytes
        self._allowed = settings.allowed_bytes(total_bytes) if total_bytes is not None and settings.per_process_memory_fraction < 1 else None
        self.most_bytes = self._capacity if self._allowed is None else min(self._capacity, self._allowed)
        self._collects = self._allowed is not None and settings.garbage_collection_threshold > 0
        self._max_split = _UNLIMITED if settings.max_split_size_bytes is None else settings.max_split_size_bytes
        self._first_fit = not (settings.expandable_segments or self._collects or settings.max_split_size_bytes is not None)
        per_interval = settings.divisions
        # by the bit length of a request: 21 is that of 1 MiB, where the first interval begins, which is also that of anything smaller
        self._divisions = tuple(per_interval[min(max(bits - 21, 0), INTERVALS - 1)] for bits in range(64)) if any(per_interval) else ()
        self._small = Pools(SMALL_SEGMENT, slack_bytes=0)
        self._large = Pools(LARGE_SEGMENT, slack_bytes=0 if settings.expandable_segments else SMALL_SIZE)
        self._large_searches = 0  # the clock by which garbage collection tells age
        self._reserve_bytes = _UNKNOWN_TOTAL if total_bytes is None else total_bytes + total_bytes // 8
        self._next_address = 1 << 40
        self._segments: dict[int, Block] = {}  # the first block of every segment, in the order of addresses
        self._live: dict[int, Block | None] = {}  # by tensor, the oldest instance; those behind it wait in _younger
        self._younger: dict[int, deque[Block | None]] = {}
        self._lent: dict[int, Block] = {}  # by the number of the lending: what is freed and may not be taken again
        self._lendings = 0
        self.forgone: set[int] = set()

    def run(self, operations: Iterable[int], sizes: Sequence[int], optional: Container[int] = (), streams: Mapping[int, int] = _ONE_STREAM) -> None:
        """Carry out operations: `k` allocates `sizes[k]` bytes as tensor k, `~k` frees the oldest living instance of tensor k.

        An allocation of 0 bytes takes nothing. May be called again, with other operations and sizes. Tensors of `optional` are done
        without, from then on, where there is no memory for them. `streams` has those whose blocks tensors take, where that is not the default one.
        Raises `OutOfMemoryError` with the index of the failing operation, `InvalidInputError` for a tensor freed while not alive.
        """
        live, younger, malloc, free = self._live, self._younger, self.malloc, self.free
        index = 0
        try:
            for index, operation in enumerate(operations):
                if operation >= 0:
                    size = sizes[operation]
                    stream = streams.get(operation, 0) if streams else 0
                    block = (malloc(size, stream) if operation not in optional else self._optional(operation, size, stream)) if size else None
                    if operation in live:
                        younger.setdefault(operation, deque()).append(block)
                    else:
                        live[operation] = block
                else:
                    tensor = ~operation
                    if tensor not in live:
                        raise InvalidInputError(f"operation {index} frees tensor {tensor}, which is not alive")
                    block = live.pop(tensor)
                    if younger and tensor in younger:
                        self._grow_older(tensor)
                    if block is not None:
                        free(block)
        except OutOfMemoryError as error:
            error.operation = index
            raise

    def _optional(self, tensor: int, size_bytes: int, stream: int) -> Block | None:
        if tensor in self.forgone:
            return None
        try:
            return self.malloc(size_bytes, stream)
        except OutOfMemoryError:
            self.forgone.add(tensor)
            return None

    def malloc(self, requested_bytes: int, stream: int = 0) -> Block:
        """Allocate `requested_bytes` > 0: the best fitting free block of the stream, else a new segment, else release and retry.

        Returns the handle for `free`. Raises `OutOfMemoryError`.
        """
        if requested_bytes <= 0:
            raise InvalidInputError(f"{requested_bytes} bytes requested; expected more than 0")
        divisions = self._divisions
        size = round_size(requested_bytes, divisions[requested_bytes.bit_length()]) if divisions else (requested_bytes + 511) & -512
        pool = (self._small if size <= SMALL_SIZE else self._large)[stream]
        at = bisect_left(pool.keys, size << 64) if self._first_fit else self._search(pool, size)
        if at < len(pool.keys):
            del pool.keys[at]
            block = pool.blocks.pop(at)
            block.free = False
        else:
            block = self._obtain(pool, size, requested_bytes)
        if block.size_bytes - size > pool.slack_bytes and (size < self._max_split or self.settings.expandable_segments):
            pool.put(block.split(size))
        block.requested_bytes = requested_bytes
        self.requested_bytes += requested_bytes
        self.allocated_bytes += block.size_bytes
        if self.allocated_bytes > self.max_allocated_bytes:
            self.max_allocated_bytes = self.allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Give a block back to its pool, merged with its free neighbours; nothing returns to the driver here."""
        if not block.requested_bytes:
            raise InvalidInputError("this block is not allocated: freed twice?")
        pool = block.pool
        self.allocated_bytes -= block.size_bytes
        self.requested_bytes -= block.requested_bytes
        block.requested_bytes = 0
        block = pool.merged(block)
        block.age_base = self._large_searches
        pool.put(block)

    def _grow_older(self, tensor: int) -> None:
        """The next instance of a tensor is its oldest."""
        self._live[tensor] = self._younger[tensor].popleft()
        if not self._younger[tensor]:
            del self._younger[tensor]

    def lend(self, tensor: int) -> int | None:
        """Free the oldest living instance of a tensor, whose block another stream still uses: nobody takes it before it is reclaimed.

        Returns the number of the lending, for `reclaim`; None where the tensor has no bytes.
        """
        block = self._live.pop(tensor)
        if tensor in self._younger:
            self._grow_older(tensor)
        if block is None:
            return None
        self.allocated_bytes -= block.size_bytes
        self.requested_bytes -= block.requested_bytes
        self._lendings += 1
        self._lent[self._lendings] = block
        return self._lendings

    def reclaim(self, lending: int) -> None:
        """No other stream uses what was lent; it may have been reclaimed already, where memory ran short, and lent again since."""
        if (block := self._lent.pop(lending, None)) is not None:
            self.allocated_bytes += block.size_bytes
            self.requested_bytes += block.requested_bytes
            self.free(block)

    def release_cached(self) -> None:
        """Return what holds no allocated block to the driver, as `torch.cuda.empty_cache()` does: whole segments, or whole pages."""
        for lending in list(self._lent):  # synchronize_and_free_events
            self.reclaim(lending)
        starts = list(self._segments)
        for pools in (self._large, self._small):
            for _, pool in sorted(pools.items()):
                for block in pool.blocks.copy():
                    if self.settings.expandable_segments:
                        self._unmap(block, starts[bisect_right(starts, block.address) - 1])
                    elif block.previous is None and block.next is None:
                        self._release(block)

    def blocks(self) -> list[Segment]:
        """The map of reserved memory by address; of a growing segment, every contiguous mapped stretch counts as a segment."""
        return [segment for first in self._segments.values() for segment in mapped_stretches(first)]

    @property
    def spare_bytes(self) -> int:
        """What the driver could still give."""
        return self.most_bytes - self.reserved_bytes

    @property
    def least_spare_bytes(self) -> int:
        """What it could still give when most was reserved."""
        return self.most_bytes - self.max_reserved_bytes

    def layout(self) -> tuple[object, ...]:
        """Where the large blocks lie, free and allocated, and how often the driver was asked; small blocks wander almost without end."""
        free = tuple(tuple(pool.keys) for _, pool in sorted(self._large.items()))
        live = frozenset((tensor, block.address) for tensor, block in self._live.items() if block is not None and block.size_bytes > SMALL_SIZE)
        return len(self.segment_events), free, live, frozenset(block.address for block in self._lent.values())

    def _search(self, pool: Pool, size: int) -> int:
        """The index of the free block to use, past the end where there is none: get_free_block."""
        if self._collects and pool.slack_bytes:
            self._large_searches += 1
        blocks = pool.blocks
        at, end = pool.first_fit(size), len(blocks)
        if self.settings.expandable_segments:
            while at + 1 < end and stretch_bytes(blocks[at + 1]) < stretch_bytes(blocks[at]):
                at += 1
        if at == end:
            return end
        found = blocks[at].size_bytes
        if size < self._max_split:
            return at if found < self._max_split else end
        return at if found < size + self.settings.max_non_split_rounding_bytes else end

    def _obtain(self, pool: Pool, size: int, requested_bytes: int) -> Block:
        """A block from the driver; at capacity, cached memory is released first: oversize blocks, then everything unused."""
        if self._collects:
            self._collect_garbage()
        wanted = segment_size(size)
        block = self._request(pool, size, wanted)
        if block is None and self._release_oversize(pool, size):
            block = self._request(pool, size, wanted)
        if block is None:
            self.release_cached()
            self.retries += 1
            block = self._request(pool, size, wanted)
        if block is None:
            raise OutOfMemoryError(requested_bytes, wanted, self.allocated_bytes, self.reserved_bytes)
        return block

    def _request(self, pool: Pool, size: int, wanted: int) -> Block | None:
        if self._allowed is not None and self.reserved_bytes + wanted > self._allowed:
            return None
        if self.settings.expandable_segments:
            return self._grow(pool, size)
        if self.reserved_bytes + wanted > self._capacity:
            return None
        block = self._new_segment(pool, wanted)
        self._count("segment_alloc", block.address, wanted, pool.stream)
        return block

    def _new_segment(self, pool: Pool, size_bytes: int) -> Block:
        block = Block(self._next_address, size_bytes, pool)
        self._segments[block.address] = block
        self._next_address += size_bytes
        return block

    def _count(self, action: str, address: int, size_bytes: int, stream: int) -> None:
        self.segment_events.append((action, address, size_bytes, stream))
        self.reserved_bytes += size_bytes if action in ("segment_alloc", "segment_map") else -size_bytes
        self.max_reserved_bytes = max(self.max_reserved_bytes, self.reserved_bytes)

    def _release(self, block: Block) -> None:
        block.pool.take(block)
        del self._segments[block.address]
        self._count("segment_free", block.address, block.size_bytes, block.pool.stream)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Release the smallest oversize block that is large enough, or several from the largest down: release_available_cached_blocks."""
        if self.settings.max_split_size_bytes is None or self.settings.expandable_segments:
            return False
        at = pool.first_fit(size)  # what is large enough and was not taken is oversize
        if at < len(pool.blocks):
            self._release(pool.blocks[at])
            return True
        released = 0
        while released < size and pool.blocks and pool.blocks[-1].size_bytes >= self._max_split:
            released += pool.blocks[-1].size_bytes
            self._release(pool.blocks[-1])
        return released >= size

    def _collect_garbage(self) -> None:
        """Past the threshold, release the unsplit large blocks of at least mean age, until enough is reclaimed."""
        if self._allowed is None or self.settings.expandable_segments:
            return
        target = self.reserved_bytes - int(self.settings.garbage_collection_threshold * self._allowed)
        pools = [pool for _, pool in sorted(self._large.items())]
        waiting = [block for pool in pools for block in pool.blocks if block.previous is None and block.next is None]
        while target > 0 and waiting:
            mean_age = sum(self._large_searches - block.age_base for block in waiting) / len(waiting)
            for block in waiting:
                if self._large_searches - block.age_base >= mean_age:
                    target -= block.size_bytes
                    self._release(block)
            waiting = [block for block in waiting if block.free]

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """Map pages where the fewest addresses are passed over, until a block of `size` stands there: try_allocate_expandable_block."""
        block: Block | None = find_room(pool, size)
        if block is None:
            pages = -(-self._reserve_bytes // pool.page_bytes)
            block = self._new_segment(pool, pages * pool.page_bytes)
            block.mapped = False
            pool.unmapped.append(block)
        if not block.mapped:
            block = self._map(block, min(size, block.size_bytes))
        while block is not None and block.size_bytes < size:
            assert block.next is not None
            block = self._map(block.next, min(size - block.size_bytes, block.next.size_bytes))
        if block is not None:
            pool.take(block)
        return block

    def _map(self, unmapped: Block, size_bytes: int) -> Block | None:
        page_bytes, address = unmapped.pool.page_bytes, unmapped.address
        mapped_bytes = -(-size_bytes // page_bytes) * page_bytes
        if self.reserved_bytes + mapped_bytes > self._capacity:
            return None
        self._count("segment_map", address, mapped_bytes, unmapped.pool.stream)
        return map_pages(unmapped, mapped_bytes)

    def _unmap(self, block: Block, segment_address: int) -> None:
        pages = unmap_pages(block, segment_address)
        if pages is None:
            return
        self._count("segment_unmap", pages.address, pages.size_bytes, pages.pool.stream)
        pages = merge_unmapped(pages)
        if pages.previous is None and pages.next is None:
            pages.pool.unmapped.remove(pages)
            del self._segments[segment_address]
