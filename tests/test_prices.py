# SPDX-License-Identifier: Apache-2.0
"""Offers: every row of SkyPilot's catalogue accounted for, whole instances paid, the cheapest one taken, and each price with its place and day."""

import csv
import dataclasses
import io
import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import bsmodel
from bsmodel import InvalidInputError, Price, prices
from bsmodel.memory import on_devices
from bsmodel.planning.money import price_among, ranked, rented
from bsmodel.prices.instances import FAMILIES, LEAST_BIDS, MACHINES
from bsmodel.timing import nodes, per_node
from tests.models import SGD, workload

RECORDED = Path(__file__).parent / "data" / "skypilot"
CLOUDS = sorted(path.parent.name for path in RECORDED.glob("*/vms.csv"))
DAY = date(2026, 11, 29)
HEADING = "InstanceType,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region,GpuInfo"

amounts = st.floats(0.01, 1e4)
counts = st.integers(1, 16)
offers = st.lists(st.tuples(counts, amounts), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def recorded():
    return prices.read_catalogue(RECORDED, DAY)


def catalogue(folder, *rows, cloud="aws", heading=HEADING):
    (folder / cloud).mkdir(parents=True)
    (folder / cloud / "vms.csv").write_text("\n".join([heading, *rows]) + "\n")
    return folder


def one(folder, *rows, cloud="aws"):
    """What becomes of the rows of one file: its offers and its account."""
    found, (account,) = prices.read_catalogue(catalogue(folder, *rows, cloud=cloud), DAY)
    return found, account


# -- the catalogue -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_row_of_every_cloud_is_used_or_left_out_for_a_reason(recorded, cloud):
    (account,) = [account for account in recorded[1] if account.cloud == cloud]
    lines = list(csv.reader(io.StringIO((RECORDED / cloud / "vms.csv").read_text())))

    assert account.rows == len(lines) - 1 == account.used.total() + account.left_out.total()
    assert account.day == DAY and (account.used.total() > 0) == (cloud not in LEAST_BIDS)
    assert not [reason for reason in account.left_out if "unreadable" in reason]


def test_every_offer_is_a_row_of_the_file(recorded):
    """Instance, region and price: of cards priced apart from their machine the sum of both."""
    for gpu, price in recorded[0]:
        column = "SpotPrice" if price.spot else "Price"
        rows = list(csv.DictReader(io.StringIO((RECORDED / price.cloud / "vms.csv").read_text(encoding="utf-8"))))
        there = [row for row in rows if row["Region"] == price.region and row[column]]
        figures = [float(row[column]) for row in there if row["InstanceType"] == price.instance]
        apart = [float(row[column]) for row in there if not row["InstanceType"] and price.instance in MACHINES.get((row["AcceleratorName"], price.count), ())]
        possible = [machine + cards for machine in figures for cards in apart] if apart else figures
        assert price.instance_usd_per_hour == pytest.approx(min(possible)), (gpu, price)
        assert bsmodel.Gpu.named(gpu).id == gpu and price.day == DAY and price.source == f"SkyPilot's catalogue, {price.cloud}/vms.csv"


def found_of(recorded, cloud, instance):
    return {(gpu, price.count) for gpu, price in recorded[0] if price.cloud == cloud and price.instance == instance}


@pytest.mark.parametrize(
    ("cloud", "instance", "card"),
    [
        ("aws", "p4de.24xlarge", ("a100-80gb", 8)),
        ("aws", "p5.48xlarge", ("h100-80gb", 8)),
        ("azure", "Standard_NC24ads_A100_v4", ("a100-80gb-pcie", 1)),
        ("azure", "Standard_NC40ads_H100_v5", ("h100-nvl-94gb", 1)),
        ("azure", "Standard_ND96asr_v4", ("a100-40gb", 8)),
        ("cudo", "epyc-genoa-a100-pcie_1x2v4gb", ("a100-80gb-pcie", 1)),  # called A100, with 80 GB
        ("gcp", "a3-highgpu-1g", ("h100-80gb", 1)),
        ("gcp", "a2-megagpu-16g", ("a100-40gb", 16)),
        ("lambda", "gpu_1x_h100_pcie", ("h100-80gb-pcie", 1)),
        ("lambda", "gpu_8x_h100_sxm5", ("h100-80gb", 8)),
        ("primeintellect", "oblivus__1xA100_80GB__28__120", ("a100-80gb-pcie", 1)),  # its upstream's name says PCIe
        ("runpod", "2x_A100-80GB_SECURE", ("a100-80gb-pcie", 2)),  # its GpuInfo does, and holds GB
        ("shadeform", "excesssupply_H200x8", ("h200-141gb", 8)),
        ("vast", "2x-A100_SXM4-32-65536", ("a100-40gb", 2)),  # memory of both together
        ("vast", "1x-H100_NVL-32-65536", ("h100-nvl-94gb", 1)),
        ("do", "gpu-h100x8-640gb", ("h100-80gb", 8)),
    ],
)
def test_the_card_of_an_instance_is_told_by_name_memory_and_form(recorded, cloud, instance, card):
    assert found_of(recorded, cloud, instance) == {card}


@pytest.mark.parametrize(
    ("cloud", "reason"),
    [
        ("aws", "a part of a card"),
        ("azure", "Standard_ND96isr_H100_v5 has 8 cards, and not 12"),
        ("gcp", "TPU"),
        ("gcp", "priced without its machine, which can be one of many"),
        ("gcp", "priced without its machine, which has no price there"),
        ("oci", "MI300X is not among the cards known here"),
        ("seeweb", "offered in no region"),
        ("spheron", "A100_80G_PCIE is called both PCIe and SXM"),
        ("spheron", "H100_NVL of 80 GiB is not among the cards known here"),
        ("vast", "RTX4090 of 48 GiB is not among the cards known here"),
        ("vast", "RTX4060 of 16 GiB is not among the cards known here"),
        ("verda", "no accelerator"),
    ],
)
def test_what_is_left_out_says_why(recorded, cloud, reason):
    (account,) = [account for account in recorded[1] if account.cloud == cloud]

    assert account.left_out[reason] >= 1


def test_a_form_that_nobody_says_is_counted_as_the_usual_one_and_said(recorded):
    notes = {(price.cloud, price.instance): price.note for _, price in recorded[0]}

    assert notes["lambda", "gpu_8x_v100"] == "its form is not said: counted as SXM"
    assert notes["aws", "p5.48xlarge"] == notes["lambda", "gpu_8x_h100_sxm5"] == notes["oci", "BM.GPU.A10.4"] == ""


def test_spot_prices_of_nothing_are_none(recorded):
    assert not [price for _, price in recorded[0] if price.cloud == "vast" and price.spot]  # written as 0.00
    assert {price.spot for _, price in recorded[0] if price.instance == "2B200.60V"} == {True}  # without a price on demand


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("p5,H100,8,1.0,,here", "unreadable: line 2 has 6 fields"),
        ("p5,H100,eight,1.0,,here,", "unreadable: line 2 has 'eight' accelerators"),
        ("p5,H100,nan,1.0,,here,", "unreadable: line 2 has 'nan' accelerators"),
        ("p5,H100,,1.0,,here,", "unreadable: line 2 has '' accelerators"),
        ("p5,H100,8,-1.0,,here,", "unreadable: line 2 has the Price '-1.0'"),
        ("p5,H100,8,1.0,inf,here,", "unreadable: line 2 has the SpotPrice 'inf'"),
        ("p5,H100,8,5e-324,,here,", "unreadable: line 2: price per hour is 0.0; expected a finite number above 0"),
        ("p5,H100,1e17,1.0,,here,", "unreadable: line 2: count is 100000000000000000; expected a whole number from 1 to 9007199254740992"),
        ("p5,H100,8,,,here,", "no price"),
        ("p5,H100,8,0,0.0,here,", "no price"),
        ("p5,,,1.0,,here,", "no accelerator"),
        ("p5,H100,8,1.0,, ,", "offered in no region"),
        (",H100,3,1.0,,here,", "priced without its machine, which can be one of many"),
    ],
)
def test_a_row_that_is_no_offer_is_counted_with_its_reason(tmp_path, row, reason):
    found, account = one(tmp_path, row)

    assert not found and dict(account.left_out) == {reason: 1} and account.rows == 1


