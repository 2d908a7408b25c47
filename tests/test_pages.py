# SPDX-License-Identifier: Apache-2.0
"""Pages of commands: what they show, that names are text wherever they stand, that nothing is fetched, and what a browser makes of them."""

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel.command import main, plan
from bsmodel.command.plan_page import Drawn, accumulation, page
from bsmodel.pages import Choice, Column, Drawing, Offer, Section, Table, as_csv, costs, document, frontier, of_picture
from bsmodel.pages.looks import variables
from bsmodel.recording import cache_folder
from bsmodel.studies import Goal, study, tapes
from bsmodel.timing import step_time
from bsmodel.units import GiB
from tests.test_trial_page import Parts, specs, words

alt = pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")

ROOT = Path(__file__).parent.parent
MINE = f"{ROOT}/tests/models.py:attention"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
RUN = ("--target-batch", "65536", "--samples", "1000000", "--epochs", "3", "--base-lr", "1e-3")


def csv_tables(text):
    found = re.search(r'<script type="application/json" id="tables">(.*?)</script>', text, re.DOTALL)
    return {name: list(csv.reader(io.StringIO(content))) for name, content in json.loads(found.group(1)).items()}


def html_tables(text):
    """Cells as they are read; a cell of two lines is one with a space between."""
    bare, text = re.compile(r"<[^>]+>"), re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr[^>]*>(.*?)</tr>", text)]
    return [[bare.sub("", cell.replace("<br>", " ")).replace("\u00a0[", " [") for cell in line] for line in lines]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The page of a plan for two cards, as the command writes it."""
    path = tmp_path_factory.mktemp("pages") / "plan.html"
    assert main(["plan", MINE, "--cache", *RUN, "--gpu", "a100-40gb", "--gpu", "rtx-3070-8gb", "--html", str(path)]) == 0
    return path.read_text()


@pytest.fixture(scope="module")
def drawn(tape, a100):
    """What is drawn of one card."""
    (row,) = study([tape], gpus=[a100], goals=[Goal(target_batch=65536, samples=10**6, epochs=3)]).rows
    return Drawn(row, a100, tape)


# -- any page ------------------------------------------------------------------------------------------------------------------------------


def test_a_table_is_downloaded_as_it_is_read():
    table = Table("one", "A table.", (Column("name, of a card", ("a,b", 'c"d', "-"), right=False), Column("x", ("-1", "+2%", "3"))))

    assert list(csv.reader(io.StringIO(as_csv(table)))) == [["name, of a card", "x"], ["a,b", "-1"], ['c"d', "+2%"], ["-", "3"]]


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1+1", "-2+3", "\t=1"])
def test_a_spreadsheet_computes_nothing_that_users_name(text):
    found = as_csv(Table("one", "", (Column(text, (text,), right=False),)))

    assert [line for (line,) in csv.reader(io.StringIO(found))] == [f"'{text}"] * 2


def test_a_page_without_charts_has_no_charting_library():
    found = document("a name", "", [Section("A heading", ("Why there is none.",))])

    assert "vegaEmbed" not in found and "<script" not in found and not Parts(found).open


def test_the_charting_library_is_made_once_and_kept(monkeypatch, tmp_path):
    from bsmodel.pages import drawing

    monkeypatch.setenv("BSMODEL_CACHE_DIR", str(tmp_path))
    drawing.bundle.cache_clear()
    made = drawing.bundle()
    drawing.bundle.cache_clear()
    monkeypatch.setattr(vl_convert, "javascript_bundle", None)

    assert drawing.bundle() == made and "</script" not in made
    assert [path.suffix for path in (cache_folder() / "pages").iterdir()] == [".js"]
    drawing.bundle.cache_clear()


def test_what_stands_in_a_page_is_text_wherever_it_stands():
    table = Table("one", EVIL, (Column(EVIL, (EVIL,), right=False),))
    drawing = Drawing("chart", EVIL, EVIL, {"layer": [], "description": EVIL}, ((0, EVIL),))
    found = document(EVIL, "", [Section(EVIL, (EVIL,), (drawing,), table, (Choice(1, EVIL, EVIL),), alone=True)])
    parts = Parts(found)

    assert not parts.open
    assert "<script>alert" not in found and all(tag != "img" and "onerror" not in attributes for tag, attributes in parts.tags)
    assert next(attributes for _, attributes in parts.tags if "data-said" in attributes)["data-said"] == EVIL


# -- a plan --------------------------------------------------------------------------------------------------------------------------------


def test_a_plan_has_three_charts_for_each_card(planned):
    parts = Parts(planned)
    names = [f"{name}-{place}" for place in range(2) for name in ("memory", "throughput", "seconds")]

    assert not parts.open
    assert list(specs(planned)) == [attributes["id"] for tag, attributes in parts.tags if tag == "figure"] == names


def test_every_chart_is_what_altair_and_vega_take(planned):
    for name, spec in specs(planned).items():
        plain = {field: value for field, value in spec.items() if field != "params"}  # altair would rename it
        assert alt.LayerChart.from_dict(plain, validate=True)
        drawn = vl_convert.vegalite_to_svg(spec)
        assert drawn.startswith("<svg") and "NaN" not in drawn, name


def test_the_page_of_a_plan_fetches_nothing_and_is_small(planned):
    parts = Parts(planned)
    bare = re.sub(r"<script.*?</script>", "", planned, flags=re.DOTALL)

    assert not [attributes for _, attributes in parts.tags if {"src", "href", "srcset", "data", "action"} & set(attributes)]
    assert "url(" not in bare and "@import" not in bare and "://" not in bare
    assert len(planned.encode()) < 2e6


def test_the_tables_of_a_plan_are_those_of_its_text_and_of_its_files(planned, capsys):
    assert main(["plan", MINE, "--cache", *RUN, "--gpu", "a100-40gb", "--gpu", "rtx-3070-8gb"]) == 0
    text = capsys.readouterr().out
    files = csv_tables(planned)

    assert html_tables(planned) == [line for table in files.values() for line in table]
    assert list(files) == ["plans", "times", "closed-form"]
    for line in (*files["plans"][1:], *files["times"][1:]):
        assert all(cell in text for cell in line)
    for said in ("Learning rate", "Steps on a100-40gb", "Price of a100-40gb", "Note: small batches", "Recorded with torch"):
        assert said in text and said in words(planned)


def test_the_numbers_of_a_batch_are_those_of_the_library(drawn):
    found = page(drawn.row.recorded, [drawn], [], [])
    said = {int(attributes["data-batch"]): attributes["data-said"] for _, attributes in Parts(found).tags if "data-said" in attributes}
    peak, step = bsmodel.predict(drawn.tape, drawn.gpu, 512), step_time(drawn.tape, drawn.gpu, 512, 128)

    assert {drawn.row.micro_batch, drawn.row.largest_batch, 1 << drawn.row.largest_batch.bit_length()} <= set(said)
    assert f"512 samples: {peak.reserved_bytes / GiB:.2f} GiB reserved" in said[512]
    assert f"512 × 128 × 1 = 65,536 samples a step for the target of 65,536, in {1e3 * step.seconds:.1f} ms" in said[512]
    assert f"{step.samples_per_s:,.1f} samples a second" in said[512]
    assert said[max(said)].endswith("runs out of memory.")


def test_the_closed_form_and_the_peaks_are_drawn_to_the_digit(drawn):
    spec = specs(page(drawn.row.recorded, [drawn], [], []))["memory-0"]
    rows = {row["batch"]: row for row in spec["datasets"]["rows"]}
    line = spec["datasets"]["closed form"]
    peak = bsmodel.predict(drawn.tape, drawn.gpu, 1024)

    assert rows[1024]["reserved"] == pytest.approx(peak.reserved_bytes / GiB, rel=1e-5)
    assert rows[1024]["upper"] == pytest.approx(peak.reserved_upper_bytes / GiB, rel=1e-5)
    assert [row["requested"] for row in line] == pytest.approx([drawn.row.closed_form(row["batch"]) / GiB for row in line], rel=1e-5)


def test_what_is_drawn_of_a_plan_that_accumulates_keeps_gradients(tape, a100):
    (row,) = study([tape], gpus=[a100], goals=[Goal(target_batch=1 << 20)]).rows
    spec = specs(page(row.recorded, [Drawn(row, a100, tape)], [], []))["memory-0"]
    rows = {each["batch"]: each for each in spec["datasets"]["rows"]}
    alone = bsmodel.predict(tape, a100, row.micro_batch)

    assert row.accumulation > 1 and row.closed_form == bsmodel.footprint(tape, row.accumulation, a100) != bsmodel.footprint(tape, 1, a100)
    assert rows[row.micro_batch]["requested"] == pytest.approx(row.peak.requested_bytes / GiB, rel=1e-5) and row.peak.requested_bytes > alone.requested_bytes


def test_the_curve_of_seconds_is_that_of_step_time(drawn):
    rows = specs(page(drawn.row.recorded, [drawn], [], []))["seconds-0"]["datasets"]["rows"]
    times = step_time(drawn.tape, drawn.gpu, np.array([row["batch"] for row in rows]))

    assert [row["step"] for row in rows] == pytest.approx(times.seconds, rel=1e-5)
    assert [row["host"] for row in rows] == pytest.approx(times.host_seconds, rel=1e-5)


def test_a_batch_is_accumulated_to_what_is_nearest_to_the_target(drawn):
    assert [accumulation(drawn.row, batch) for batch in (65536, 16384, 50000, 100000)] == [1, 4, 1, 1]


def test_names_of_a_model_and_a_card_are_text(drawn):
    row = replace(drawn.row, gpu=EVIL, recorded=replace(drawn.row.recorded, name=EVIL), advice=(EVIL,))
    found = page(row.recorded, [replace(drawn, row=row)], [("Samples", EVIL)], [EVIL])

    assert not Parts(found).open
    assert "<script>alert" not in found and all(tag != "img" for tag, _ in Parts(found).tags)


def test_a_card_without_a_plan_and_one_without_a_rate_say_why(drawn):
    nothing = replace(drawn.row, status="does not fit", verdict="does not fit on a100-40gb: too small", ladder=(), micro_batch=None)
    found = page(drawn.row.recorded, [replace(drawn, row=nothing), replace(drawn, row=replace(drawn.row, timing=None, untimed="no rate"))], [], [])

    assert list(specs(found)) == ["memory-1"]
    assert "There is no chart: does not fit on a100-40gb: too small." in words(found)
    assert "There is no chart of time: no rate." in words(found)


def test_where_nothing_fits_the_page_is_written_and_the_code_is_1(tmp_path):
    path = tmp_path / "plan.html"

    assert main(["plan", MINE, "--cache", "--gpu", "rtx-3070-8gb", "--headroom", "7.2GiB", "--html", str(path)]) == 1
    assert "There is no chart" in words(path.read_text())


def test_what_nobody_keeps_is_not_recorded_twice(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(plan, "study", lambda subjects, *others, **named: asked.append(subjects[0]) or study(subjects, *others, **named))
    own = ["plan", MINE, "--gpu", "a100-40gb", "--html", str(tmp_path / "plan.html")]

    assert main(own) == main([*own, "--cache"]) == main(own[:-2]) == 0
    assert [type(subject).__name__ for subject in asked] == ["tuple", "Source", "Source"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--html", "no/such/folder/plan.html"), "cannot write the page 'no/such/folder/plan.html'"),
        (("--html", "plan.html", "--lengths", "10:20"), "--html draws no batches of mixed lengths"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_work(flags, said, capsys, monkeypatch):
    monkeypatch.setattr(plan, "study", None)

    assert main(["plan", MINE, *flags]) == 2
    assert capsys.readouterr().err.startswith(f"bsmodel: {said}")


def test_what_is_not_installed_is_named_in_one_line(monkeypatch, capsys):
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *others: None if name == "altair" else found(name, *others))

    assert main(["plan", MINE, "--html", "plan.html"]) == 2
    assert capsys.readouterr().err == 'bsmodel: a page needs altair, which is not installed; pip install "bsmodel[page]"\n'


# -- a comparison --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The page of a comparison, as the command writes it."""
    path = tmp_path_factory.mktemp("pages") / "compare.html"
    cards = ("--gpu", "a100-40gb", "--gpu", "rtx-3070-8gb", "--gpu", "l4-24gb", "--gpu", "rtx-4080-16gb", "--gpu", "t4-16gb")
    assert main(["compare", MINE, "--cache", *RUN[:-2], *cards, "--precision", "bf16-mixed", "--devices", "1,4", "--html", str(path)]) == 0
    return path.read_text()


