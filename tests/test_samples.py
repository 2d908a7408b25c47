# SPDX-License-Identifier: Apache-2.0
"""Steps that do something for every sample apart: each counts as often as there are samples."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bsmodel
from bsmodel import Training, Workload
from bsmodel.recording import alignment
from bsmodel.recording.samples import Element, laid_onto
from tests.models import SGD, workload
from tests.test_steps import Narrow


def boxes(size):
    return torch.zeros(size, 768), [{"boxes": torch.zeros(7, 4), "labels": torch.zeros(7, dtype=torch.long)} for _ in range(size)]


def matched(model, batch):
    """Boxes of every sample against its own, from a matcher on the host; the costs pair all samples with all boxes."""
    outputs = model(batch[0])
    costs = torch.cdist(outputs.detach().view(-1, 4), torch.cat([target["boxes"] for target in batch[1]]), p=1).cpu()
    assert costs.size(1) == 7 * len(batch[1])
    losses = [(row.view(-1, 4).repeat(4, 1)[:7] - target["boxes"]).abs().exp().sum() for row, target in zip(outputs, batch[1], strict=True)]
    return torch.stack(losses).mean()


def test_what_a_step_does_for_every_sample_apart_is_counted_for_each(a100):
    asked = workload(Narrow, boxes, matched)
    tape = bsmodel.trace(asked, SGD, a100)

    assert any("for every sample apart" in remark for remark in tape.remarks)
    for batch in (9, 30):
        direct = bsmodel.predict(bsmodel.recording.record(asked, SGD, a100, batch), a100, 1).allocated_bytes
        assert bsmodel.predict(tape, a100, batch).allocated_bytes == pytest.approx(direct, rel=0.002)
        launches = [recorded.operations.column("launches", b).sum() for recorded, b in ((tape, batch), (bsmodel.recording.record(asked, SGD, a100, batch), 1))]
        assert launches[0] == pytest.approx(launches[1])


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(768, 2048), nn.ReLU(), nn.Linear(2048, 768), nn.Linear(768, 400))


def compared(model, x):
    """Every sample's boxes against as many as it has."""
    losses = []
    for row in model(x):
        boxes = row.view(-1, 4)
        targets = torch.ones(37, 4, device=boxes.device)
        costs = (boxes[:, None] - targets[None]).abs().sum(-1)
        losses.append(costs.exp().mean() + (boxes[:37] - targets).pow(2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("precision", "measured"), [("fp32", (89_245_184, 90_842_624)), ("bf16-mixed", (89_867_776, 90_433_024))])
def test_a_loop_over_samples_takes_what_it_takes_on_cuda(precision, measured, a100):
    """Allocated bytes at 16 and 200 samples, recorded from the PyTorch CUDA allocator on a simulated device."""
    asked = Workload(Wide, lambda size: torch.zeros(size, 768), compared, name="compared")
    tape = bsmodel.trace(asked, Training(precision=precision, optimizer="adamw"), a100)

    assert [bsmodel.predict(tape, a100, batch).allocated_bytes for batch in (16, 200)] == pytest.approx(measured, rel=1e-4)


def rounds(batch, *loops):
    """What happens in loops over a batch that follow each other, each given by the elements of a round."""
    return [Element(name, size) for loop in loops for _ in range(batch) for name, size in loop]


@pytest.mark.parametrize(
    "loops",
    [
        ([("mul", 4), ("add", 4)], [("max", 4), ("sub", 8), ("div", 4)]),
        ([("cat", 4)], [("sub", 4), ("exp", 4), ("sub", 8)], [("div", 4), ("div", 4)]),
    ],
)
@pytest.mark.parametrize("batch", [3, 5, 8])
def test_rounds_of_loops_that_follow_each_other_are_told_apart(loops, batch):
    base, other = rounds(2, *loops), rounds(batch, *loops)
    standing = laid_onto(base, other, batch - 2)

    assert standing is not None
    stand = [(element, other[position]) for element, (own, more) in zip(base, standing, strict=True) for position in (own, *(each for each, _ in more))]
    assert all(element == found for element, found in stand) and len(stand) == len(other)
    begins = [2 * sum(map(len, loops[:index])) for index in range(len(loops) + 1)]
    for low, high in itertools.pairwise(begins):  # further rounds of a loop stand with its own elements
        assert sum(1 + len(more) for _, more in standing[low:high]) == batch * (high - low) // 2


def refined(model, x):
    """Two loops over the samples that make the same things: costs of all, then losses of all."""
    outputs, costs, losses = model(x), [], []
    for row in outputs:
        costs.append((row.view(-1, 4)[:, None] - torch.ones(37, 4, device=row.device)).abs().sum(-1))
    for row, cost in zip(outputs, costs, strict=True):
        losses.append((row.view(-1, 4)[:, None] - torch.ones(37, 4, device=row.device)).exp().mean() + cost.exp().mean())
    return torch.stack(losses).mean()


def test_loops_that_follow_each_other_are_counted_for_each_sample(a100):
    asked = Workload(Wide, lambda size: torch.zeros(size, 768), refined, name="refined")
    tape = bsmodel.trace(asked, SGD, a100)

    for batch in (10, 41):
        direct = bsmodel.predict(bsmodel.recording.record(asked, SGD, a100, batch), a100, 1).allocated_bytes
        assert bsmodel.predict(tape, a100, batch).allocated_bytes == pytest.approx(direct, rel=0.002)


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 20), st.sampled_from((1, 8, 32)))
def test_a_polynomial_lies_above_what_is_rounded_up_to_whole_rows(width, fixed, alignment_):
    batches = (3, 5, 7, 9)
    values = [(fixed + width * batch) * -(-width * batch // alignment_) * alignment_ for batch in batches]
    found = alignment.nearly(values, batches)

    if found is None:  # too much is rounded
        assert width < 100 * alignment_
    else:
        assert found.is_size and all(value <= found(batch) <= value * 1.01 for value, batch in zip(values, batches, strict=True))


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 32, 3, 2, 1), *(nn.Conv2d(32, 32, 3, 2, 1) for _ in range(2))])
        self.head = nn.Conv2d(32, 8, 1)

    def forward(self, x):
        found = []
        for level in self.levels:
            x = level(x).relu()
            found.append(self.head(x).flatten(2).transpose(1, 2))
        return found


def assigned(model, batch):
    """For every sample and level the place nearest to each box, and the class of the box that is nearest to each place."""
    total = 0
    levels = model(batch[0])
    for index, target in enumerate(batch[1]):
        for level in levels:
            costs = torch.cdist(level[index][:, :4], target["boxes"])
            total = total + (level[index][costs.argmin(0), :4] - target["boxes"]).abs().mean()
            total = total + nn.functional.cross_entropy(level[index][:, 4:], costs.argmin(1) % 4)
    return total / len(batch[1])


def pictures(size):
    return torch.zeros(size, 3, 96, 96), [{"boxes": torch.rand(6, 4)} for _ in range(size)]


def test_a_loop_within_a_loop_over_samples_is_counted_for_each(a100):
    """Beside convolutions, whose workspaces cards do without."""
    asked = Workload(Pyramid, pictures, assigned, name="assigned")
    tape = bsmodel.trace(asked, Training(), a100)

    for batch in (6, 31):
        direct = bsmodel.predict(bsmodel.recording.record(asked, Training(), a100, batch), a100, 1).allocated_bytes
        assert bsmodel.predict(tape, a100, batch).allocated_bytes == pytest.approx(direct, rel=0.001)
