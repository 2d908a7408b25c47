# SPDX-License-Identifier: Apache-2.0
"""Offers: every row of SkyPilot's catalogue accounted for, whole instances paid, the cheapest one taken, and each price with its place and day."""

import csv
import io
import json
import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import bsmodel
from bsmodel import InvalidInputError, Price, UnknownNameError, prices
from bsmodel.command import main
from bsmodel.memory import on_devices
from bsmodel.planning.money import price_among, rented
from bsmodel.prices.instances import FAMILIES, MACHINES
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


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The recorded catalogue, kept as `bsmodel prices update` keeps it."""
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "data"))
    assert main(["prices", "update", "--from", str(RECORDED), "--day", DAY.isoformat()]) == 0
    return tmp_path / "data" / "prices.csv"


def catalogue(folder, *rows, cloud="aws", heading=HEADING):
    (folder / cloud).mkdir(parents=True)
    (folder / cloud / "vms.csv").write_text("\n".join([heading, *rows]) + "\n")
    return folder


def one(folder, *rows, cloud="aws"):
    """What becomes of the rows of one file: its offers and its account."""
    found, (account,) = prices.read_catalogue(catalogue(folder, *rows, cloud=cloud), DAY)
    return found, account


def said(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == code
    written = capsys.readouterr()
    return re.sub(r"\s+", " ", written.out if code == 0 else written.err)


# -- the catalogue -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_row_of_every_cloud_is_used_or_left_out_for_a_reason(recorded, cloud):
    (account,) = [account for account in recorded[1] if account.cloud == cloud]
    lines = list(csv.reader(io.StringIO((RECORDED / cloud / "vms.csv").read_text())))

    assert account.rows == len(lines) - 1 == account.used.total() + account.left_out.total()
    assert account.day == DAY and account.used.total() > 0
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


@given(count=counts, devices=st.integers(1, 200), together=st.integers(1, 16))
def test_instances_hold_every_device_and_none_fewer_would(count, devices, together):
    number = prices.instances_for(count, devices, together)

    if count < together:
        assert number == 0
    else:
        nodes, each = -(-devices // together), count // together
        assert number * each >= nodes > (number - 1) * each
        assert number * count >= devices


@pytest.fixture(scope="module")
def several():
    """A small model's largest batch on one card, which is planned for with several devices."""
    gpu = bsmodel.Gpu.named("h100-80gb")
    return bsmodel.fit(bsmodel.trace(workload(), SGD, gpu), gpu)