@given(st.lists(st.builds(Offer, st.just("x"), st.just("alone"), st.floats(0.1, 9), st.floats(0.1, 9)), max_size=9))
def test_no_offer_beats_one_of_the_frontier_and_one_of_it_is_no_worse_than_each(offers):
    best = frontier(offers)

    assert not any(other.hours <= one.hours and other.usd <= one.usd and (other.hours, other.usd) != (one.hours, one.usd) for one in best for other in offers)
    assert all(any(one.hours <= other.hours and one.usd <= other.usd for one in best) for other in offers)


def test_of_offers_that_are_alike_each_is_on_the_frontier_and_their_numbers_stand_together():
    alike = [Offer(name, "alone", 1.0, 2.0) for name in "ab"]
    spec = costs([*alike, Offer("c", "alone", 3.0, 1.0), Offer("d", "alone", 3.0, 2.0)], "for the run", of_picture(0))

    assert [row["name"] for row in spec["datasets"]["frontier"]] == ["a", "b", "c"]
    assert [row["label"] for row in spec["datasets"]["numbers"]] == ["1, 2", "3"]


def test_the_micro_batch_of_a_plan_can_always_be_looked_at(tape, a100):
    (row,) = study([tape], gpus=[a100], caching=False, goals=[Goal(target_batch=2)]).rows
    text = page(row.recorded, [Drawn(row, a100, tape)], [], [])

    assert row.micro_batch == 2 and row.largest_batch > 2**18
    assert re.findall(r'data-batch="(\d+)"', text)[0] == "2" and f"{row.largest_batch:,} samples surely fit in a micro-batch" in words(text)


