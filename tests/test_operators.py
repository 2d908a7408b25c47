# SPDX-License-Identifier: Apache-2.0
"""Operators one at a time: allocations as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100.

Workspaces of convolutions are those of cuDNN's planner. Left out: causal attention by PyTorch's own products, whose mask is added in place on
CUDA but not on `meta`. Compared in blocks of the allocator. Small blocks are left out: what a library keeps of a few numbers differs from
version to version.
"""

import itertools
import json
from pathlib import Path

import pytest
import torch

from bsmodel.hardware import PLANNED
from bsmodel.memory.allocator import round_size
from bsmodel.recording.cuda_like import flash
from bsmodel.recording.cuda_like.pretence import pretend_cuda
from bsmodel.recording.recorder import Recorder
from bsmodel.tape import buffer_bytes
from tests.operators import programs

RECORDED = json.loads((Path(__file__).parent / "data" / "operators.json").read_text())
SMALL = 4096


@pytest.fixture(scope="module")
def recorder(a100):
    found = Recorder(a100.capability)
    with flash.pretended(), pretend_cuda(a100, found.follows), found:
        warm = torch.randn(8, 8, device="cuda", requires_grad=True)
        (torch.nn.functional.linear(warm, warm, warm[0]) @ warm).sum().backward()  # the workspaces of libraries come with their first use
        yield found


def blocks(events):
    """Signed bytes of every block of more than a few numbers, in order."""
    sizes = [round_size(abs(event)) * (1 if event > 0 else -1) for event in events]
    return [size for size in sizes if abs(size) > SMALL]


def recorded_by(recorder, program, gpu):
    first = len(recorder.events)
    program()
    events = []
    for event in recorder.events[first:]:
        allocation = recorder.allocations[max(event, ~event)]
        size = allocation.size_bytes + buffer_bytes(allocation.formula, allocation.parameters, gpu)
        size *= allocation.kind in ("", *PLANNED)  # the planner knows nothing of what cards take besides
        events.append(size if event >= 0 else -size)
    return events


@pytest.mark.parametrize("name", RECORDED)
def test_an_operator_takes_what_it_takes_on_cuda(name, recorder, a100):
    mine, real = (blocks(events) for events in (recorded_by(recorder, programs()[name], a100), RECORDED[name]))

    assert [size for size in mine if size > 0] == [size for size in real if size > 0]
    assert max(itertools.accumulate(mine)) == max(itertools.accumulate(real))
