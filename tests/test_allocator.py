# SPDX-License-Identifier: Apache-2.0
"""The allocator against recorded histories, to the byte, and by its rules one at a time; test_allocator_laws.py has the laws it keeps.

tests/data/allocator holds histories recorded from the PyTorch CUDA allocator (torch 2.11.0) on a simulated device. In a history
`requests` has the bytes of every allocation, 0 for a free, and minus the rounded bytes where memory ran out; `addresses` says where the
block lies, in units of 512 bytes from the first segment on; `segments` is the memory map at the end.
"""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsmodel.errors import InvalidInputError
from bsmodel.memory.allocator import CachingAllocator, OutOfMemoryError, round_size, segment_size
from bsmodel.memory.settings import Settings
from bsmodel.units import GiB, MiB

DATA = Path(__file__).parent / "data" / "allocator"
HISTORIES = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))


def load(name):
    """A recorded history."""
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def allocator_of(history):
    """An allocator set up as the recorded one."""
    return CachingAllocator(history["capacity_bytes"], Settings.parse(history["settings"]), total_bytes=history["total_bytes"])


def program(history):
    """The history of one stream as operations and sizes, for `run`: tensor k is the k-th allocation."""
    operations, sizes, tensor_at = [], [], {}
    for request, address in zip(history["requests"], history["addresses"], strict=True):
        if request:
            tensor_at[address] = len(sizes)
            operations.append(len(sizes))
            sizes.append(abs(request))
        else:
            operations.append(~tensor_at.pop(address))
    return operations, sizes