@pytest.fixture(scope="module")
def saved(several, tmp_path_factory):
    """Its recording in a file, which commands answer for at once."""
    path = tmp_path_factory.mktemp("saved") / "small.json.gz"
    several.tape.save(path)
    return str(path)


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
    costs = [usd * -(-nodes // (count // together)) for count, usd in found if count >= together]

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

    assert rented(several.tape, gpu, 2, Price(1.0, "here", count=8)) == 8
    assert rented(several.tape, gpu, 2, Price(1.0, "here", count=4)) == 0  # its nodes have eight


@given(found=st.lists(st.tuples(st.sampled_from(["a", "b"]), counts, amounts), min_size=1))
def test_what_is_undercut_is_paid_by_no_plan(found):
    listed = [(gpu, Price(usd / count, "here", count=count)) for gpu, count, usd in found]
    kept = prices.undercut(listed)

    assert len(kept) == len({(gpu, count) for gpu, count, _ in found})
    for gpu, price in kept:
        assert price.usd_per_hour == min(other.usd_per_hour for name, other in listed if name == gpu and other.count == price.count)


# -- tables --------------------------------------------------------------------------------------------------------------------------------


def test_a_table_of_ones_own_as_csv_and_as_toml(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "# ours\ngpu,count,usd_per_hour,spot,cloud,region,day,source\nh100,8,20,true,Ours,cellar,2026-11-01,the boss\nt4,,0.5,,,,,\n"
    )
    (tmp_path / "mine.toml").write_text(
        '[[offers]]\ngpu = "h100"\ncount = 8\nusd_per_hour = 20\nspot = true\ncloud = "Ours"\nregion = "cellar"\nday = 2026-11-01\nsource = "the boss"\n'
        '\n[[offers]]\ngpu = "t4"\nusd_per_hour = 0.5\n'
    )
    first, second = (prices.load(tmp_path / name, DAY) for name in ("mine.csv", "mine.toml"))

    assert first[0] == second[0] == ("h100-80gb", Price(2.5, "the boss", "ours", "cellar", None, 8, True, date(2026, 11, 1)))
    assert first[1] == ("t4-16gb", Price(0.5, "mine.csv", day=DAY))
    assert bsmodel.Goal(prices=first).prices == first


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "gpu,usd\nh100,1\n", "line 1: unknown column 'usd'; nearest: cloud, usd_per_hour"),
        ("a.csv", "gpu,gpu,usd_per_hour\n", "line 1: column gpu is there twice"),
        ("a.csv", "gpu\nh100\n", "line 1: no column usd_per_hour"),
        ("a.csv", "gpu,usd_per_hour\nh100,1\nh1000,1\n", "line 3: unknown GPU 'h1000'"),
        ("a.csv", "gpu,usd_per_hour\nh100,-1\n", "line 2: usd_per_hour is '-1'; input should be greater than 0"),
        ("a.csv", "gpu,usd_per_hour\nh100,cheap\n", "line 2: usd_per_hour is 'cheap'"),
        ("a.csv", "gpu,usd_per_hour\nh100,inf\n", "line 2: usd_per_hour is inf"),
        ("a.csv", "gpu,usd_per_hour\nh100\n", "line 2: 1 fields; expected 2: gpu, usd_per_hour"),
        ("a.csv", "gpu,usd_per_hour,count\nh100,1,1.5\n", "line 2: count is 1.5"),
        ("a.csv", "gpu,usd_per_hour,spot\nh100,1,perhaps\n", "line 2: spot is 'perhaps'"),
        ("a.csv", "gpu,usd_per_hour,day\nh100,1,yesterday\n", "line 2: day is 'yesterday'"),
        ("a.csv", "gpu,usd_per_hour\n,1\n", "line 2: no gpu"),
        ("a.csv", "", "has no offers"),
        (
            "a.toml",
            '[[offers]]\ngpu = "t4"\nusd_per_hour = 1\n[[offers]]\ngpu = "h100"\nusd_per_hr = 1\n',
            "line 4: unknown key 'usd_per_hr'; nearest: usd_per_hour",
        ),
        ("a.toml", '[[offer]]\ngpu = "h100"\n', "unknown key 'offer'; nearest: offers"),
        ("a.toml", "offers = 3\n", "offers is no list of tables"),
        ("a.toml", "offers = \n", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_table_is_one_line_that_says_where(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError) as error:
        prices.load(tmp_path / name)

    assert problem in str(error.value) and "\n" not in str(error.value)


def test_a_table_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(InvalidInputError, match="No such file"):
        prices.load(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="is no text"):
        prices.load(tmp_path / "binary.csv")


def test_what_is_kept_is_found_again(recorded, monkeypatch, tmp_path):
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "new"))
    mine = (("t4-16gb", Price(0.5, "mine", day=DAY)),)
    path = prices.keep((*recorded[0], *mine))

    assert path == prices.kept_path() and [entry.name for entry in path.parent.iterdir()] == ["prices.csv"]
    again = prices.kept()
    assert [gpu for gpu, _ in again] == [gpu for gpu, _ in (*recorded[0], *mine)]
    for (_, before), (_, after) in zip((*recorded[0], *mine), again, strict=True):
        assert after.usd_per_hour == pytest.approx(before.usd_per_hour, rel=1e-15)
        assert (after.cloud, after.region, after.instance, after.count, after.spot) == (before.cloud, before.region, before.instance, before.count, before.spot)
        assert (after.day, after.source, after.note) == (before.day, before.source, before.note)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"clouds": ["gpc"]}, "unknown cloud 'gpc'; nearest: gcp"),
        ({"clouds": ["aws"], "regions": ["us-east-9"]}, "unknown region of aws 'us-east-9'; nearest: us-east-2, us-east-1"),
        ({"regions": ["nowhere"]}, "unknown region 'nowhere'"),
    ],
)
def test_an_unknown_place_is_refused_with_the_nearest(recorded, asked, message):
    with pytest.raises(UnknownNameError, match=message):
        prices.among(recorded[0], **asked)


