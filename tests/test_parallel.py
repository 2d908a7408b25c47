# SPDX-License-Identifier: Apache-2.0
"""Work in a copy of the process: the same result, the same errors, and none where the copy fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bsmodel.command import main
from bsmodel.command.parallel import beside, later

ROOT = Path(__file__).parent.parent
ASKED = (f"{ROOT}/tests/models.py:attention", "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--gpu", "rtx-3070-8gb")


def test_a_result_comes_back_whole():
    large = list(range(300_000))

    assert beside(lambda: large)() == later(lambda: large)() == large


def test_the_copy_works_while_this_process_does_something_else(tmp_path):
    begun = beside(lambda: os.getpid())

    assert begun() != os.getpid() or sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2


def test_what_the_work_raises_is_raised_here():
    def fails():
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        beside(fails)()


def test_a_copy_that_dies_is_done_without():
    here = os.getpid()

    def dies_elsewhere():
        if os.getpid() != here:
            os._exit(9)
        return "done here"

    assert beside(dies_elsewhere)() == "done here"


@pytest.mark.parametrize("arguments", [("plan", *ASKED, "--json"), ("plan", *ASKED), ("compare", *ASKED, "--json"), ("compare", *ASKED)])
def test_the_command_says_what_the_library_says(capsys, arguments):
    found = subprocess.run([sys.executable, "-m", "bsmodel", *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert main(arguments) == 0

    assert found.stdout == capsys.readouterr().out
    assert found.stderr.count("recording attention for compute capability") == 2