def test_a_file_may_begin_with_a_mark_of_its_encoding(tmp_path):
    found, account = prices.read_catalogue(catalogue(tmp_path, "p5.48xlarge,H100,8,8.0,,here,", heading=f"\ufeff{HEADING}"), DAY)

    assert [gpu for gpu, _ in found] == ["h100-80gb"] and account[0].rows == 1


def test_a_gpu_info_is_data_and_never_run(tmp_path):
    trap = "\"{'Gpus': [{'Name': __import__('os').abort(), 'MemoryInfo': {'SizeInMiB': 81920}}]}\""
    found, _ = one(tmp_path, f"p5.48xlarge,H100,8,8.0,,here,{trap}", f"p5.48xlarge,H100,8,8.0,,there,{'{' * 5000}")

    assert [(gpu, price.usd_per_hour) for gpu, price in found] == [("h100-80gb", 1.0), ("h100-80gb", 1.0)]


def test_of_zones_and_hosts_the_cheapest_in_a_region_is_kept(recorded):
    spot = [price for gpu, price in recorded[0] if gpu == "l40s-48gb" and price.cloud == "aws" and price.region == "us-east-1" and price.spot]

    assert [(price.instance, price.instance_usd_per_hour) for price in spot] == [("g6e.xlarge", 0.9154)]


