# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel validate --report`: its charts have the numbers of the report, its tables are the report's, and what is named is text."""

import json
import math
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsmodel
from bsmodel.command import main
from bsmodel.pages import Comparison, of_page
from bsmodel.units import GiB
from bsmodel.validation import rows, running, summary
from bsmodel.validation.page import page
from tests.test_pages import EVIL, csv_tables, html_tables
from tests.test_refusals import refused
from tests.test_trial_page import Parts, specs, words
from tests.test_validation import recorded, written

alt = pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")

from bsmodel.pages import error_shares, predicted_against_measured, relative_errors, still  # noqa: E402 - they need altair

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
LOOK = of_page(0)

sizes = st.floats(1e6, 1e12)
comparisons = st.builds(Comparison, st.text(), st.sampled_from(["allocated", "reserved"]), sizes, sizes, st.none() | sizes, st.none() | sizes)


def several(count=4):
    """Rows of a card with every figure and every interval: measurements lie inside, then below, then above what was predicted."""
    made = []
    for number in range(count):
        measured = {f"{name}_bytes": (number + 1) << 30 for name in ("allocated", "reserved", "device")} | {"step_seconds": 0.1 * (number + 1)}
        factor = (1.02, 1.5, 0.5)[number % 3]
        predicted = {name: factor * value for name, value in measured.items()} | {"fits": True}
        for name in ("reserved_bytes", "device_bytes", "step_seconds"):
            figure, unit = name.split("_")
            predicted |= {f"{figure}_{low}_{unit}": share * predicted[name] for low, share in _ends(figure)}
        measured["out_of_memory"] = False
        content = {"workload": "mine", "gpu": "a100-40gb", "batch": number, "environment": {"gpu": "a100-40gb"}}
        made.append(
            rows.row("step", f"mine a100-40gb b={number}", rows.MEASURED, predicted=predicted, measured={**measured, "out_of_memory": False}, **content)
        )
    return made


def _ends(figure):
    return (("low", 0.9), ("high", 1.1)) if figure == "step" else (("lower", 0.9), ("upper", 1.1))


@pytest.fixture(scope="module")
def kept():
    """The rows that this repository keeps."""
    return [row for name in ("errors", "largest", "rivals") for row in rows.read(RESULTS / f"{name}.jsonl")]


# -- a prediction and a measurement --------------------------------------------------------------------------------------------------------


@given(comparisons)
def test_a_measurement_lies_inside_or_on_one_side_of_what_was_predicted(one):
    low, high = one.low if one.low is not None else -math.inf, one.high if one.high is not None else math.inf

    assert (one.lies == "") == (one.low is None and one.high is None)
    assert (one.lies in ("", "inside")) == (low <= one.measured <= high)
    assert one.lies not in ("above", "below") or (one.lies == "above") == (one.measured > high)


@settings(max_examples=20)
@given(st.lists(comparisons, min_size=1, max_size=20))
def test_charts_have_the_numbers_of_what_they_are_given(found):
    spec = predicted_against_measured(found, (GiB, "GiB"), ("allocated", "reserved"), LOOK)
    bars = relative_errors(found, (GiB, "GiB"), ("allocated", "reserved"), LOOK)
    drawn = spec["datasets"]["rows"]
    least, most = spec["layer"][0]["encoding"]["x"]["scale"]["domain"]

    assert [row["predicted"] for row in drawn] == pytest.approx([each.predicted / GiB for each in found], rel=1e-5)
    assert [row["measured"] for row in drawn] == pytest.approx([each.measured / GiB for each in found], rel=1e-5)
    assert [row["high"] for row in drawn] == pytest.approx([(each.high or each.predicted) / GiB for each in found], rel=1e-5)
    assert all(least < row[name] < most for row in drawn for name in ("predicted", "measured", "low", "high"))
    assert [row["error"] for row in bars["datasets"]["rows"]] == pytest.approx([each.error for each in found], rel=1e-5, abs=1e-9)
    assert [(row["case"], row["place"]) for row in bars["datasets"]["rows"]] == [(each.case, place) for place, each in enumerate(found)]