def test_places_are_asked_for_by_name_though_names_have_commas(recorded):
    found = prices.among(recorded[0], ["AWS", "vast"], ["us-east-1,us-east-2", "Texas, US, NA"])

    assert {price.region for _, price in found} == {"us-east-1", "us-east-2", "Texas, US, NA"} and not any(price.spot for _, price in found)
    assert all(price.spot for _, price in prices.among(recorded[0], spot=True))


# -- the commands --------------------------------------------------------------------------------------------------------------------------


def test_update_prints_the_account_and_lists_what_is_kept(capsys, table):
    total = said(capsys, "prices", "update", "--from", RECORDED, "--day", "2026-11-20")
    assert "24 files, 257 rows: 178 used, 79 left out." in total and "gcp/vms.csv of 2026-11-20: 20 rows, 3 used for 6 offers, 17 left out" in total
    assert "5 TPU" in total and "7 h100-80gb" in total and "its form is not said: counted as SXM" in total

    listed = said(capsys, "prices", "--gpu", "h100", "--cloud", "aws,gcp")
    assert "h100-80gb 8 55.04 6.88 aws us-east-1 p5.48xlarge 2026-11-20 3" in listed
    assert "a3-highgpu-1g" in listed and "a100" not in listed and "Note" not in listed
    assert "spot prices are of instances that can be taken away" in said(capsys, "prices", "--gpu", "h100", "--spot")
    assert "There is no such offer." in (main(["prices", "--gpu", "rtx-2070-8gb"]), capsys.readouterr().out)[1]

    document = json.loads((main(["prices", "--gpu", "h100", "--cloud", "aws", "--json"]), capsys.readouterr().out)[1])
    assert document["command"] == "prices" and {offer["price"]["region"] for offer in document["offers"]} == {
        "us-east-1",
        "us-east-2",
        "ap-northeast-2",
        "ap-south-1",
    }
    files = json.loads((main(["prices", "update", "--from", str(RECORDED), "--json"]), capsys.readouterr().out)[1])["files"]
    assert all(each["rows"] == sum(each["used"].values()) + sum(each["left_out"].values()) for each in files)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prices"], "no offers are kept: bsmodel prices update --from DIR keeps SkyPilot's catalogue"),
        (["prices", "update"], "nothing to read; give --from DIR"),
        (["prices", "--from", "x"], "--from and --day are for `bsmodel prices update`"),
        (["prices", "update", "--from", "x", "--cloud", "aws"], "update keeps all offers of its sources"),
        (["prices", "update", "--from", "nowhere"], "cannot read 'nowhere'"),
        (["plan", "no-such-model", "--cloud", "aws"], "unknown model"),
        (["plan", "resnet50", "--gpu", "h100-80gb", "--cloud", "aws"], "there is no table of offers on demand of aws: bsmodel prices update"),
        (["plan", "resnet50", "--gpu", "h100-80gb", "--prices", "nowhere.csv"], "cannot read 'nowhere.csv'"),
    ],
)
def test_without_a_table_one_line_says_how_to_get_one(capsys, arguments, message):
    assert message in said(capsys, *arguments, code=2)


