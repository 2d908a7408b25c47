# SPDX-License-Identifier: Apache-2.0
"""The chart of a training step: the binding moment on top, each card's seconds, and by what it is drawn where these are not known."""

import itertools
from pathlib import Path

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.command.explain_page import Course
from bsmodel.memory import over_a_step
from bsmodel.pages import of_page, of_picture
from bsmodel.pages.looks import OF_CATEGORIES, of_category
from bsmodel.studies import tapes
from bsmodel.tape import CATEGORIES
from bsmodel.timing import step_time
from bsmodel.units import GiB
from tests.test_over_time import loading
from tests.test_trial_page import specs, words

alt = pytest.importorskip("altair")
vl_convert = pytest.importorskip("vl_convert")

MINE = f"{Path(__file__).parent}/models.py:attention"


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page of an explanation, as the command writes it."""
    path = tmp_path_factory.mktemp("pages") / "explain.html"
    assert main(["explain", MINE, "--cache", "--batch", "512", "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--html", str(path)]) == 0
    return path.read_text()


def drawn(course):
    """The chart of one card, which altair and vega take."""
    from bsmodel.pages import passing

    spec = passing(course.step, course.seconds, of_page(0))
    assert alt.LayerChart.from_dict({field: value for field, value in spec.items() if field != "params"}, validate=True)
    assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
    return spec


def labels(spec):
    return [layer["data"]["values"][0]["label"] for layer in spec["layer"] if layer["mark"].get("type") == "text"]


def test_a_step_is_drawn_for_each_card_with_the_bytes_of_the_binding_moment_on_top(explained, a100):
    (tape,) = tapes(bsmodel.Source.of(MINE), {}, [a100], True)
    spec, step = specs(explained)["step-0"], over_a_step(tape, 512, gpu=a100)
    rows, seen = spec["datasets"]["rows"], spec["datasets"]["seen"]
    top = f"t{len(step.categories) - 1}"
    seconds = step_time(tape, a100, 512).seconds

    assert {"step-0", "step-1"} < set(specs(explained))
    assert max(row[top] for row in rows) == pytest.approx(step.total_bytes.max() / GiB, rel=1e-5)
    assert max(row["total"] for row in seen) == pytest.approx(step.total_bytes.max() / GiB, rel=1e-5)
    assert rows[-1]["x"] == seen[-1]["until"] == pytest.approx(seconds, rel=1e-5) and seen[0]["x"] == 0
    assert all(one["until"] <= other["x"] + 1e-9 for one, other in itertools.pairwise(seen)) and len(rows) <= 4 * 256 + 4
    for row in seen:
        assert sum(size for name, size in row.items() if name.startswith("c")) == pytest.approx(row["total"], rel=1e-3)


def test_a_step_whose_seconds_are_not_known_is_drawn_by_what_happens_and_says_why(tape, a100):
    sources = [kept for source in a100.sources if (kept := source.without("bandwidth_bytes_per_s"))]
    unknown = a100.model_copy(update={"bandwidth_bytes_per_s": None, "sources": sources})
    course = Course.of(tape, unknown, 64)

    assert course.seconds is None and "has no bandwidth_bytes_per_s" in course.untimed
    assert drawn(course)["datasets"]["rows"][-1]["x"] == len(course.step.moments)


@pytest.mark.parametrize("batch", [1, 4096])
def test_its_phases_and_its_binding_moment_are_named(tape, a100, batch):
    found = labels(drawn(Course.of(tape, a100, batch)))

    assert {"forward", "backward"} & {*found} and {*found} - {"forward", "backward", "optimizer"} == {found[-1]}
    assert found[-1].startswith("binding moment\n")


def test_the_first_step_begins_with_the_loading_of_the_model(tape, a100):
    course = Course.of(loading(tape, 1 << 40), a100, 64)

    assert course.seconds is None and "it is the first step" in course.untimed
    assert "loading" in labels(drawn(course)) and "binding moment\n1024 GiB" in labels(drawn(course))


def test_of_many_micro_steps_two_are_drawn_and_it_is_said(tmp_path):
    path = tmp_path / "explain.html"

    assert main(["explain", MINE, "--cache", "--batch", "8", "--accumulation", "5", "--gpu", "a100-40gb", "--html", str(path)]) == 0
    assert "2 micro-steps are drawn; of the 5 there are, further ones are as the second." in words(path.read_text())


def test_every_category_has_a_colour_of_its_own():
    assert sorted(CATEGORIES) == sorted(OF_CATEGORIES)
    assert len({of_category(name, of_picture(0)) for name in CATEGORIES}) == len(CATEGORIES)
