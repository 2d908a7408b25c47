# SPDX-License-Identifier: Apache-2.0
"""Tables of offers, the one that is kept, and what commands say of each price: its place, count and day."""

import csv
import io
import json
import re
from datetime import date
from pathlib import Path

import pytest

import bsmodel
from bsmodel import InvalidInputError, Price, UnknownNameError, prices
from bsmodel.command import main
from tests.models import SGD, workload

RECORDED = Path(__file__).parent / "data" / "skypilot"
DAY = date(2026, 11, 29)


@pytest.fixture(scope="module")
def recorded():
    return prices.read_catalogue(RECORDED, DAY)


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The recorded catalogue, kept as `bsmodel prices update` keeps it."""
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "data"))
    assert main(["prices", "update", "--from", str(RECORDED), "--day", DAY.isoformat()]) == 0
    return tmp_path / "data" / "prices.csv"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model's recording in a file, which commands answer for at once."""
    path = tmp_path_factory.mktemp("saved") / "small.json.gz"
    bsmodel.trace(workload(), SGD, bsmodel.Gpu.named("h100-80gb")).save(path)
    return str(path)


def said(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == code
    written = capsys.readouterr()
    return re.sub(r"\s+", " ", written.out if code == 0 else written.err)


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
        ("a.csv", "gpu,usd_per_hour,count\nh100,1,99999999999999999999\n", "line 2: count is 99999999999999999999; expected a whole number from 1 to"),
        ("a.csv", "gpu,usd_per_hour,count\nh100,5e-324,8\n", "line 2: price per hour is 0.0; expected a finite number above 0"),
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
    with pytest.raises(InvalidInputError, match="Is a directory"):
        prices.load(tmp_path)
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


def test_offers_that_do_not_say_where_they_are_cannot_be_asked_for_by_place():
    with pytest.raises(InvalidInputError, match="no offer says its cloud"):
        prices.among((("t4-16gb", Price(1.0, "mine")),), ["aws"])


def test_places_are_asked_for_by_name_though_names_have_commas(recorded):
    found = prices.among(recorded[0], ["AWS", "vast"], ["us-east-1,us-east-2", "Texas, US, NA"])

    assert {price.region for _, price in found} == {"us-east-1", "us-east-2", "Texas, US, NA"} and not any(price.spot for _, price in found)
    assert all(price.spot for _, price in prices.among(recorded[0], spot=True))


# -- the commands --------------------------------------------------------------------------------------------------------------------------


def test_update_prints_the_account_and_lists_what_is_kept(capsys, table):
    total = said(capsys, "prices", "update", "--from", RECORDED, "--day", "2026-11-20")
    assert "24 files, 257 rows: 174 used, 83 left out." in total and "gcp/vms.csv of 2026-11-20: 20 rows, 3 used for 6 offers, 17 left out" in total
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


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--cloud", ","], "',' names none; expected e.g. aws,gcp"),
        (["update", "--from", "x", "--day", "2026-02-30"], "'2026-02-30' is no day; expected e.g. 2026-11-29"),
        (["upgrade"], "choose from 'update'"),
    ],
)
def test_words_that_mean_nothing_are_one_line_too(capsys, words, problem):
    with pytest.raises(SystemExit) as ended:
        main(["prices", *words])
    line = capsys.readouterr().err

    assert ended.value.code == 2 and problem in line and line.count("\n") == 1


def test_what_is_kept_and_cannot_be_read_is_not_passed_over(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path))
    (tmp_path / "prices.csv").mkdir()

    assert "prices.csv': Is a directory" in said(capsys, "prices", code=2)


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
    assert "Price of h100-80gb: 1x-H100-75-722 with 1 card, hyperbolic default, 1.29 USD an hour" in plain
    assert f"Price of gh200-96gb: {bsmodel.Gpu.named('gh200-96gb').source_of('price_usd_per_hour').source}" in plain


def test_offers_of_less_than_the_plans_node_are_none_for_it(capsys, monkeypatch, tmp_path, saved):
    monkeypatch.setenv("BSMODEL_DATA_DIR", str(tmp_path / "none"))
    (tmp_path / "mine.csv").write_text("gpu,count,usd_per_hour,cloud\nh100,1,2,ours\nh100,4,8,ours\n")
    text = said(capsys, "plan", saved, "--gpu", "h100-80gb", "--devices", "8", "--prices", tmp_path / "mine.csv")

    assert "No price of h100-80gb: the instances on offer have 1, 4 cards, and the plan has 8 in a node." in text


def test_no_cloud_is_paid_for_the_network_of_another(capsys, table, saved):
    """The cheapest of the network's own is taken, though others are cheaper."""
    run = ("plan", saved, "--gpu", "h100-80gb", "--devices", "16", "--network", "aws-p5")

    assert "Price of h100-80gb: p5.48xlarge with 8 cards, aws us-east-1, 55.04 USD an hour on 2026-11-29" in said(capsys, *run)
    assert "No price of h100-80gb: the offers are of lambda, and the network is aws's." in said(capsys, *run, "--cloud", "lambda")


def test_a_page_has_them_too(table, tmp_path, saved):
    pytest.importorskip("altair")
    for command in ("compare", "plan"):
        out = tmp_path / f"{command}.html"
        assert main([command, saved, "--gpu", "h100-80gb", "--cloud", "aws", "--samples", "1000", "--epochs", "1", "--html", str(out)]) == 0
        assert "1 x 1 aws us-east-1, 2026-11-29" in out.read_text(encoding="utf-8")
