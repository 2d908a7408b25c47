# SPDX-License-Identifier: Apache-2.0
"""Samples that differ in size: the mean is what is likely, the worst batch the upper end, and what has no closed form says so."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel import Workload
from bsmodel.memory.data_parallel import buckets_bytes, data_parallel
from tests.test_refusals import line_of


def rows(each):
    """Batches of samples with so many rows each."""
    return lambda size: torch.zeros(size * each, 64)


def packed(batch, **fields):
    return Workload(lambda: nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8)), batch, lambda model, x: model(x).mean(), name="packed", **fields)


def test_the_worst_batch_is_the_upper_end_and_the_mean_is_likely(a100):
    mean, worst = (bsmodel.trace(packed(rows(each)), gpu=a100) for each in (40, 100))
    both = bsmodel.trace(packed(rows(40), worst_batch=rows(100)), gpu=a100)
    for batch in (2, 5, 64, 1000, 100_000):
        likely, upper, given = (bsmodel.predict(tape, a100, batch) for tape in (mean, worst, both))
        assert given.reserved_bytes == likely.reserved_bytes and given.requested_bytes == likely.requested_bytes
        assert given.reserved_upper_bytes == upper.reserved_upper_bytes
    assert any("worst_batch" in remark for remark in both.remarks)
    usual, safe, given = (bsmodel.fit(tape, a100) for tape in (mean, worst, both))
    assert given.likely_batch == usual.likely_batch and given.batch == safe.batch


def test_a_worst_batch_that_takes_less_is_refused(a100):
    message = line_of(bsmodel.trace, packed(rows(40), worst_batch=rows(10)), None, a100)
    assert "worst_batch(" in message and "less than batch(" in message


@pytest.mark.parametrize("lists", [False, True])
def test_samples_that_differ_in_size_are_refused_by_what_they_hold(a100, lists):
    sizes = [torch.zeros(10 + i % 4, 64) for i in range(16)]
    uneven = packed(lambda size: sizes[:size] if lists else torch.cat([sizes[i % 16] for i in range(size)]))
    if lists:
        uneven = replace(uneven, loss=lambda model, parts: torch.stack([model(part).mean() for part in parts]).mean())
    message = line_of(bsmodel.trace, uneven, None, a100)
    assert "batches of 3 to 7 of packed hold 2,112, 2,944, 3,584, 4,288, 5,056 elements" in message and "worst_batch" in message


def test_a_saved_recording_answers_for_the_worst_too(a100, tmp_path):
    tape = bsmodel.trace(packed(rows(40), worst_batch=rows(100)), gpu=a100)
    tape.save(tmp_path / "tape")
    again = bsmodel.Tape.load(tmp_path / "tape")
    assert bsmodel.predict(again, a100, 1000) == bsmodel.predict(tape, a100, 1000)
    assert bsmodel.fit(again, a100).batch == bsmodel.fit(tape, a100).batch
    replace(tape, worst=replace(tape.worst, precision="fp16")).save(tmp_path / "other")
    assert "worst." in line_of(bsmodel.Tape.load, tmp_path / "other")


def test_on_several_devices_the_worst_has_buckets_too(a100):
    tape = data_parallel(bsmodel.trace(packed(rows(40), worst_batch=rows(100)), gpu=a100))
    assert buckets_bytes(tape.worst) == buckets_bytes(tape) > 0
