# SPDX-License-Identifier: Apache-2.0
"""Laws the allocator keeps under any settings, on any device, whatever is allocated and freed."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bsmodel.memory.allocator import CachingAllocator, OutOfMemoryError
from bsmodel.memory.settings import Settings
from bsmodel.units import GiB, MiB

SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 3 * MiB), st.integers(1, 120).map(lambda halves: halves * MiB // 2))
STEPS = st.lists(st.tuples(st.one_of(st.just(0), SIZES), st.integers(0, 99), st.sampled_from([0, 0, 0, 7])), min_size=1, max_size=60)
CAPACITIES = st.integers(20, 300).map(lambda mebibytes: mebibytes * MiB)
CONFIGURATIONS = st.builds(
    Settings,
    expandable_segments=st.booleans(),
    max_split_size_bytes=st.sampled_from([None, 20 * MiB, 32 * MiB]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.4]),
    roundup_power2_divisions=st.sampled_from([0, 2]),
    per_process_memory_fraction=st.sampled_from([1.0, 0.8]),
)


def play(allocator, steps):
    """Carry out steps (bytes to allocate, or 0 to free the living block of that number), yielding the living blocks after each."""
    live = []
    for size, number, stream in steps:
        if size:
            try:
                live.append(allocator.malloc(size, stream))
            except OutOfMemoryError:
                yield None
                continue
        elif live:
            allocator.free(live.pop(number % len(live)))
        yield live


@given(CONFIGURATIONS, CAPACITIES, STEPS)
def test_living_blocks_never_overlap_and_the_counters_are_the_sums_over_the_map(settings, capacity, steps):
    allocator = CachingAllocator(capacity, settings)
    for live in play(allocator, steps):
        segments = allocator.blocks()
        contents = [block for segment in segments for block in segment.blocks]
        ranges = sorted((block.address, block.address + block.size_bytes) for block in live or ())

        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
        assert allocator.allocated_bytes == sum(size for size, requested in contents if requested)
        assert allocator.requested_bytes == sum(requested for _, requested in contents)
        assert allocator.reserved_bytes == sum(size for size, _ in contents)
        assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes <= capacity
        assert live is None or allocator.allocated_bytes == sum(block.size_bytes for block in live)
        assert all(first[1] or second[1] for segment in segments for first, second in pairwise(segment.blocks))
    assert allocator.max_allocated_bytes >= allocator.allocated_bytes
    assert allocator.max_reserved_bytes >= allocator.reserved_bytes


@given(CONFIGURATIONS, CAPACITIES, STEPS)
def test_splitting_and_merging_conserve_the_bytes_of_every_segment(settings, capacity, steps):
    allocator = CachingAllocator(capacity, settings)
    for _ in play(allocator, steps):
        obtained = {}
        for action, address, size, _ in allocator.segment_events:
            sign = 1 if action in ("segment_alloc", "segment_map") else -1
            for page in range(address, address + size, 2 * MiB):
                obtained[page] = obtained.get(page, 0) + sign
        reserved = [page for s in allocator.blocks() for page in range(s.address, s.address + s.size_bytes, 2 * MiB)]

        assert sorted(reserved) == sorted(page for page, count in obtained.items() if count == 1)
        assert set(obtained.values()) <= {0, 1}


@given(CONFIGURATIONS, CAPACITIES, STEPS)
def test_freeing_everything_leaves_whole_segments_that_all_go_back(settings, capacity, steps):
    allocator, live = CachingAllocator(capacity, settings), []
    for alive in play(allocator, steps):
        live = live if alive is None else alive
    for block in live:
        allocator.free(block)

    assert all(len(segment.blocks) == 1 for segment in allocator.blocks())
    assert allocator.allocated_bytes == allocator.requested_bytes == 0
    allocator.release_cached()
    assert allocator.reserved_bytes == 0 and allocator.blocks() == []


@given(st.booleans(), CAPACITIES, CAPACITIES, STEPS)
def test_until_a_device_first_refuses_a_larger_one_does_the_same(expandable, one, other, steps):
    """So more capacity never makes the first refusal come earlier; after it, anything can happen (see more-capacity in test_allocator.py)."""
    settings = Settings(expandable_segments=expandable)
    smaller, larger = (CachingAllocator(capacity, settings, total_bytes=GiB) for capacity in sorted((one, other)))
    for _ in zip(play(smaller, steps), play(larger, steps)):
        if smaller.retries:
            break
        assert larger.retries == 0
        assert larger.segment_events == smaller.segment_events
        assert [s.blocks for s in larger.blocks()] == [s.blocks for s in smaller.blocks()]


@given(CONFIGURATIONS, STEPS)
def test_what_an_unlimited_device_reserves_is_enough(settings, steps):
    """Without a fraction: at a capacity equal to its reserved peak the same run is not refused."""
    settings = Settings(settings.expandable_segments, settings.max_split_size_bytes)
    unlimited = CachingAllocator(None, settings)
    assert all(live is not None for live in play(unlimited, steps))
    limited = CachingAllocator(unlimited.max_reserved_bytes, settings)

    assert all(live is not None for live in play(limited, steps)) and limited.retries == 0
    assert limited.max_reserved_bytes == unlimited.max_reserved_bytes