def test_colours_are_told_from_the_ground():
    """WCAG 2.2, 1.4.11: what has to be seen has a contrast of 3 to 1."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        return np.dot([part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts], (0.2126, 0.7152, 0.0722))

    for ground, dark in (("#ffffff", False), ("#0d1117", True)):
        assert f"--page: {ground};" in (ROOT / "bsmodel/pages/page.css").read_text()
        for colour in re.findall(r"#\w{6}", variables(5, dark)):
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_a_comparison_draws_what_has_a_price_and_says_what_has_none(compared):
    (spec,) = specs(compared).values()
    names = [row["name"] for row in spec["datasets"]["rows"]]
    said = words(compared)

    assert not Parts(compared).open
    assert sorted(names) == sorted(f"{several}{card}" for several in ("", "4 × ") for card in ("a100-40gb", "rtx-3070-8gb", "l4-24gb"))
    assert "Not drawn, without a time or a price: rtx-4080-16gb." in said
    assert "t4-16gb" in said and "no bf16" in said
    for row in spec["datasets"]["frontier"]:
        assert f"{row['place']}. {row['name']}" in said


def test_a_comparison_is_valid_small_and_its_tables_are_those_of_its_files(compared):
    (spec,) = specs(compared).values()

    assert alt.LayerChart.from_dict({field: value for field, value in spec.items() if field != "params"}, validate=True)
    assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
    assert html_tables(compared) == [line for table in csv_tables(compared).values() for line in table]
    assert len(compared.encode()) < 2e6


# -- bytes ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page of an explanation, as the command writes it."""
    path = tmp_path_factory.mktemp("pages") / "explain.html"
    assert main(["explain", MINE, "--cache", "--batch", "512", "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--html", str(path)]) == 0
    return path.read_text()