@settings(max_examples=20)
@given(st.lists(comparisons, min_size=1, max_size=20))
def test_the_share_of_an_error_is_that_of_the_cases_with_no_larger_one(found):
    drawn = error_shares(found, ("allocated", "reserved"), LOOK)["datasets"]["rows"]

    for figure in {each.figure for each in found}:
        own, line = [abs(each.error) for each in found if each.figure == figure], [row for row in drawn if row["figure"] == figure]
        assert line[0]["share"] == 0 and line[-1]["share"] == 1
        for row in line[1:]:
            assert row["share"] <= sum(error <= row["size"] * (1 + 1e-4) for error in own) / len(own) + 1e-5


def test_a_chart_of_one_case_without_an_error_can_be_drawn():
    found = [Comparison("one", "allocated", 1e9, 1e9)]

    for spec in (
        predicted_against_measured(found, (GiB, "GiB"), ("allocated",), LOOK),
        relative_errors(found, (GiB, "GiB"), ("allocated",), LOOK),
        error_shares(found, ("allocated",), LOOK),
    ):
        assert "NaN" not in still(spec)


# -- the page ------------------------------------------------------------------------------------------------------------------------------


def test_every_chart_is_what_altair_and_vega_take(kept):
    for found in (kept, several()):
        for name, spec in specs(page(found)).items():
            assert alt.LayerChart.from_dict({field: value for field, value in spec.items() if field != "params"}, validate=True)
            drawn = vl_convert.vegalite_to_svg(spec)
            assert drawn.startswith("<svg") and "NaN" not in drawn, name


def test_what_is_drawn_is_what_the_report_counts(kept):
    drawn = specs(page(kept))
    against, largest = drawn["allocated-against"]["datasets"]["rows"], drawn["largest-against"]["datasets"]["rows"]
    allocated, reserved = (summary.pairs(kept, name) for name in ("allocated", "reserved"))

    assert list(drawn) == ["allocated-against", "shares", "allocated-errors", "reserved-errors", "largest-against"]
    assert [(row["case"], row["figure"]) for row in against] == [(pair.case, pair.figure) for pair in (*allocated, *reserved)]
    assert [row["error"] for row in drawn["allocated-errors"]["datasets"]["rows"]] == pytest.approx([pair.error for pair in allocated[:20]], rel=1e-5)
    assert len(against) == 250 and len(largest) == len(rows.of_kind(kept, "largest"))
    for row in against[:20]:
        assert any(pair.case == row["case"] and pair.predicted / GiB == pytest.approx(row["predicted"], rel=1e-5) for pair in allocated)


def test_intervals_are_drawn_and_counted_where_the_rows_have_them():
    found = several()
    drawn, figures = specs(page(found)), summary.document(found)["errors"]

    assert list(drawn)[:4] == ["allocated-against", "device-against", "step-against", "shares"]
    for name, unit in (("device-against", GiB), ("step-against", 1e-3)):
        lying = {row["case"][-1]: row["lies"] for row in drawn[name]["datasets"]["rows"]}
        assert lying == {"0": "inside the interval", "1": "below the interval", "2": "above the interval", "3": "inside the interval"}
        for row, pair in zip(drawn[name]["datasets"]["rows"], summary.pairs(found, name.split("-")[0]), strict=True):
            assert (row["low"], row["high"]) == (pytest.approx(pair.low / unit, rel=1e-5), pytest.approx(pair.high / unit, rel=1e-5))
            assert row["interval"].count(" to ") == 1
    assert {row["lies"] for row in drawn["allocated-errors"]["datasets"]["rows"]} == {"no interval was predicted"}
    assert (figures["step"]["inside"], figures["step"]["intervals"], figures["allocated"]["intervals"]) == (2, 4, 0)
    assert "2 of 4 measurements lie in the predicted interval" in words(page(found)) and "| 2 of 4 |" in summary.markdown(found)


def test_a_row_as_it_is_measured_has_every_interval(tape, a100):
    predicted = running.peak_content(tape, a100, bsmodel.predict(tape, a100, 64))
    content = {"workload": "mine", "gpu": "a100-40gb", "batch": 64, "environment": {"gpu": "a100-40gb"}}
    row = rows.row("step", "one", rows.MEASURED, predicted=predicted, measured={**predicted, "out_of_memory": False}, **content)
    found = {figure: summary.pairs([row], figure)[0] for figure in summary.FIGURES}

    assert [figure for figure, pair in found.items() if pair.low is not None and pair.low <= pair.predicted <= pair.high] == ["reserved", "device", "step"]
    assert found["step"].low < found["step"].high and found["allocated"].lies == ""


