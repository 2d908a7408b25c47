# SPDX-License-Identifier: Apache-2.0
"""Blocks of device memory, the pools of free ones, and segments that grow and shrink by pages.

Source: c10/cuda/CUDACachingAllocator.cpp, read at 2.11.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

_BY_ADDRESS = attrgetter("address")


class Block:
    """A stretch of one segment between its neighbours: allocated, free (then its pool holds it) or, in a growing segment, not mapped."""

    __slots__ = ("address", "age_base", "free", "mapped", "next", "pool", "previous", "requested_bytes", "size_bytes")

    def __init__(self, address: int, size_bytes: int, pool: Pool) -> None:
        self.address, self.size_bytes, self.pool = address, size_bytes, pool
        self.previous: Block | None = None
        self.next: Block | None = None
        self.free, self.mapped = False, True
        self.requested_bytes = self.age_base = 0

    def split(self, size_bytes: int) -> Block:
        """Keep the first `size_bytes` and return the rest as a new block behind."""
        rest = Block(self.address + size_bytes, self.size_bytes - size_bytes, self.pool)
        rest.previous, rest.next = self, self.next
        if rest.next is not None:
            rest.next.previous = rest
        self.size_bytes, self.next = size_bytes, rest
        return rest

    def absorb(self, following: Block) -> None:
        """Take over the neighbour behind. The one in front always stays, so a segment keeps its first block."""
        self.size_bytes += following.size_bytes
        self.next = following.next
        if self.next is not None:
            self.next.previous = self


class Pool:
    """The free blocks of one stream, small or large, by size and then by address; and the unmapped blocks, by address."""

    __slots__ = ("blocks", "keys", "page_bytes", "slack_bytes", "stream", "unmapped")

    def __init__(self, stream: int, page_bytes: int, slack_bytes: int) -> None:
        self.stream, self.page_bytes = stream, page_bytes
        self.slack_bytes = slack_bytes  # a remainder up to this is not split off
        self.keys: list[int] = []  # size and address of `blocks`, in one number
        self.blocks: list[Block] = []
        self.unmapped: list[Block] = []

    def put(self, block: Block) -> None:
        """Add a free block."""
        key = block.size_bytes << 64 | block.address
        at = bisect_left(self.keys, key)
        self.keys.insert(at, key)
        self.blocks.insert(at, block)
        block.free = True

    def take(self, block: Block) -> None:
        """Remove a free block."""
        at = bisect_left(self.keys, block.size_bytes << 64 | block.address)
        del self.keys[at], self.blocks[at]
        block.free = False

    def merged(self, block: Block) -> Block:
        """Take the free neighbours of a block out of the pool and return the one block they make with it."""
        before, after = block.previous, block.next
        if before is not None and before.free:
            self.take(before)
            before.absorb(block)
            block = before
        if after is not None and after.free:
            self.take(after)
            block.absorb(after)
        return block

    def first_fit(self, size_bytes: int) -> int:
        """The index of the smallest block of at least `size_bytes`, the lowest address of equals; `len(blocks)` where none is."""
        return bisect_left(self.keys, size_bytes << 64)


class Pools(dict[int, Pool]):
    """The small or the large pools, by stream; each is made when first asked for."""

    def __init__(self, page_bytes: int, slack_bytes: int) -> None:
        self.page_bytes, self.slack_bytes = page_bytes, slack_bytes

    def __missing__(self, stream: int) -> Pool:
        self[stream] = pool = Pool(stream, self.page_bytes, self.slack_bytes)
        return pool


class Segment(NamedTuple):
    """Contiguous memory of one stream, of the small pool or the large one: for every block its size and the bytes requested of it, 0 where it is free."""

    address: int
    stream: int
    size_bytes: int
    blocks: tuple[tuple[int, int], ...]
    page_bytes: int


def mapped_stretches(first: Block) -> Iterator[Segment]:
    """What a snapshot shows of the segment that begins with `first`: one entry for each contiguous mapped stretch."""
    block: Block | None = first
    head = first
    contents: list[tuple[int, int]] = []
    while block is not None:
        if block.mapped:
            head = head if contents else block
            contents.append((block.size_bytes, block.requested_bytes))
        block = block.next
        if contents and (block is None or not block.mapped):
            yield Segment(head.address, head.pool.stream, sum(size for size, _ in contents), tuple(contents), head.pool.page_bytes)
            contents = []


def stretch_bytes(block: Block) -> int:
    """The size to which a free block of a growing segment can be brought by mapping what follows it."""
    following = block.next
    return block.size_bytes + (following.size_bytes if following is not None and not following.mapped else 0)


def find_room(pool: Pool, size_bytes: int) -> Block | None:
    """The first block of the lowest run of free and unmapped blocks that holds `size_bytes`: find_expandable_block."""
    for unmapped in pool.unmapped:
        before = unmapped.previous
        first = before if before is not None and before.free else unmapped
        found_bytes, block = 0, first
        while found_bytes < size_bytes and (block.free or not block.mapped):
            found_bytes += block.size_bytes
            if block.next is None:
                break
            block = block.next
        if found_bytes >= size_bytes:
            return first
    return None


def map_pages(unmapped: Block, size_bytes: int) -> Block:
    """Map the first `size_bytes`, whole pages, of an unmapped block; return the free block they become part of: map_block."""
    pool = unmapped.pool
    pool.unmapped.remove(unmapped)
    if size_bytes < unmapped.size_bytes:
        rest = unmapped.split(size_bytes)
        rest.mapped = False
        insort(pool.unmapped, rest, key=_BY_ADDRESS)
    unmapped.mapped = True
    block = pool.merged(unmapped)
    pool.put(block)
    return block


def unmap_pages(block: Block, segment_address: int) -> Block | None:
    """Unmap the whole pages inside a free block, and return them; what is left of pages at its ends stays free: unmap_block."""
    pool, page = block.pool, block.pool.page_bytes
    start = segment_address + -(-(block.address - segment_address) // page) * page
    end = segment_address + (block.address + block.size_bytes - segment_address) // page * page
    if end <= start:
        return None
    pool.take(block)
    pages = block
    if start > block.address:
        pages = block.split(start - block.address)
        pool.put(block)
    if pages.address + pages.size_bytes > end:
        pool.put(pages.split(end - start))
    pages.mapped = False
    return pages


def merge_unmapped(pages: Block) -> Block:
    """File a newly unmapped block in its pool, merged with unmapped neighbours."""
    pool, before, after = pages.pool, pages.previous, pages.next
    if after is not None and not after.mapped:
        pool.unmapped.remove(after)
        pages.absorb(after)
    if before is not None and not before.mapped:
        before.absorb(pages)
        return before
    insort(pool.unmapped, pages, key=_BY_ADDRESS)
    return pages
