# SPDX-License-Identifier: Apache-2.0
"""What values show of themselves in a notebook: tables with the command's numbers, valid charts, and names that are text."""

import re
import subprocess
import sys
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.errors import InvalidInputError
from bsmodel.memory import Breakdown, Share
from bsmodel.notebook.tables import tables_of
from bsmodel.planning import NoiseScale
from bsmodel.shown import Charted, Shown
from bsmodel.trials import RateRange
from tests.test_pages import EVIL
from tests.test_trial_page import Parts, everything

alt = pytest.importorskip("altair")
pytest.importorskip("vl_convert")

VEGA = f"application/vnd.vegalite.{alt.SCHEMA_VERSION.partition('.')[0]}+json"


class Html(Parts):
    VOID = ("img",)


@pytest.fixture(scope="module")
def fit(tape, a100):
    return bsmodel.fit(tape, a100)


@pytest.fixture(scope="module")
def plan(fit):
    return bsmodel.plan(fit, 4 * fit.batch, samples=10**6, epochs=3, base_lr=1e-3)


@pytest.fixture(scope="module")
def study(tape):
    goal = bsmodel.Goal(target_batch=4096, samples=10**6, epochs=3)
    return bsmodel.study([tape], gpus=["a100-40gb", "rtx-4090-24gb"], devices=[1, 2], goals=[goal], caching=False)


@pytest.fixture(scope="module")
def shown(tape, a100, fit, plan, study):
    """A value of every kind that shows itself."""
    times = [bsmodel.step_time(tape, a100, batch) for batch in (8, [64, 8, 512])]
    rates = RateRange(8, tuple(np.geomspace(1e-5, 1, 40)), tuple(np.linspace(3, 1, 40)), tuple(np.linspace(3, 1, 40)))
    charted = [fit, plan, bsmodel.breakdown(tape, 8), *times, study, everything()]
    return [*charted, fit.peak, bsmodel.footprint(tape), a100, bsmodel.timeline(tape, a100, 8), study.rows[0], NoiseScale(3, 2, np.inf, 9), rates]