def test_a_folder_that_is_no_catalogue_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=re.escape("no <cloud>/vms.csv")):
        prices.read_catalogue(tmp_path)
    with pytest.raises(InvalidInputError, match=re.escape(f"nearest: {RECORDED}")):
        prices.read_catalogue(RECORDED.parent)
    with pytest.raises(InvalidInputError, match="has no column AcceleratorCount"):
        prices.read_catalogue(catalogue(tmp_path, heading="InstanceType,AcceleratorName,Price"))
    (tmp_path / "aws" / "vms.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="is no CSV of text"):
        prices.read_catalogue(tmp_path)


def test_every_family_names_its_source():
    assert all(family.source and family.form in ("SXM", "PCIe", "NVL") for family in FAMILIES)


# -- money ---------------------------------------------------------------------------------------------------------------------------------


@given(count=counts, nodes=st.integers(1, 200), cards=st.integers(1, 16))
def test_instances_hold_every_node_and_none_fewer_would(count, nodes, cards):
    number = prices.instances_for(count, nodes, cards)

    if count < cards:
        assert number == 0
    else:
        each = count // cards
        assert number * each >= nodes > (number - 1) * each
        assert number * count >= nodes * cards


@pytest.fixture(scope="module")
def several():
    """A small model's largest batch on one card, which is planned for with several devices."""
    gpu = bsmodel.Gpu.named("h100-80gb")
    return bsmodel.fit(bsmodel.trace(workload(), SGD, gpu), gpu)


def paid(several, found, devices):
    """What is chosen among offers for so many devices, and the cards that are paid."""
    tape = on_devices(several.tape, devices)
    price, why = price_among(found, tape, several.gpu, devices)
    return price, why, rented(tape, several.gpu, devices, price) if price else 0


@given(found=offers, devices=st.sampled_from([1, 2, 3, 8, 12, 16, 24]))
def test_the_cheapest_offer_is_the_cheapest_by_brute_force(several, found, devices):
    given_offers = [Price(usd / count, "here", "cloud", str(place), "instance", count) for place, (count, usd) in enumerate(found)]
    price, why, cards = paid(several, given_offers, devices)
    nodes = -(-devices // min(8, devices))
    together = -(-devices // nodes)
    costs = [usd * -(-nodes // (count // max(together, min(count, 8)))) for count, usd in found if count >= together]

    if costs:
        assert price.usd_per_hour * cards == pytest.approx(min(costs)) and not why
        assert cards % price.count == 0 and cards >= devices
    else:
        assert price is None and f"and the plan has {together} in a node" in why


@given(usd=amounts, more=st.floats(1.0, 10.0), count=counts, devices=st.integers(1, 8))
def test_cost_grows_with_the_price(several, usd, more, count, devices):
    assume(count >= devices)
    (cheap, _, few), (dear, _, many) = (paid(several, [Price(each, "here", count=count)], devices) for each in (usd, usd * more))

    assert cheap.usd_per_hour * few <= dear.usd_per_hour * many and few == many == count


def test_hours_are_paid_for_all_that_is_rented(several):
    offer = Price(2.0, "here", count=8)
    timing = bsmodel.plan(several, 384, 3, samples=10**6, epochs=1, price=[offer]).timing

    assert timing.price == offer and timing.rented == 8
    assert timing.cost_usd == pytest.approx(timing.hours * 16)
    assert timing.usd_per_million == pytest.approx(16 / timing.samples_per_s / 3600 * 1e6)


def test_a_price_without_a_count_is_for_any_number_of_cards(several):
    mine, node = Price(2.0, "mine"), Price(1.0, "here", count=8)

    assert paid(several, [mine], 3) == (mine, "", 3)
    assert paid(several, [node, mine], 8) == (node, "", 8)
    assert paid(several, [node, mine], 1) == (mine, "", 1)  # 2 USD for one card, and not 8 for eight
    assert paid(several, [], 1) == (None, "there is no such offer", 0)


def test_nodes_of_a_network_are_rented_whole(several):
    gpu = several.gpu.among(bsmodel.hardware.network_named("aws-p5"))

    tape = on_devices(several.tape, 2)

    assert rented(tape, gpu, 2, Price(1.0, "here", count=8)) == 8
    assert rented(tape, gpu, 2, Price(1.0, "here", count=4)) == 0  # its nodes have eight


@pytest.mark.parametrize("network", [None, "aws-p5"])
def test_nodes_that_are_asked_for_are_paid_at_any_price(several, network):
    """Sixteen devices in four machines, each with a network of its own: four instances, whether they are priced whole or by the card."""
    tape = on_devices(several.tape, 16)
    spread = dataclasses.replace(tape, recipe={**tape.recipe, "parallel": {"kind": "ddp", "devices": 16, "nodes": 4}})
    gpu = several.gpu.among(bsmodel.hardware.network_named(network)) if network else several.gpu

    assert rented(spread, gpu, 16) == rented(spread, gpu, 16, Price(1.0, "here", count=8)) == 32
    assert rented(tape, gpu, 16) == rented(tape, gpu, 16, Price(1.0, "here", count=8)) == 16
    assert rented(spread, gpu, 16, Price(1.0, "here", count=4)) == (0 if network else 16)


def test_no_node_has_more_devices_than_its_network_connects(several):
    """By default as many nodes as it takes, with time on the network; those that are asked for are refused."""
    network = bsmodel.hardware.network_named("aws-g4dn-8xlarge")
    gpu = several.gpu.model_copy(update={"network": network})
    fit = dataclasses.replace(several, gpu=gpu)
    tape = on_devices(several.tape, 4)
    made = bsmodel.plan(fit, devices=4, price=Price(1.0, "here", count=1))
    one = dataclasses.replace(tape, recipe={**tape.recipe, "parallel": {"kind": "ddp", "devices": 4, "nodes": 1}})

    assert (nodes(tape, gpu), per_node(tape, gpu), nodes(tape, several.gpu)) == (4, 1, 1)
    assert made.timing.rented == 4 and made.timing.step.seconds > bsmodel.plan(several, devices=4).timing.step.seconds
    assert any("between 4 nodes" in advice for advice in made.advice)
    with pytest.raises(bsmodel.InvalidInputError, match="nodes is 1; network aws-g4dn-8xlarge connects 1 to a node, expected at least 4 for 4 devices"):
        bsmodel.plan(dataclasses.replace(fit, tape=one), devices=4)


def test_plans_are_ranked_by_one_scale(several):
    """A run's cost says nothing beside a price of a million samples: where one run is not known, all are by samples."""
    known, unknown = (
        bsmodel.plan(several, 384, samples=samples, epochs=1 if samples else None, price=Price(usd, "mine")) for samples, usd in ((10**9, 1.0), (None, 2.0))
    )
    assert known.timing.cost_usd > unknown.timing.usd_per_million > known.timing.usd_per_million

    assert ranked([unknown, known]) == (known, unknown)


def test_a_price_without_a_day_says_none():
    assert prices.price_line("a card", Price(2.0, "me", cloud="aws")) == "Price of a card: a card, aws, 2 USD an hour (me)."


def test_a_network_of_a_cloud_is_rented_from_no_other(several):
    gpu = several.gpu.among(bsmodel.hardware.network_named("aws-p5"))
    theirs, dear, mine = Price(1.0, "there", "gcp", count=8), Price(2.0, "here", "aws", count=8), Price(3.0, "mine")

    assert price_among([theirs, dear], several.tape, gpu, 8) == (dear, "")
    assert price_among([theirs], several.tape, gpu, 8) == (None, "the offers are of gcp, and the network is aws's")
    assert price_among([theirs, mine], several.tape, gpu, 8) == (mine, "")  # which says no cloud
    assert price_among([theirs, dear], several.tape, several.gpu, 8) == (theirs, "")


def test_clouds_of_networks_are_those_of_offers():
    assert {network.cloud for network in bsmodel.hardware.networks()} - {None} <= set(CLOUDS)
    assert all(network.id.startswith(f"{network.cloud}-") for network in bsmodel.hardware.networks() if network.cloud)


@given(found=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["aws", "gcp", None]), counts, amounts), min_size=1))
def test_what_is_undercut_is_paid_by_no_plan(found):
    listed = [(gpu, Price(usd / count, "here", cloud, count=count)) for gpu, cloud, count, usd in found]
    kept = prices.undercut(listed)

    assert len(kept) == len({(gpu, cloud, count) for gpu, cloud, count, _ in found})
    for gpu, price in kept:
        alike = [other for name, other in listed if (name, other.cloud, other.count) == (gpu, price.cloud, price.count)]
        assert price.usd_per_hour == min(other.usd_per_hour for other in alike)
