# SPDX-License-Identifier: Apache-2.0
"""Bars of letters beside tables: in a terminal, as wide as it is and in letters that it has; never in a pipe."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from bsmodel.command.bars import memory_bars
from bsmodel.command.terminal import bar, render, table
from tests.test_command import in_a_terminal

ESCAPES = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")
BARS = re.compile("[\u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588]+$")
CARDS = ("--gpu", "a100-40gb", "--gpu", "rtx-4090-24gb")
XTERM = {"TERM": "xterm-256color"}


@pytest.fixture
def asks(tape, tmp_path):
    """The command lines of each question about a recording."""
    tape.save(path := tmp_path / "tape.json.gz")
    command = [sys.executable, "-m", "bsmodel"]
    more = {"explain": ["--batch", "512"], "plan": [], "compare": ["--samples", "1000", "--epochs", "1"]}
    return {name: [*command, name, str(path), *own, *CARDS] for name, own in more.items()}


def lines_of(command, columns, **environment):
    found = in_a_terminal(command, {**XTERM, "COLUMNS": str(columns), **environment})
    return [line.rstrip() for line in ESCAPES.sub("", found).replace("\r\n", "\n").splitlines()]


def piped(command, columns):
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": str(columns)}, check=True).stdout


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_a_longer_bar_is_no_shorter_and_stays_within_its_columns(one, two, columns):
    short, long = (bar(length, columns) for length in sorted((one, two)))

    assert len(short) <= len(long) <= columns and bool(short) == (min(one, two) > 0)
    assert bar(1, columns) == "\u2588" * columns and bar(2.5, columns) == bar(1, columns)


@pytest.mark.parametrize(("question", "columns"), [("explain", 60), ("explain", 200), ("compare", 60)])
def test_a_terminal_has_bars_beside_the_table_that_a_pipe_has(asks, question, columns):
    shown, plain = lines_of(asks[question], columns), piped(asks[question], columns)

    assert [BARS.sub("", line).rstrip() for line in shown] == plain.splitlines()
    assert any(map(BARS.search, shown)) and not BARS.search(plain) and max(map(len, shown)) <= columns


@pytest.mark.parametrize("columns", [60, 200])
def test_memory_is_drawn_with_a_line_for_each_card(asks, columns):
    shown, plain = lines_of(asks["plan"], columns), piped(asks["plan"], columns)
    drawn = [line for line in shown if line.count("\u2502") == 2]
    batches = [int(line.split()[0].replace(",", "")) for line in drawn]

    assert batches == [262_144 >> power for power in range(6, -1, -1)] + [524_288] and " 262144" in plain  # the largest power of two on one of them
    assert len({line.rindex("\u2502") for line in drawn}) == 1 and max(map(len, shown)) <= columns
    assert any("GiB usable: rtx-4090-24gb" in line for line in shown) and "\u2502" not in plain


def test_bars_are_of_letters_and_colours_that_the_terminal_has(asks):
    plain = in_a_terminal(asks["plan"], {**XTERM, "COLUMNS": "80", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"})
    answer = plain[plain.index("Closed form") :]

    assert answer.isascii() and "###" in answer and "|" in answer and "\x1b" not in answer
    assert "\x1b[36m" in in_a_terminal(asks["explain"], {**XTERM, "COLUMNS": "80"})


def test_json_has_no_bars_in_a_terminal_either(asks):
    shown = in_a_terminal([*asks["explain"], "--json"], XTERM)

    assert json.loads(shown)["command"] == "explain" and "\u2588" not in shown


def test_a_pipe_has_none(tape, a100):
    form = bsmodel.footprint(tape)
    row = bsmodel.studies.Row.of(bsmodel.plan(bsmodel.fit(tape, a100)))

    assert memory_bars(form, [row]) == [] and render(table(("a", ""), rows=[["b"]], bars=[1.0])) == "a\nb\n"
