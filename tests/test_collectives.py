# SPDX-License-Identifier: Apache-2.0
"""What devices say to one another: published times, laws of a schedule, and what a step of several devices takes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel import Parallel, Training
from bsmodel.hardware import Gpu, nccl, network_named, networks
from bsmodel.parallel import nodes_of
from bsmodel.tape import Collective, Polynomial
from bsmodel.timing import Group, bus_share, group_of, seconds
from bsmodel.timing.collectives import KINDS, _links, _ring
from bsmodel.timing.schedule import waited
from tests import models
from tests.test_refusals import line_of

ROWS = Path(__file__).parent.parent / "benchmarks" / "collectives.jsonl"
LINKED = ("v100-16gb", "a100-40gb", "h100-80gb", "b200-180gb", "rtx-4090-24gb", "l4-24gb")
SIZES = st.integers(1, 1 << 34)


@pytest.mark.parametrize("row", ["oci-a100-1n-ar", "azure-ndh200v5-1n-ar", "stas-h200-8-16g-ag", "stas-h200-8-16g-rs", "stas-b200-8-ar", "vultr-b200-1n-rs"])
def test_large_collectives_in_a_node_take_what_was_published(row):
    """Within a tenth; none of these is a source of the model's own figures."""
    found = [json.loads(line) for line in ROWS.read_text().splitlines()]
    large = max((one for one in found if one["id"].rpartition("-")[0] == row), key=lambda one: one["size_bytes"])
    measured = large.get("seconds") or large["size_bytes"] * bus_share(large["kind"], large["devices"]) / large["bus_bytes_per_s"]
    assert float(seconds(large["kind"], large["size_bytes"], Group(large["devices"]), Gpu.named(large["gpu"]))) == pytest.approx(measured, rel=0.1)


@given(kind=st.sampled_from(KINDS), size=SIZES, ranks=st.integers(2, 512), gpu=st.sampled_from(LINKED), network=st.sampled_from(networks()))
def test_no_collective_is_faster_than_its_links(kind, size, ranks, gpu, network):
    """What is not known makes an interval; a reduction in the switch sends all once, where a ring sends it nearly twice."""
    card = Gpu.named(gpu).model_copy(update={"network": network})
    group = group_of(ranks, 1, min(ranks, 8))
    likely, low, high = (float(seconds(kind, size, group, card, end)) for end in ("likely", "low", "high"))
    assert 0 < low <= likely <= high
    through = (1 if kind == "all-reduce" else bus_share(kind, ranks)) * size / low
    assert through <= max(card.interconnect_bytes_per_s, 0 if group.nodes == 1 else network.bytes_per_s)


@given(size=SIZES, gpu=st.sampled_from(LINKED))
def test_a_group_of_one_says_nothing(size, gpu):
    assert not seconds("all-reduce", size, Group(1), Gpu.named(gpu))


@given(ranks=st.integers(1, 4096), stride=st.integers(1, 64), per_node=st.integers(1, 16))
def test_groups_stand_in_as_few_nodes_as_hold_them(ranks, stride, per_node):
    group = group_of(ranks, stride, per_node)
    assert group.nodes * group.per_node >= ranks and group.per_node * min(stride, per_node) <= max(per_node, stride)
    assert 8 * (nodes_of(ranks) - 1) < ranks <= 8 * nodes_of(ranks)


@st.composite
def schedules(draw):
    """Kernels one after the other, and collectives that are begun in order, each waited for at some later place."""
    kernels, said, after = draw(st.integers(1, 12)), [], 0
    for _ in range(draw(st.integers(0, 8))):
        after = draw(st.integers(after, kernels))
        said.append(Collective("all-reduce", Polynomial(1, 0), "backward", after, draw(st.integers(after, kernels)), draw(st.sampled_from([2, 4])), 1))
    computing = {place: np.array(draw(st.floats(0, 10))) for place in range(1, kernels + 1)}
    return said, [np.array(draw(st.floats(0, 10))) for _ in said], computing


@given(schedules())
def test_what_is_waited_for_is_never_more_than_what_is_said(schedule):
    said, lasting, computing = schedule
    found = float(waited(said, lasting, computing, np.array(0.0)))
    assert -1e-9 <= found <= sum(map(float, lasting)) + 1e-9
    everything = [each._replace(before=each.after) for each in said]
    assert found <= float(waited(everything, lasting, computing, np.array(0.0))) + 1e-9


def test_a_schedule_by_hand():
    """Three kernels of two seconds; what is begun after the first and takes three is waited for before the third: a second is not beside kernels."""
    said = [Collective("all-gather", Polynomial(1, 0), "forward", 1, 2, 2, 1)]
    computing = {1: np.array(2.0), 2: np.array(2.0), 3: np.array(2.0)}
    assert float(waited(said, [np.array(3.0)], computing, np.array(0.0))) == 1.0
    twice = [*said, said[0]._replace(before=3)]  # the second goes over the same link, and ends at 8
    assert float(waited(twice, [np.array(3.0)] * 2, computing, np.array(0.0))) == 2.0
    elsewhere = [said[0], twice[1]._replace(stride=2)]  # over another one it ends at 5, beside the third kernel
    assert float(waited(elsewhere, [np.array(3.0)] * 2, computing, np.array(0.0))) == 1.0


