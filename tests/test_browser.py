# SPDX-License-Identifier: Apache-2.0
"""Pages of the questions as Chromium opens them: nothing is asked for, nothing is wider than the window, and what is clicked is told."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from bsmodel.command import main
from bsmodel.trials import page
from tests.chromium import CHROMIUM
from tests.test_adapters import GPT2
from tests.test_trial_page import Parts, everything, specs

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parent.parent
MINE = "a/folder/whose/name/is/as/long/as/the/names/of/folders/of/many/people/are/models.py:attention"
TEXTS = "config.json"
RUN = ("--target-batch", "65536", "--samples", "1000000", "--epochs", "3")
CARDS = ("--gpu", "a100-40gb", "--gpu", "rtx-3070-8gb")
QUESTIONS = {
    "plan": ("plan", MINE, "--cache", *RUN, *CARDS),
    "lengths": ("plan", TEXTS, "--cache", "--seq-len", "128:512", *CARDS),
    "compare": ("compare", MINE, "--cache", *RUN, *CARDS, "--gpu", "l4-24gb", "--devices", "1,4"),
    "explain": ("explain", MINE, "--cache", "--batch", "512", *CARDS),
    "study": ("study", "--model", MINE, "--cache", "--precision", "fp32", "--precision", "bf16-mixed", *CARDS, "--gpu", "t4-16gb", "--devices", "1"),
    "validate": ("validate", "--report", f"{ROOT}/benchmarks/results/errors.jsonl"),
}
PAGES = (*QUESTIONS, "trial")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Where each page is, written once as its command does; that of a trial is of a trial that is made up."""
    folder, known = tmp_path_factory.mktemp("pages"), {}
    model = folder / MINE.partition(":")[0]
    model.parent.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "models.py", model)
    (folder / TEXTS).write_text(json.dumps({**GPT2, "architectures": ["GPT2LMHeadModel"]}))

    def of(name):
        if name not in known:
            known[name] = folder / f"{name}.html"
            if name in QUESTIONS:
                assert main([str(folder / each) if each in (MINE, TEXTS) else each for each in (*QUESTIONS[name], "--html", str(known[name]))]) == 0
            else:
                known[name].write_text(page(everything()))
        return known[name]

    return of


def opened(browser, path, **how):
    """The page with all its charts, and what it said and asked for meanwhile."""
    shown = browser.new_page(**how)
    said, asked = [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(path.as_uri())
    charts = len(specs(path.read_text()))
    shown.wait_for_function(f"document.querySelectorAll('.live svg').length === {charts}")
    return shown, said, asked


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440, 1920])
@pytest.mark.parametrize("name", PAGES)
def test_all_charts_are_drawn_within_the_window_and_nothing_is_asked_for(name, width, theme, browser, written):
    shown, said, asked = opened(browser, written(name), viewport={"width": width, "height": 900}, color_scheme=theme)

    assert said == [] and asked == [written(name).as_uri()]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate("[...document.querySelectorAll('.live svg')].every(each => each.querySelector('.marks path, .marks rect, .mark-rule line'))")
    dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (theme == "dark")
    shown.close()


@pytest.mark.parametrize("name", PAGES)
def test_everything_that_can_be_pressed_is_reached_by_the_keyboard_and_has_a_name(name, browser, written):
    shown, *_ = opened(browser, written(name))
    pressed = "button:not([hidden]), .scroll"

    assert shown.evaluate(f"[...document.querySelectorAll('{pressed}')].every(each => each.tabIndex === 0)")
    assert shown.evaluate(f"[...document.querySelectorAll('{pressed}')].every(each => (each.getAttribute('aria-label') || each.textContent).trim())")
    assert shown.evaluate("[...document.querySelectorAll('.live svg')].every(each => (each.getAttribute('aria-label') || each.parentElement.ariaLabel))")
    shown.close()


@pytest.mark.parametrize("name", ["plan", "trial"])
def test_a_batch_that_is_pressed_is_marked_and_its_split_is_told(name, browser, written):
    shown, *_ = opened(browser, written(name))
    part = shown.locator("section:has(.legend)").first
    button = part.locator(".legend button").nth(2)
    before = part.locator(".live").first.inner_html()
    button.focus()
    shown.keyboard.press("Enter")
    shown.wait_for_timeout(100)

    assert button.get_attribute("aria-pressed") == "true"
    assert part.locator(".live").first.inner_html() != before
    if name == "plan":
        assert shown.locator(".said").first.text_content() == button.get_attribute("data-said")
        assert shown.locator(".said").nth(1).text_content().startswith("Choose a batch")
    shown.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    shown.close()