def test_the_bytes_of_a_page_are_those_of_the_breakdown(explained, a100):
    shares = bsmodel.breakdown(*tapes(bsmodel.Source.of(MINE), {}, [a100], True), 512, gpu=a100)
    total = sum(share.bytes for share in shares)
    rows = [row for row in specs(explained)["categories"]["datasets"]["rows"] if row["gpu"] == "a100-40gb"]
    modules = csv_tables(explained)["modules-0"][1:]

    assert sum(row["gib"] for row in rows) == pytest.approx(total / GiB, rel=1e-4)
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=1e-4)
    assert sum(int(size.replace(",", "")) for _, _, size, _ in modules) == total


def test_modules_lie_within_those_that_hold_them_and_beside_one_another(explained):
    rows = specs(explained)["modules-0"]["datasets"]["rows"]
    places = {row["module"]: row for row in rows}

    assert len(rows) > 5
    for row in rows:
        above = places.get(row["module"].rpartition(".")[0])
        assert above is None or above["begin"] - 1e-5 <= row["begin"] <= row["end"] <= above["end"] + 1e-5
    for depth in range(max(row["depth"] for row in rows) + 1):
        level = sorted((row["begin"], row["end"]) for row in rows if row["depth"] == depth)
        assert all(end <= begin + 1e-5 for (_, end), (begin, _) in itertools.pairwise(level))


def test_an_explanation_is_valid_and_small_and_its_tables_are_those_of_its_files(explained):
    for spec in specs(explained).values():
        assert alt.LayerChart.from_dict({field: value for field, value in spec.items() if field != "params"}, validate=True)
        assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
    assert not Parts(explained).open and len(explained.encode()) < 2e6
    assert html_tables(explained) == [line for table in csv_tables(explained).values() for line in table]


def test_flops_are_not_drawn(capsys):
    assert main(["explain", MINE, "--batch", "8", "--by", "module", "--html", "explain.html"]) == 2
    assert capsys.readouterr().err == "bsmodel: --html draws bytes, not FLOPs; leave out --by module\n"
