# SPDX-License-Identifier: Apache-2.0
"""How fast histories replay: python -m pytest benchmarks/bench_allocator.py -o python_files='bench_*.py' (pytest-benchmark)."""

import pytest

from bsmodel.memory.allocator import CachingAllocator
from bsmodel.memory.settings import Settings
from tests.test_allocator import load, program

EVENTS = 10_000


@pytest.fixture(scope="module")
def events():
    """Recorded training steps of T5-small and GPT-2, one after the other: 10,000 allocations and frees, and their sizes."""
    operations, sizes = [], []
    for name in ("default-t5-small", "default-gpt2"):
        more, more_sizes = program(load(name))
        operations += [k + len(sizes) if k >= 0 else k - len(sizes) for k in more]
        sizes += more_sizes
    return operations[:EVENTS], sizes


@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "max_split_size_mb:32", "roundup_power2_divisions:4"])
def test_replay_of_ten_thousand_events(benchmark, events, settings):
    """A fresh allocator without a limit, and one pass over the events."""
    operations, sizes = events
    assert len(operations) == EVENTS
    settings = Settings.parse(settings)
    benchmark(lambda: CachingAllocator(None, settings).run(operations, sizes))