def test_tables_are_those_of_the_markdown_and_of_their_files(kept):
    found = page(kept)
    read = [[unescape(cell) for cell in line] for line in html_tables(found)]
    text = [line for line in summary.markdown(kept).splitlines() if line.startswith("| ") and not re.match(r"\| -+:? \|", line)]

    assert read == [line for table in csv_tables(found).values() for line in table]
    assert read == [re.split(r" \| ", line.strip("| ").replace("\\|", "|")) for line in text]
    assert list(csv_tables(found)) == ["errors", "worst-first", "largest-batch", "estimators", "side-by-side"]


def test_the_page_is_one_small_file_that_fetches_nothing(kept):
    found = page([*kept, *several(400)])
    bare = re.sub(r"<script.*?</script>", "", found, flags=re.DOTALL)

    assert not Parts(found).open and len(found.encode()) < 2e6
    assert not [attributes for _, attributes in Parts(found).tags if {"src", "href", "srcset", "data", "action"} & set(attributes)]
    assert "url(" not in bare and "@import" not in bare and "://" not in bare and "<svg" not in bare


def test_names_of_cases_and_cards_are_text():
    found = several()
    for row in found:
        row["case"], row["environment"] = f"{EVIL} {row['case']}", {"gpu": EVIL}
    found.append(rows.row("step", EVIL, rows.FAILED, workload="x", reason=EVIL, environment={"gpu": EVIL}))
    text = page(found)

    assert not Parts(text).open and "<script>alert" not in text and all(tag != "img" for tag, _ in Parts(text).tags)
    assert json.loads(json.dumps(specs(text)["step-against"]["datasets"]["rows"][0]["case"])).startswith(EVIL)


def test_a_page_without_any_comparison_still_says_what_failed():
    text = page([rows.row("step", "one", rows.FAILED, workload="x", reason="exit code 1", environment={"gpu": "a100-40gb"})])

    assert "exit code 1" in text and "vegaEmbed" not in text and "No row has both a prediction and a measurement." in words(text)


def test_largest_batches_of_none_are_counted_and_not_drawn():
    measured = {"batch": 8, "survives": True}
    said = [{"batch": batch, "likely_batch": 9} for batch in (0, 7)]
    found = [rows.row("largest", str(each), rows.MEASURED, predicted=each, measured=measured, environment={"gpu": "x"}) for each in said]
    text = page(found)
    (row,) = specs(text)["largest-against"]["datasets"]["rows"]

    assert (row["low"], row["high"], row["lies"]) == (7, 9, "inside the interval")
    assert "Not drawn, where no batch fits or none was found: 1." in words(text)


# -- the command ---------------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_or_drawn_is_said_before_the_rows_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rows, "read", None)
    report = ("validate", "--report", "rows.jsonl")

    assert refused(capsys, *report, "--html", "no/such/page.html") == "bsmodel: cannot write the page 'no/such/page.html': No such file or directory"
    assert refused(capsys, *report, "--markdown", "no/such/table.md") == "bsmodel: cannot write the table 'no/such/table.md': No such file or directory"
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *others: None if name == "altair" else found(name, *others))
    for where in (("--html", "page.html"), ("--out-dir", str(tmp_path))):
        assert refused(capsys, *report, *where) == 'bsmodel: a page needs altair, which is not installed; pip install "bsmodel[page]"'


@pytest.mark.parametrize("flag", ["--html", "--markdown", "--out-dir"])
def test_a_report_that_nobody_asked_for_is_not_promised(flag, capsys):
    assert refused(capsys, "validate", "resnet50", "--out", "rows.jsonl", flag, ".") == f"bsmodel: {flag} is where --report writes; add --report FILE, the rows"


def test_the_markdown_report_needs_no_charts(tmp_path):
    source, target = written(tmp_path / "rows.jsonl", recorded()), tmp_path / "report.md"
    check = f"import sys; sys.modules['altair'] = None; from bsmodel.command import main; sys.exit(main(['validate', '--report', {str(source)!r}, %s]))"

    assert subprocess.run([sys.executable, "-c", check % f"'--markdown', {str(target)!r}"], check=False).returncode == 0
    assert target.read_text().startswith("# Predicted against measured")
    assert main(["validate", "--report", str(source), "--out-dir", str(tmp_path)]) == 0
    assert specs((tmp_path / "report.html").read_text()) and (tmp_path / "report.md").read_text() == target.read_text()