@pytest.fixture(scope="module")
def of_one(a100):
    return bsmodel.trace(models.attention(), Training(), a100)


@given(devices=st.sampled_from([2, 8, 64]), batch=st.integers(1, 256), accumulation=st.integers(1, 4))
def test_devices_wait_for_no_more_than_they_say(of_one, a100, devices, batch, accumulation):
    alone = bsmodel.step_time(of_one, a100, batch, accumulation)
    step = bsmodel.step_time(bsmodel.memory.on_devices(of_one, devices), a100, batch, accumulation)
    assert 0 <= step.exposed_seconds <= step.communication_seconds and 0 < step.scaling_efficiency <= 1
    assert step.seconds == pytest.approx(alone.seconds + step.exposed_seconds) and alone.communication_seconds == 0
    assert step.low_seconds <= step.seconds <= step.high_seconds and alone.scaling_efficiency == 1


def test_a_slower_network_takes_longer(of_one, a100):
    tape = bsmodel.memory.on_devices(of_one, 16)
    slow, fast = (a100.among(network_named(name)) for name in ("ethernet-10g", "infiniband-ndr"))
    assert bsmodel.step_time(tape, slow, 8).seconds > bsmodel.step_time(tape, fast, 8).seconds
    known = bsmodel.step_time(tape, a100, 8)
    assert known.low_seconds <= bsmodel.step_time(tape, fast, 8).high_seconds


def test_of_shards_of_sixteen_thousand_devices(a100):
    tape = bsmodel.trace(models.workload(), Training(parallel=Parallel(kind="fsdp2", devices=16_384)), a100)
    step = bsmodel.step_time(tape, a100, 8)
    assert {each.ranks for each in tape.collectives} == {16_384} and step.bound == "network"


@pytest.mark.parametrize(("gpu", "rings"), [("h200-141gb", 4), ("b200-180gb", 5)])
def test_few_cards_reduce_by_rings_and_more_in_the_switch(gpu, rings):
    """As NCCL chooses: 363 GB/s over the bus of 4 H200 and 673 of 4 B200, and more from the next card on."""
    card, size = Gpu.named(gpu), 8 << 30
    few, more = (bus_share("all-reduce", ranks) * size / float(seconds("all-reduce", size, Group(ranks), card)) for ranks in (rings, rings + 1))

    assert few == pytest.approx({"h200-141gb": 363e9, "b200-180gb": 678e9}[gpu], rel=0.02) and more > 1.1 * few


def test_latencies_between_nodes_are_those_of_nccl():
    """A ring of two nodes of one card crosses twice, and what it takes grows by 1.9 on Volta and 1.4 since Ampere."""
    network = network_named("infiniband-hdr")
    for gpu, plateau in (("v100-16gb", 1.9), ("a100-40gb", 1.4)):
        card, table = Gpu.named(gpu).model_copy(update={"network": network}), nccl()
        links = _links(Group(2, 2), card, "likely")
        small, large = (float(_ring("all-reduce", np.float64(size), Group(2, 2), links, 2)) - size / links.between for size in (1.0, 1 << 20))

        assert small == pytest.approx(table.ring.base_seconds[2] + 2 * table.ring.hop_seconds.network[2] + 4 * network.latency_seconds)
        assert large == pytest.approx(plateau * small)


def test_groups_that_would_straddle_nodes_are_refused():
    def fsdp2(**fields):
        return Parallel(kind="fsdp2", **fields)

    assert "expected nodes that hold whole groups, e.g. 3" in line_of(fsdp2, devices=12, tensor=4)
    assert [fsdp2(devices=12, tensor=4, nodes=nodes).nodes for nodes in (1, 3, 6)] == [1, 3, 6]
    assert fsdp2(devices=32, tensor=16).nodes == 4 and Parallel(kind="tp", devices=12).nodes == 2


def test_what_connects_nothing_is_refused(a100):
    assert line_of(network_named, "aws-p4").startswith("unknown network 'aws-p4'; nearest: aws-p4d")
    assert line_of(a100.among, network_named("aws-p5")).startswith("network aws-p5 is rented with h100-80gb, h200-141gb, not with a100-40gb")
    unlinked = a100.model_copy(update={"interconnect": None})
    assert "interconnect" in line_of(seconds, "all-reduce", 1024, Group(2), unlinked)
    assert line_of(seconds, "all-sum", 1024, Group(2), a100).startswith("unknown kind of collective 'all-sum'")