def cells(value):
    return [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", value._repr_mimebundle_()["text/html"])]


def kinds(base):
    return {base, *(kind for each in base.__subclasses__() for kind in kinds(each))} - {Charted, Shown}


def test_a_study_of_several_models_is_compared_model_by_model(study):
    twice = [replace(row, workload="other", timing=replace(row.timing, hours=9 * row.timing.hours, cost_usd=9 * row.timing.cost_usd)) for row in study.rows]
    both = bsmodel.Study((*study.rows, *twice))
    lone, found = (each.plot().to_dict()["datasets"]["frontier"] for each in (study, both))
    _, frontier = tables_of(both)

    assert [row["hours"] for row in found] == pytest.approx([times * row["hours"] for times in (1, 9) for row in lone], rel=1e-4)
    assert [row["model"] for row in found] == [study.rows[0].workload] * len(lone) + ["other"] * len(lone)
    assert [line[1] for line in frontier.lines] == [f"{row['model']}, {each['name']}" for row, each in zip(found, [*lone, *lone], strict=True)]


def test_every_kind_of_value_that_shows_itself_has_a_table(shown):
    assert {kind for kind in kinds(Shown) if kind.__module__ != "bsmodel.command.documents"} == set(map(type, shown))
    assert all(tables_of(value) for value in shown)


def test_a_value_is_its_text_its_table_and_its_chart(shown):
    for value in shown:
        bundle = value._repr_mimebundle_(include=None, exclude=None)
        html = Html(bundle["text/html"])

        assert bundle["text/plain"] == repr(value) and not html.open
        assert {*bundle} == {"text/plain", "text/html", *([VEGA] if isinstance(value, Charted) else [])}
        assert [tag for tag, _ in html.tags].count("img") == isinstance(value, Charted)
        assert all(attributes["src"].startswith("data:image/svg+xml;base64,") for tag, attributes in html.tags if tag == "img")


def test_a_chart_is_altairs_and_valid(shown):
    for value in (value for value in shown if isinstance(value, Charted)):
        chart = value.plot().properties(width=200)

        assert type(chart) is alt.LayerChart and chart.to_dict()["width"] == 200  # which altair validates both ways


def test_the_numbers_are_those_that_the_command_prints(tape, tmp_path, plan, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    tape.save(tmp_path / "tape.json.gz")
    asked = ("--gpu", "a100-40gb", "--target-batch", str(plan.target_batch), "--samples", "1000000", "--epochs", "3", "--base-lr", "1e-3")
    assert main(["plan", str(tmp_path / "tape.json.gz"), *asked]) == 0
    printed = capsys.readouterr().out
    assert main(["explain", str(tmp_path / "tape.json.gz"), "--gpu", "a100-40gb", "--batch", "8"]) == 0
    explained = capsys.readouterr().out

    assert len(cells(plan)) > 12 and [cell for cell in cells(plan) if cell not in printed] == []
    assert len(held := cells(bsmodel.breakdown(tape, 8))) > 12 and [cell for cell in held if cell not in explained] == []


def test_the_chart_of_a_plan_goes_through_its_peak(tape, a100, plan):
    bundle = plan._repr_mimebundle_()[VEGA]
    rows = {row["batch"]: row for row in bundle["datasets"]["rows"]}

    one, accumulated = (bsmodel.predict(tape, a100, 1, micro_steps) for micro_steps in (1, plan.split.accumulation))

    assert rows[1]["requested"] == pytest.approx(accumulated.requested_bytes / 2**30, rel=1e-5) != pytest.approx(one.requested_bytes / 2**30, rel=1e-5)
    assert rows[plan.split.micro_batch]["reserved"] == pytest.approx(plan.peak.reserved_bytes / 2**30, rel=1e-5)
    assert rows[plan.fit.batch]["found"] != "out of memory" == rows[max(rows)]["found"]


def test_seconds_are_drawn_by_batch_whatever_their_order(tape, a100):
    rows = bsmodel.step_time(tape, a100, [64, 8, 512])._repr_mimebundle_()[VEGA]["datasets"]["rows"]
    step = bsmodel.step_time(tape, a100, 64).seconds

    assert [row["batch"] for row in rows] == [8, 64, 512] and rows[1]["step"] == pytest.approx(step, rel=1e-5)


def test_where_there_is_nothing_to_draw_the_table_says_why(tape, a100, fit, study):
    nothing = replace(fit, batch=0, peak=None, verdict="does not fit on a100-40gb")
    unpriced = replace(study, rows=tuple(replace(row, timing=None) for row in study.rows))
    for value, why in (
        (bsmodel.step_time(tape, a100, 8, [1, 2]), "several times"),
        (nothing, "does not fit"),
        (unpriced, "no row has both a time and a price"),
    ):
        bundle = value._repr_mimebundle_()
        assert VEGA not in bundle and "There is no chart: " in bundle["text/html"] and why in bundle["text/html"]
        with pytest.raises(InvalidInputError, match=why):
            value.plot()


def test_names_are_text(tape, plan, study):
    named = replace(plan, fit=replace(plan.fit, tape=replace(tape, name=EVIL, uncounted=(EVIL,)), verdict=EVIL))
    rows = replace(study, rows=tuple(replace(row, workload=EVIL, gpu=EVIL) for row in study.rows))
    for value in (named, named.fit, rows, rows.rows[0], Breakdown([Share(EVIL, EVIL, 1)])):
        html = value._repr_mimebundle_()["text/html"]

        assert "<script" not in html and EVIL in unescape(html)
        assert not Html(html).open and all("onerror" not in attributes for _, attributes in Html(html).tags)


def test_a_breakdown_is_the_tuple_of_its_shares(tape):
    found = bsmodel.breakdown(tape, 8)

    assert found == tuple(found) and isinstance(found, tuple) and sum(share.bytes for share in found) == bsmodel.footprint(tape)(8)


WITHOUT = "import sys; sys.modules.update(altair=None, vl_convert=None)  # which makes them what cannot be imported"
SHOW = """
import bsmodel
tape = bsmodel.Tape.load({path!r})
fit = bsmodel.fit(tape, bsmodel.Gpu.named("a100-40gb"))
before = [name for name in ("altair", "vl_convert", "torch", "rich", "bsmodel.notebook") if sys.modules.get(name)]
bundle = fit._repr_mimebundle_()
print(before, sorted(bundle), "table" in bundle["text/html"], "torch" in sys.modules)
try:
    fit.plot()
except bsmodel.InvalidInputError as error:
    print(error)
"""


def test_without_altair_there_is_the_table_and_plot_says_what_to_install(tape, tmp_path):
    tape.save(tmp_path / "tape.json.gz")
    program = SHOW.format(path=str(tmp_path / "tape.json.gz"))
    without, with_it = (
        subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=True).stdout.splitlines()
        for start in (WITHOUT, "import sys")
    )

    assert without == [
        "[] ['text/html', 'text/plain'] True False",
        'a chart needs altair, which is not installed; pip install "bsmodel[page]"',
    ]
    assert with_it == [f"[] {sorted([VEGA, 'text/html', 'text/plain'])} True False"]
