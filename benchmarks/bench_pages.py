# SPDX-License-Identifier: Apache-2.0
"""What a page takes beyond its answer, and until a browser has drawn it: python -m pytest benchmarks/bench_pages.py -o python_files='bench_*.py'.

A page is made in the time that a question takes `with a page` less that without; needs pytest-benchmark, and for what is drawn playwright and a Chromium.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bsmodel.command.study_page import page
from bsmodel.studies import Goal, study
from bsmodel.studies.executors import Here
from tests.chromium import CHROMIUM
from tests.models import attention, workload

MINE = f"{Path(__file__).parent.parent}/tests/models.py:attention"
RUN = ("--cache", "--samples", "1000000", "--epochs", "3")
CARDS = ("--gpu", "a100-40gb", "--gpu", "h100-80gb", "--gpu", "t4-16gb")
QUESTIONS = {
    "plan": ("plan", MINE, *RUN, *CARDS),
    "lengths": ("plan", "gpt2", "--seq-len", "128:1024", "--precision", "fp32", *CARDS),
    "compare": ("compare", MINE, *RUN, *CARDS),
    "explain": ("explain", MINE, "--cache", "--batch", "512", *CARDS),
    "study": ("study", "--model", MINE, *RUN, *CARDS, "--precision", "fp32", "--precision", "fp16-mixed", "--devices", "1", "--devices", "8"),
}
DRAWN = "document.querySelectorAll('.live svg').length === document.querySelectorAll('.live').length"


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """A cache of its own, for all questions."""
    return {**os.environ, "BSMODEL_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def many():
    """336 rows: 24 of two small models, each under 14 names."""
    cards, recipes = ("a100-40gb", "h100-80gb", "t4-16gb"), ({"precision": "fp32"}, {"precision": "bf16-mixed"})
    goal = Goal(target_batch=4096, samples=10**6, epochs=3)
    rows = study([attention(), workload()], recipes, cards, (1, 8), [goal], executor=Here()).rows
    return [replace(row, workload=f"{row.workload} {number}") for number in range(14) for row in rows]


@pytest.mark.parametrize("paged", [False, True], ids=["alone", "with a page"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question(benchmark, surroundings, tmp_path, name, paged):
    """Asked again from the cache, in a process of its own."""
    command = [sys.executable, "-m", "bsmodel", *QUESTIONS[name], *(["--html", str(tmp_path / "page.html")] if paged else [])]
    benchmark.pedantic(subprocess.run, (command,), {"check": True, "capture_output": True, "env": surroundings}, rounds=3, warmup_rounds=1)


def test_a_page_of_many_rows(benchmark, many):
    """In a process that has drawn before."""
    text = benchmark(page, many, [4096], [], [])

    benchmark.extra_info |= {"rows": len(many), "bytes": len(text.encode())}
    assert len(many) >= 300 and len(text.encode()) < 3e6


def test_a_browser_draws_a_page_of_many_rows(benchmark, many, tmp_path):
    """From its address to the last chart; beside the time what the renderer worked, which others on the machine do not lengthen."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "study.html"
    path.write_text(page(many, [4096], [], []))
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened():
            shown = browser.new_page(viewport={"width": 1440, "height": 900})
            session = shown.context.new_cdp_session(shown)
            session.send("Performance.enable")
            shown.goto(path.as_uri())
            shown.wait_for_function(DRAWN)
            metrics = session.send("Performance.getMetrics")["metrics"]
            benchmark.extra_info["cpu_seconds"] = next(each["value"] for each in metrics if each["name"] == "ProcessTime")
            shown.close()

        benchmark.pedantic(opened, rounds=5, warmup_rounds=1)