def test_nothing_is_kept_of_a_source_that_is_wrong(capsys, table, tmp_path):
    before = table.read_bytes()
    (tmp_path / "mine.csv").write_text("gpu,usd_per_hour\nh100,none\n")

    assert "line 2" in said(capsys, "prices", "update", "--from", RECORDED, "--from", tmp_path / "mine.csv", code=2)
    assert table.read_bytes() == before


def test_every_cost_has_its_place_count_and_day_beside_it(capsys, table, saved):
    run = (saved, "--gpu", "h100-80gb", "--gpu", "gh200-96gb", "--samples", "100000", "--epochs", "1")
    for command in ("compare", "plan", "study"):
        subject = ("--model", saved, *run[1:]) if command == "study" else run
        text = said(capsys, command, *subject, "--cloud", "aws", "--region", "us-east-2", "--spot", "--devices", "3")
        assert "1 x 8 aws us-east-2, 2026-11-29, spot, 5 unused" in text
        assert "Price of h100-80gb: p5.48xlarge with 8 cards, aws us-east-2, 11.25 USD an hour at spot price on 2026-11-29" in text
        assert "No price of gh200-96gb: there is no such offer." in text
        assert "Note: offers are those at spot prices of aws in us-east-2." in text and "Note: spot prices are of instances that can be taken away" in text
    document = json.loads((main(["compare", *run, "--cloud", "aws", "--json"]), capsys.readouterr().out)[1])
    (priced,) = [row["timing"] for row in document["gpus"] if row["gpu"] == "h100-80gb"]
    assert priced["price"] | {"usd_per_hour": 0} == {
        **{"usd_per_hour": 0, "source": "SkyPilot's catalogue, aws/vms.csv", "cloud": "aws", "region": "us-east-1", "instance": "p5.4xlarge", "count": 1},
        **{"spot": False, "day": "2026-11-29", "note": ""},
    }
    flat = (main(["study", "--model", saved, "--gpu", "h100-80gb", "--cloud", "aws", "--csv"]), capsys.readouterr().out)[1]
    (row,) = csv.DictReader(io.StringIO(flat))
    assert (row["cloud"], row["region"], row["instance_cards"], row["rented"], row["day"], row["spot"]) == ("aws", "us-east-1", "1", "1", "2026-11-29", "False")


def test_a_price_of_ones_own_goes_before_offers_and_the_catalogues_comes_after(capsys, table, saved):
    run = ("plan", saved, "--gpu", "h100-80gb", "--gpu", "gh200-96gb")

    assert "Price of h100-80gb: yours." in said(capsys, *run, "--price", "h100-80gb=1.5", "--cloud", "aws")
    plain = said(capsys, *run)
    assert "Price of h100-80gb: h100-80gb.sxm.1x with 1 card, mithril us-central2-a, 1 USD an hour" in plain
    assert f"Price of gh200-96gb: {bsmodel.Gpu.named('gh200-96gb').source_of('price_usd_per_hour').source}" in plain


def test_offers_of_less_than_the_plans_node_are_none_for_it(capsys, monkeypatch, tmp_path, saved):
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "none"))
    (tmp_path / "mine.csv").write_text("gpu,count,usd_per_hour,cloud\nh100,1,2,ours\nh100,4,8,ours\n")
    text = said(capsys, "plan", saved, "--gpu", "h100-80gb", "--devices", "8", "--prices", tmp_path / "mine.csv")

    assert "No price of h100-80gb: the instances on offer have 1, 4 cards, and the plan has 8 in a node." in text


def test_a_page_has_them_too(table, tmp_path, saved):
    pytest.importorskip("altair")
    for command in ("compare", "plan"):
        out = tmp_path / f"{command}.html"
        assert main([command, saved, "--gpu", "h100-80gb", "--cloud", "aws", "--samples", "1000", "--epochs", "1", "--html", str(out)]) == 0
        assert "1 x 1 aws us-east-1, 2026-11-29" in out.read_text(encoding="utf-8")
