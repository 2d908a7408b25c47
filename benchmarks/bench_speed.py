# SPDX-License-Identifier: Apache-2.0
"""How fast the answers come: python -m pytest benchmarks/bench_speed.py -o python_files='bench_*.py' (pytest-benchmark)."""

import dataclasses

import numpy as np
import pytest

import bsmodel
from bsmodel.memory import CachingAllocator
from bsmodel.tape import joined
from bsmodel.timing import step_time
from bsmodel.workloads import MADE_HERE

UP_TO_1B = [name for name in MADE_HERE if name not in ("llama-3.2-1b", "llama-3-8b")] + ["llama-3.2-1b"]


@pytest.fixture(scope="module")
def a100():
    """The GPU everything is recorded for."""
    return bsmodel.Gpu.named("a100-40gb")


@pytest.fixture(scope="module")
def tape(a100):
    """A recording of about 5,000 allocations."""
    workload = bsmodel.Workload.named("gpt2")
    return bsmodel.trace(workload, workload.training, a100)


@pytest.mark.parametrize("name", UP_TO_1B)
def test_trace(benchmark, name, a100):
    """Recording a named workload, its library imported."""
    workload = bsmodel.Workload.named(name)
    bsmodel.trace(workload, workload.training, a100)
    benchmark.pedantic(bsmodel.trace, (workload, workload.training, a100), rounds=3)


def test_a_million_queries(benchmark, tape):
    """(batch, capacity) pairs in one numpy call each of `form` and `form.largest`."""
    form = bsmodel.footprint(tape)
    batches = np.arange(1, 1_000_001)
    capacities = batches * 10**6
    benchmark(lambda: form(batches) <= form.largest(capacities))


def test_replay_of_ten_thousand_events(benchmark, tape):
    """The allocator model on a recorded step, cut to 10,000 events."""
    events = [event for _, block in tape.program(4) for event in block][:10_000]
    sizes = tape.sizes(8).tolist()
    benchmark(lambda: CachingAllocator(None).run(events, sizes))


def test_fit(benchmark, tape, a100):
    """The largest batch by replays."""
    benchmark.pedantic(bsmodel.fit, (tape, a100), rounds=3)


def test_a_curve_of_256_batches_over_ten_thousand_kernels(benchmark, tape, a100):
    """Step times of all batches in one call, every kernel another one."""
    repeated = joined([tape.operations] * (10_000 // len(tape.operations) + 1))
    grown = repeated.fixed * (1 + np.arange(len(repeated))[:, None] / 1e6)  # no two alike, so that none is timed for another
    unlike = dataclasses.replace(tape, operations=dataclasses.replace(repeated, fixed=grown))
    benchmark.pedantic(step_time, (unlike, a100, np.arange(1, 257)), rounds=5)


def test_a_curve_of_256_batches_over_a_recorded_step(benchmark, tape, a100):
    """The same for a network that repeats itself, as networks do."""
    repeated = dataclasses.replace(tape, operations=joined([tape.operations] * (10_000 // len(tape.operations) + 1)))
    benchmark.pedantic(step_time, (repeated, a100, np.arange(1, 257)), rounds=5)