def replayed(history):
    """The allocator after the history, and where it placed the allocations: None where it ran out of memory."""
    allocator, live, places, base = allocator_of(history), {}, [], None
    streams = history.get("streams", [0] * len(history["requests"]))
    for request, address, stream in zip(history["requests"], history["addresses"], streams, strict=True):
        if request == 0:
            allocator.free(live.pop(address))
            continue
        try:
            block = allocator.malloc(abs(request), stream)
        except OutOfMemoryError:
            places.append(None)
            continue
        base = block.address if base is None else base
        places.append((block.address - base) // 512)
        live[address] = block
    return allocator, places


def relative(allocator):
    """Driver requests and the memory map, with addresses as the histories have them."""
    base = allocator.segment_events[0][1]
    events = [[action, (address - base) // 512, size] for action, address, size, _ in allocator.segment_events]
    return events, [[(s.address - base) // 512, s.stream, [list(block) for block in s.blocks]] for s in allocator.blocks()]


@pytest.mark.parametrize("name", HISTORIES)
def test_a_recorded_history_replays_to_the_byte(name):
    """Every address, every request to the driver in order, both peaks, the retries, and the map at the end."""
    history = load(name)
    allocator, places = replayed(history)
    events, segments = relative(allocator)

    assert places == [None if r < 0 else a for r, a in zip(history["requests"], history["addresses"]) if r]
    assert events == history["segment_events"]
    assert allocator.max_allocated_bytes == history["max_allocated_bytes"]
    assert allocator.max_reserved_bytes == history["max_reserved_bytes"]
    assert allocator.retries == history["retries"]
    assert segments == history["segments"]


@pytest.mark.parametrize("name", [name for name in HISTORIES if not name.startswith("random")])
def test_the_loop_replays_a_history_too(name):
    """`run`, resumed after every time memory runs out, and told where that was."""
    history = load(name)
    operations, sizes = program(history)
    allocator, start, failures = allocator_of(history), 0, []
    while start < len(operations):
        try:
            allocator.run(operations[start:], sizes)
            break
        except OutOfMemoryError as error:
            failures.append(start + error.operation)
            start = failures[-1] + 1

    assert failures == [i for i, request in enumerate(history["requests"]) if request < 0]
    assert relative(allocator) == (history["segment_events"], history["segments"])


def test_the_histories_reach_every_rule():
    """A retry that helps, one that does not, memory unmapped, several streams, and every setting."""
    histories = [load(name) for name in HISTORIES]
    actions = {event[0] for history in histories for event in history["segment_events"]}
    settings = ",".join(history["settings"] for history in histories)

    assert actions == {"segment_alloc", "segment_free", "segment_map", "segment_unmap"}
    assert any(history["retries"] and min(history["requests"]) >= 0 for history in histories)
    assert any(min(history["requests"]) < 0 for history in histories)
    assert any(len(set(history.get("streams", ()))) > 1 for history in histories)
    assert all(
        f"{key}:" in settings
        for key in "expandable_segments max_split_size_mb garbage_collection_threshold roundup_power2_divisions "
        "max_non_split_rounding_mb per_process_memory_fraction".split()
    )


def test_more_capacity_can_fail_where_less_succeeds():
    """Both are recorded: with 300 MiB the cached blocks go back early; with 310 a small tensor settles in one, the last does not fit."""
    fits, fails = load("more-capacity-fits"), load("more-capacity-fails")

    assert fits["capacity_bytes"] < fails["capacity_bytes"]
    assert [abs(request) for request in fits["requests"]] == [abs(request) for request in fails["requests"]]
    assert min(fits["requests"]) == 0 and min(fails["requests"]) < 0


# -- rules by hand ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "divisions", "rounded"),
    [
        (1, 0, 512),
        (512, 4, 512),
        (2049, 4, 2560),
        (5000, 4, 5120),
        (5000, 1, 5120),
        (1200 * 512, 4, 1280 * 512),
        (MiB + 1, 2, 3 * MiB // 2),
    ],
)
def test_sizes_round_up_to_512_bytes_or_to_a_division_between_powers_of_two(requested, divisions, rounded):
    assert round_size(requested, divisions) == rounded


@given(st.integers(1, 2**40), st.sampled_from([0, 1, 2, 4, 16]))
def test_rounding_is_idempotent_and_a_segment_holds_its_block(requested, divisions):
    rounded = round_size(requested, divisions)

    assert requested <= rounded <= max(2 * requested, 512) and rounded % 512 == 0
    assert round_size(rounded, divisions) == rounded
    assert segment_size(rounded) >= rounded and segment_size(rounded) % (2 * MiB) == 0


def test_divisions_depend_on_the_interval_of_the_size():
    settings = Settings.parse("roundup_power2_divisions:[2:2,8:0,>:4]")
    allocator = CachingAllocator(settings=settings)
    sizes = [allocator.malloc(int(mebibytes * MiB)).size_bytes / MiB for mebibytes in (0.6, 3.2, 9.2, 100.1)]

    assert sizes == [0.75, 4, 9.2 + (512 - 9.2 * MiB % 512) / MiB, 112]


@pytest.mark.parametrize(("request_bytes", "block_bytes"), [(11 * MiB, 12 * MiB), (11 * MiB - 512, 11 * MiB - 512)])
def test_a_large_remainder_up_to_a_mebibyte_stays_with_its_block(request_bytes, block_bytes):
    assert CachingAllocator().malloc(request_bytes).size_bytes == block_bytes


def test_a_growing_segment_leaves_no_slack_and_maps_no_page_too_many():
    allocator = CachingAllocator(settings=Settings(expandable_segments=True))

    assert allocator.malloc(9 * MiB).size_bytes == 9 * MiB
    assert allocator.malloc(11 * MiB).size_bytes == 11 * MiB
    assert allocator.malloc(40 * MiB).size_bytes == 40 * MiB
    assert allocator.reserved_bytes == 60 * MiB


@pytest.mark.parametrize(("request_bytes", "reserved_bytes"), [(20 * MiB, 60 * MiB), (20 * MiB + 512, 40 * MiB), (19 * MiB, 60 * MiB)])
def test_an_oversize_block_serves_only_oversize_requests_less_than_20_mib_smaller(request_bytes, reserved_bytes):
    allocator = CachingAllocator(settings=Settings(max_split_size_bytes=20 * MiB))
    allocator.free(allocator.malloc(40 * MiB))
    allocator.malloc(request_bytes)

    assert allocator.reserved_bytes == reserved_bytes


def test_free_blocks_stay_with_their_stream():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(12 * MiB, stream=1))
    allocator.malloc(12 * MiB, stream=2)

    assert allocator.reserved_bytes == 24 * MiB


def test_the_fraction_is_of_the_card_not_of_what_the_context_leaves():
    allocator = CachingAllocator(3 * GiB, Settings(per_process_memory_fraction=0.5), total_bytes=4 * GiB + 2 * MiB)
    allocator.malloc(2 * GiB)  # 1 MiB is left

    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(100)
    error = caught.value
    assert (error.requested_bytes, error.segment_bytes, error.operation) == (100, 2 * MiB, None)
    assert error.allocated_bytes == error.reserved_bytes == 2 * GiB


def test_all_cached_memory_goes_back_on_demand():
    allocator = CachingAllocator()
    kept, freed = allocator.malloc(100), allocator.malloc(30 * MiB)
    allocator.free(freed)
    allocator.release_cached()

    assert allocator.reserved_bytes == 2 * MiB
    allocator.free(kept)
    allocator.release_cached()
    assert allocator.reserved_bytes == 0 and allocator.blocks() == []


# -- the loop ----------------------------------------------------------------------------------------------------------------------------


def test_the_oldest_instance_of_a_tensor_is_freed_first():
    allocator = CachingAllocator()
    left = []
    for size in (1000, 3000, 7000):
        allocator.run([0], [size])
    for _ in range(3):
        allocator.run([~0], [])
        left.append(allocator.requested_bytes)

    assert left == [10_000, 7000, 0]


def test_an_instance_without_bytes_takes_nothing_and_keeps_its_place():
    allocator = CachingAllocator()
    allocator.run([0], [0])
    assert allocator.reserved_bytes == 0

    allocator.run([0, ~0], [1000])
    assert allocator.requested_bytes == 1000


def test_a_failing_operation_is_named_and_the_run_goes_on_from_there():
    allocator = CachingAllocator(40 * MiB)
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.run([0, 1, 2], [15 * MiB, 15 * MiB, 15 * MiB])
    assert caught.value.operation == 2

    allocator.run([~0, 2], [0, 0, 15 * MiB])
    assert allocator.requested_bytes == 30 * MiB


def test_what_is_optional_is_done_without_from_then_on():
    allocator = CachingAllocator(40 * MiB)
    allocator.run([0, 1, ~1, 1, ~1], [20 * MiB, 30 * MiB], optional={1})

    assert allocator.allocated_bytes == allocator.max_allocated_bytes == 20 * MiB
    assert allocator.retries == 1
    with pytest.raises(OutOfMemoryError):
        allocator.run([1], [20 * MiB, 30 * MiB])


def test_what_cannot_be_freed_or_asked_for_is_refused():
    allocator = CachingAllocator()
    with pytest.raises(InvalidInputError, match="operation 1 frees tensor 7"):
        allocator.run([0, ~7], [10])
    block = allocator.malloc(10)
    allocator.free(block)
    with pytest.raises(InvalidInputError, match="freed twice"):
        allocator.free(block)
    with pytest.raises(InvalidInputError, match="more than 0"):
        allocator.malloc(0)


# -- settings ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", Settings()),
        (" expandable_segments : True, max_split_size_mb:128,", Settings(expandable_segments=True, max_split_size_bytes=128 * MiB)),
        (
            "garbage_collection_threshold:0.8,per_process_memory_fraction:0.5",
            Settings(garbage_collection_threshold=0.8, per_process_memory_fraction=0.5),
        ),
        ("backend:native,pinned_use_background_threads:True,max_non_split_rounding_mb:64", Settings(max_non_split_rounding_bytes=64 * MiB)),
        ("roundup_power2_divisions:4", Settings(roundup_power2_divisions=4)),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", Settings(roundup_power2_divisions=(*(1,) * 9, 2, 4, 8, 8, 8, 8, 8))),
        ("roundup_power2_divisions:[64:8,256:4]", Settings(roundup_power2_divisions=(*(8,) * 7, 0, 4, *(0,) * 7))),
        ("roundup_power2_divisions:[>:4]", Settings(roundup_power2_divisions=(0, *(4,) * 15))),
    ],
)
def test_settings_are_read_as_pytorch_reads_them(text, settings):
    assert Settings.parse(text) == settings


@pytest.mark.parametrize(
    "text",
    "max_split_size_mb:19 max_split_size_mb:x max_split_size_mb max_non_split_rounding_mb:19 garbage_collection_threshold:1.0 "
    "expandable_segments:true roundup_power2_divisions:3 roundup_power2_divisions:[3:4] roundup_power2_divisions:[256:3] "
    "roundup_power2_divisions:[256] per_process_memory_fraction:1.1 per_process_memory_fraction:nan nonsense:1 backend:cudaMallocAsync "
    "max_split_size_mb:128;expandable_segments:True large_segment_size_mb:40".split(),
)
def test_settings_that_pytorch_refuses_are_refused_in_one_line(text):
    with pytest.raises(InvalidInputError, match=r"^allocator setting [^\n]*expected [^\n]*$"):
        Settings.parse(text)


def test_divisions_come_as_one_number_or_sixteen():
    with pytest.raises(InvalidInputError, match="16"):
        Settings(roundup_power2_divisions=(2, 2))
