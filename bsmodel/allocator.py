# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CUDA caching allocator, as a model over a sequence of sizes.

Source: c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h, read at 2.11.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.units import GiB, MiB

MIN_BLOCK = 512  # kMinBlockSize
SMALL_SIZE = MiB  # kSmallSize: requests up to this come from the small pool
SMALL_SEGMENT = 2 * MiB  # kSmallBuffer
LARGE_SEGMENT = 20 * MiB  # kLargeBuffer
MIN_LARGE_ALLOCATION = 10 * MiB  # kMinLargeAlloc: from here on a segment is as large as the request
ROUND_LARGE = 2 * MiB  # kRoundLarge


class OutOfMemoryError(Exception):
    """The device cannot give what an allocation needs, even after everything cached was released."""

    def __init__(self, requested_bytes: int, segment_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(f"out of memory: {requested_bytes} bytes asked for, {allocated_bytes} allocated, {reserved_bytes} reserved")
        self.requested_bytes, self.segment_bytes = requested_bytes, segment_bytes
        self.allocated_bytes, self.reserved_bytes = allocated_bytes, reserved_bytes


@dataclass(frozen=True)
class Settings:
    """The options of `PYTORCH_CUDA_ALLOC_CONF` that change where memory goes, and the fraction set by `set_per_process_memory_fraction`."""

    expandable_segments: bool = False
    max_split_size_mb: int | None = None
    max_non_split_rounding_mb: int = 20
    roundup_power2_divisions: int = 0
    garbage_collection_threshold: float = 0.0
    per_process_memory_fraction: float = 1.0

    @staticmethod
    def parse(text: str) -> Settings:
        """Read `expandable_segments:True,max_split_size_mb:128`, the syntax of `PYTORCH_CUDA_ALLOC_CONF`."""
        kinds = {field.name: str(field.type) for field in fields(Settings)}
        values: dict[str, bool | int | float] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = item.partition(":")
            if name not in kinds:
                raise UnknownNameError("allocator setting", name, kinds)
            try:
                if kinds[name] == "bool":
                    values[name] = {"true": True, "false": False}[value.strip().lower()]
                else:
                    values[name] = float(value) if kinds[name] == "float" else int(value)
            except (KeyError, ValueError):
                raise InvalidInputError(f"allocator setting {name} is {value!r}; expected {kinds[name].split(' ')[0]}") from None
        return Settings(**values)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.max_split_size_mb is not None and self.max_split_size_mb <= 20:
            raise InvalidInputError(f"max_split_size_mb is {self.max_split_size_mb}; expected more than 20")
        divisions = self.roundup_power2_divisions
        if divisions < 0 or divisions & (divisions - 1):
            raise InvalidInputError(f"roundup_power2_divisions is {divisions}; expected a power of two")
        for name in ("garbage_collection_threshold", "per_process_memory_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; expected a fraction between 0 and 1")


class Block:
    """A stretch of a segment, allocated or free, between its neighbours."""

    __slots__ = ("address", "age_base", "free", "mapped", "next", "previous", "requested", "segment", "size", "small", "stream")

    def __init__(self, address: int, size: int, small: bool, stream: int, segment: int) -> None:
        self.address, self.size, self.small, self.stream, self.segment = address, size, small, stream, segment
        self.previous: Block | None = None
        self.next: Block | None = None
        self.free, self.mapped = True, True
        self.requested = self.age_base = 0


_Free = list[tuple[int, int, Block]]  # free blocks ordered by (size, address)


def round_size(size_bytes: int, divisions: int = 0) -> int:
    """Bytes of the block for a request: multiples of 512, or `divisions` steps between powers of two."""
    if size_bytes < MIN_BLOCK:
        return MIN_BLOCK
    if divisions > 1 and size_bytes > MIN_BLOCK * divisions:
        if size_bytes & (size_bytes - 1) == 0:
            return size_bytes
        floor = 1 << (size_bytes.bit_length() - 1)
        step = floor // divisions
        return -(-size_bytes // step) * step if step else floor * 2
    return -(-size_bytes // MIN_BLOCK) * MIN_BLOCK


def segment_size(size_bytes: int) -> int:
    """Bytes asked of the driver for a block of `size_bytes`."""
    if size_bytes <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size_bytes < MIN_LARGE_ALLOCATION:
        return LARGE_SEGMENT
    return -(-size_bytes // ROUND_LARGE) * ROUND_LARGE


class CachingAllocator:
    """The allocator of one device. `capacity_bytes` is what the driver can give (None: no limit)."""

    def __init__(self, capacity_bytes: int | None = None, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.capacity_bytes = capacity_bytes
        fraction = self.settings.per_process_memory_fraction
        self.allowed_bytes = int(capacity_bytes * fraction) if capacity_bytes is not None and fraction < 1 else None
        self.allocated_bytes = self.reserved_bytes = self.requested_bytes = 0
        self.max_allocated_bytes = self.max_reserved_bytes = self.max_requested_bytes = 0
        self.retries = 0
        self.segment_events: list[tuple[str, int]] = []
        self.failed_at: int | None = None
        self._free: dict[tuple[bool, int], _Free] = {}
        self._calls = {True: 0, False: 0}
        self._next_address = 1 << 40
        self._live: dict[int, list[Block]] = {}
        self._segments: dict[int, Block] = {}
        self._expandable: dict[tuple[bool, int], Block] = {}
        split = self.settings.max_split_size_mb
        self._max_split = split * MiB if split is not None else None
        self._non_split_rounding = self.settings.max_non_split_rounding_mb * MiB

    # -- the tight loop ---------------------------------------------------------------------------------------------------------------

    def run(self, operations: Iterable[int], sizes: Sequence[int]) -> None:
        """Carry out a sequence of operations: `k` allocates `sizes[k]` bytes as tensor k, `~k` frees the oldest living tensor k.

        An allocation of 0 bytes takes nothing. Raises `OutOfMemoryError` and leaves the index of the operation in `failed_at`.
        """
        live, malloc, free = self._live, self.malloc, self.free
        for index, operation in enumerate(operations):
            if operation >= 0:
                size = sizes[operation]
                if size:
                    try:
                        block = malloc(size)
                    except OutOfMemoryError:
                        self.failed_at = index
                        raise
                    if operation in live:
                        live[operation].append(block)
                    else:
                        live[operation] = [block]
            else:
                blocks = live.get(~operation)
                if blocks:
                    free(blocks.pop(0))

    def malloc(self, requested: int, stream: int = 0) -> Block:
        """Allocate `requested` bytes (more than 0): best fit among free blocks, else a new segment, else release and retry."""
        divisions = self.settings.roundup_power2_divisions
        size = round_size(requested, divisions) if divisions else (requested + 511) & -512
        small = size <= SMALL_SIZE
        pool = self._free.get((small, stream))
        if pool is None:
            pool = self._free[(small, stream)] = []
        block = self._best_fit(pool, size, small) if pool else None
        if block is None:
            block = self._new_segment(requested, size, small, stream)
        remaining = block.size - size
        if remaining and self._splits(size, remaining, small):
            self._split(block, size, pool)
        block.free, block.requested = False, requested
        self.requested_bytes += requested
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.max_allocated_bytes:
            self.max_allocated_bytes = self.allocated_bytes
        if self.requested_bytes > self.max_requested_bytes:
            self.max_requested_bytes = self.requested_bytes
        return block

    def free(self, block: Block) -> None:
        """Give a block back to its pool, merged with its free neighbours; nothing returns to the driver here."""
        self.allocated_bytes -= block.size
        self.requested_bytes -= block.requested
        block.requested = 0
        pool = self._free[(block.small, block.stream)]
        previous, following = block.previous, block.next
        if previous is not None and previous.free and previous.mapped:
            _take(pool, previous)
            block.address, block.size = previous.address, block.size + previous.size
            block.previous = previous.previous
            if block.previous is not None:
                block.previous.next = block
            elif block.segment in self._segments:
                self._segments[block.segment] = block
        if following is not None and following.free and following.mapped:
            _take(pool, following)
            block.size += following.size
            block.next = following.next
            if block.next is not None:
                block.next.previous = block
        block.free = True
        block.age_base = self._calls[block.small]
        insort(pool, (block.size, block.address, block))

    # -- finding, splitting -----------------------------------------------------------------------------------------------------------

    def _best_fit(self, pool: _Free, size: int, small: bool) -> Block | None:
        if self.allowed_bytes is not None and self.settings.garbage_collection_threshold:
            self._calls[small] += 1
        if self.settings.expandable_segments:
            return self._best_expandable_fit(pool, size)
        position = bisect_left(pool, (size,))
        if position == len(pool):
            return None
        block = pool[position][2]
        if self._max_split is not None and not self._may_serve(block, size):
            return None
        del pool[position]
        return block

    def _may_serve(self, block: Block, size: int) -> bool:
        assert self._max_split is not None
        if size < self._max_split:
            return block.size < self._max_split
        return block.size < size + self._non_split_rounding

    def _splits(self, size: int, remaining: int, small: bool) -> bool:
        if small or self.settings.expandable_segments:
            return remaining >= MIN_BLOCK
        return (self._max_split is None or size < self._max_split) and remaining > SMALL_SIZE

    def _split(self, block: Block, size: int, pool: _Free) -> None:
        """Keep the front part of `block`; the rest becomes a free block behind it."""
        rest = Block(block.address + size, block.size - size, block.small, block.stream, block.segment)
        rest.previous, rest.next = block, block.next
        if rest.next is not None:
            rest.next.previous = rest
        block.next, block.size = rest, size
        rest.age_base = block.age_base
        insort(pool, (rest.size, rest.address, rest))

    # -- segments ---------------------------------------------------------------------------------------------------------------------

    def _new_segment(self, requested: int, size: int, small: bool, stream: int) -> Block:
        """A fresh segment; at capacity, cached memory is released first: oversize blocks, then everything unsplit."""
        wanted = segment_size(size)
        if self.allowed_bytes is not None and self.settings.garbage_collection_threshold:
            self._collect_garbage()
        block = self._obtain(wanted, size, small, stream)
        if block is None and self._release_oversize(size, stream):
            block = self._obtain(wanted, size, small, stream)
        if block is None:
            self.release_cached()
            self.retries += 1
            block = self._obtain(wanted, size, small, stream)
        if block is None:
            raise OutOfMemoryError(requested, wanted, self.allocated_bytes, self.reserved_bytes)
        return block

    def _room(self, size: int) -> bool:
        if self.allowed_bytes is not None and self.reserved_bytes + size > self.allowed_bytes:
            return False
        return self.capacity_bytes is None or self.reserved_bytes + size <= self.capacity_bytes

    def _obtain(self, wanted: int, size: int, small: bool, stream: int) -> Block | None:
        if self.settings.expandable_segments:
            if self.allowed_bytes is not None and self.reserved_bytes + wanted > self.allowed_bytes:
                return None
            return self._expand(size, small, stream)
        if not self._room(wanted):
            return None
        self._count_reserved("segment_alloc", wanted)
        block = Block(self._next_address, wanted, small, stream, self._next_address)
        self._segments[block.segment] = block
        self._next_address += -(-wanted // (2 * MiB)) * 2 * MiB
        return block

    def _count_reserved(self, event: str, size: int) -> None:
        self.segment_events.append((event, size))
        self.reserved_bytes += size if event in ("segment_alloc", "segment_map") else -size
        if self.reserved_bytes > self.max_reserved_bytes:
            self.max_reserved_bytes = self.reserved_bytes

    def _release(self, block: Block) -> None:
        _take(self._free[(block.small, block.stream)], block)
        del self._segments[block.segment]
        self._count_reserved("segment_free", block.size)

    def release_cached(self) -> None:
        """Return every segment without a living block to the driver, as `torch.cuda.empty_cache()` does: large pool first."""
        for small in (False, True):
            for key, pool in self._free.items():
                if key[0] is small:
                    for _, _, block in list(pool):
                        if block.segment in self._segments and block.previous is None and block.next is None:
                            self._release(block)
                        elif block.segment not in self._segments:
                            self._unmap(block)

    def _release_oversize(self, size: int, stream: int) -> bool:
        """With `max_split_size_mb`: release the smallest large-enough oversize block, or several from the largest down."""
        if self._max_split is None:
            return False
        pool = self._free.get((False, stream), [])
        key = max(size, self._max_split)
        position = bisect_left(pool, (key,))
        if position < len(pool):
            self._release(pool[position][2])
            return True
        released = 0
        while pool and released < key and pool[-1][0] >= self._max_split:
            released += pool[-1][0]
            self._release(pool[-1][2])
        return released >= key

    def _collect_garbage(self) -> None:
        """Release the unsplit large blocks that have waited longest, once the threshold is passed."""
        assert self.allowed_bytes is not None
        target = self.reserved_bytes - int(self.settings.garbage_collection_threshold * self.allowed_bytes)
        reclaimed, freed = 0, True
        while reclaimed < target and freed:
            freed = False
            waiting = [b for (small, _), p in self._free.items() if not small for _, _, b in p if b.previous is None and b.next is None]
            if not waiting:
                return
            now = self._calls[False]
            threshold = sum(now - block.age_base for block in waiting) / len(waiting)
            for block in waiting:
                if now - block.age_base >= threshold and now - block.age_base >= 0:
                    reclaimed += block.size
                    freed = True
                    self._release(block)

    # -- expandable segments ------------------------------------------------------------------------------------------------------------

    def _best_expandable_fit(self, pool: _Free, size: int) -> Block | None:
        """Best fit, but of two expandable blocks the one whose stretch (with the unmapped memory behind it) is smaller."""
        position = bisect_left(pool, (size,))
        if position == len(pool):
            return None
        while position + 1 < len(pool) and _stretch(pool[position + 1][2]) < _stretch(pool[position][2]):
            position += 1
        return pool.pop(position)[2]

    def _expand(self, size: int, small: bool, stream: int) -> Block | None:
        """Map pages at the end of the pool's one segment until a free block of `size` stands there."""
        key = (small, stream)
        page = SMALL_SEGMENT if small else LARGE_SEGMENT
        unmapped = self._expandable.get(key)
        if unmapped is None:
            unmapped = Block(self._next_address, 1024 * GiB, small, stream, -self._next_address)
            unmapped.mapped = False
            self._next_address += 1024 * GiB
            self._expandable[key] = unmapped
        candidate = self._expansion_candidate(unmapped, size)
        pool = self._free[key]
        before = candidate.previous
        have = before.size if before is not None and before.free and before.mapped else 0
        missing = -(-(size - have) // page) * page
        if candidate.next is not None:
            missing = min(missing, candidate.size)
        if self.capacity_bytes is not None and self.reserved_bytes + missing > self.capacity_bytes:
            return None
        self._count_reserved("segment_map", missing)
        block = self._map(candidate, missing, key)
        if have and before is not None:
            _take(pool, before)
            block.address, block.size, block.previous = before.address, block.size + before.size, before.previous
            if block.previous is not None:
                block.previous.next = block
        following = block.next
        if following is not None and following.free and following.mapped:
            _take(pool, following)
            block.size, block.next = block.size + following.size, following.next
            if block.next is not None:
                block.next.previous = block
        return block

    def _expansion_candidate(self, last: Block, size: int) -> Block:
        """The lowest unmapped stretch that, with the free block before it, is large enough; the last one always is."""
        first = last
        while first.previous is not None:
            first = first.previous
        block: Block | None = first
        while block is not None and block is not last:
            if not block.mapped:
                before, after = block.previous, block.next
                room = block.size + (before.size if before is not None and before.free and before.mapped else 0)
                room += after.size if after is not None and after.free and after.mapped else 0
                if room >= size:
                    return block
            block = block.next
        return last

    def _map(self, unmapped: Block, size: int, key: tuple[bool, int]) -> Block:
        block = Block(unmapped.address, size, unmapped.small, unmapped.stream, unmapped.segment)
        block.previous = unmapped.previous
        if block.previous is not None:
            block.previous.next = block
        if size == unmapped.size:
            block.next = unmapped.next
            if block.next is not None:
                block.next.previous = block
        else:
            unmapped.address, unmapped.size = unmapped.address + size, unmapped.size - size
            block.next, unmapped.previous = unmapped, block
        return block

    def _unmap(self, block: Block) -> None:
        """Give the whole pages inside a free expandable block back; parts of pages at its ends stay mapped."""
        page = SMALL_SEGMENT if block.small else LARGE_SEGMENT
        base = -block.segment
        start = base + -(-(block.address - base) // page) * page
        end = base + (block.address + block.size - base) // page * page
        if end <= start:
            return
        pool = self._free[(block.small, block.stream)]
        _take(pool, block)
        if start > block.address:
            front = Block(block.address, start - block.address, block.small, block.stream, block.segment)
            front.previous, front.next = block.previous, block
            if front.previous is not None:
                front.previous.next = front
            block.previous = front
            insort(pool, (front.size, front.address, front))
        if block.address + block.size > end:
            back = Block(end, block.address + block.size - end, block.small, block.stream, block.segment)
            back.previous, back.next = block, block.next
            if back.next is not None:
                back.next.previous = back
            block.next = back
            insort(pool, (back.size, back.address, back))
        block.address, block.size, block.mapped = start, end - start, False
        self._count_reserved("segment_unmap", block.size)
        self._merge_unmapped(block)

    def _merge_unmapped(self, block: Block) -> None:
        last = self._expandable[(block.small, block.stream)]
        before, after = block.previous, block.next
        if before is not None and not before.mapped:
            block.address, block.size, block.previous = before.address, block.size + before.size, before.previous
            if block.previous is not None:
                block.previous.next = block
        if after is not None and not after.mapped:
            block.size, block.next = block.size + after.size, after.next
            if block.next is not None:
                block.next.previous = block
            if after is last:
                self._expandable[(block.small, block.stream)] = block

    def blocks(self) -> list[tuple[int, list[tuple[int, bool]]]]:
        """The final map: for every segment, in the order of addresses, its size and its blocks as (bytes, allocated)."""
        found = []
        for first in sorted(self._segments.values(), key=lambda b: b.segment):
            block: Block | None = first
            while block is not None and block.previous is not None:
                block = block.previous
            chain = []
            while block is not None:
                chain.append((block.size, not block.free))
                block = block.next
            found.append((sum(size for size, _ in chain), chain))
        return found


def _take(pool: _Free, block: Block) -> None:
    del pool[bisect_left(pool, (block.size, block.address))]


def _stretch(block: Block) -> int:
    following = block.next
    return block.size + (following.size if following is not None and not following.mapped else 0)