def test_a_batch_that_is_clicked_in_a_chart_is_told(browser, written):
    shown, *_ = opened(browser, written("plan"))
    chart = shown.locator("#memory-0 .live svg")
    chart.scroll_into_view_if_needed()
    box, told = chart.bounding_box(), set()
    for across in range(20, 96, 2):
        chart.click(position={"x": box["width"] * across / 100, "y": box["height"] * 0.5})
        told.add(shown.locator(".said").first.text_content())

    of_batches = {attributes["data-said"] for _, attributes in Parts(written("plan").read_text()).tags if "data-said" in attributes}
    assert len(told & of_batches) > 5 and len(told - of_batches) <= 1
    shown.close()


def test_what_a_pointer_is_over_is_told(browser, written):
    shown, *_ = opened(browser, written("plan"))
    chart = shown.locator("#memory-0 .live svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    for across in range(20, 95, 3):
        chart.hover(position={"x": box["width"] * across / 100, "y": box["height"] * 0.5})
        if shown.locator("#vg-tooltip-element.visible").count():
            break

    assert "reserved [GiB]" in shown.locator("#vg-tooltip-element").text_content()
    shown.close()


def test_a_cell_that_is_clicked_is_told_and_its_line_is_marked(browser, written):
    shown, *_ = opened(browser, written("study"))
    chart = shown.locator("#samples .live svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    chart.click(position={"x": box["width"] - 100, "y": box["height"] - 12})
    marked = shown.locator("#table-rows tr.chosen")

    assert marked.count() == 1 and "t4-16gb" in marked.text_content()
    told = shown.locator("#samples output").text_content()
    assert "GPU: t4-16gb" in told and "why: t4-16gb has no bf16 arithmetic" in told
    shown.close()


def test_cells_are_walked_through_by_the_keyboard(browser, written):
    shown, *_ = opened(browser, written("study"))
    focused = "document.activeElement.getAttribute('aria-label')"
    cells = shown.locator("#samples .live [role=button]")

    assert cells.count() == 6 and shown.locator("#samples .live [tabindex='0']").count() == 1
    cells.first.focus()
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        shown.keyboard.press(key)
        walked.append(shown.evaluate(focused))
        assert shown.locator("#table-rows tr.chosen").count() == 1
    assert [each.partition(":")[0] for each in walked] == [
        *("rtx-3070-8gb, fp32", "t4-16gb, fp32", "t4-16gb, fp32", "t4-16gb, bf16-mixed", "rtx-3070-8gb, bf16-mixed", "rtx-3070-8gb, fp32")
    ]
    assert walked[3] == "t4-16gb, bf16-mixed: refused"
    assert "GPU: rtx-3070-8gb" in shown.locator("#samples output").text_content()
    assert shown.locator("#samples .live [tabindex='0']").get_attribute("aria-label") == walked[-1]
    shown.close()


def test_a_case_whose_bar_a_pointer_is_over_is_told_with_its_numbers(browser, written):
    shown, *_ = opened(browser, written("validate"))
    chart = shown.locator("#allocated-errors .live svg")
    worst = specs(written("validate").read_text())["allocated-errors"]["datasets"]["rows"][0]
    chart.scroll_into_view_if_needed()
    chart.hover(position={"x": 200, "y": 24})
    said = shown.locator("#vg-tooltip-element.visible").text_content()

    assert worst["case"] in said and f"{abs(worst['error']):.2%}" in said and "predicted [GiB]" in said
    shown.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_table_is_saved_as_the_page_has_it(name, browser, written):
    shown, *_ = opened(browser, written(name), accept_downloads=True)
    tables = json.loads(re.search(r'<script type="application/json" id="tables">(.*?)</script>', written(name).read_text(), re.DOTALL)[1])
    with shown.expect_download() as saved:
        shown.locator("button.csv").first.click()

    first, content = next(iter(tables.items()))
    assert saved.value.suggested_filename == f"{first}.csv"
    assert list(csv.reader(io.StringIO(Path(saved.value.path()).read_text()))) == list(csv.reader(io.StringIO(content)))
    shown.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_printed_page_has_what_the_screen_has(name, browser, written):
    shown, *_ = opened(browser, written(name))
    shown.emulate_media(media="print", color_scheme="dark")

    assert shown.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # ink on paper, whatever the screen's theme
    assert shown.pdf().startswith(b"%PDF") and shown.locator(".live svg").first.is_visible()
    shown.close()
