# SPDX-License-Identifier: Apache-2.0
"""Studies: rows in a defined order, the same on every executor, each cell for itself, and interrupted ones go on."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import bsmodel
from bsmodel.studies import Goal, Progress, pool, study
from bsmodel.studies.executors import Here
from bsmodel.studies.kept import adapter
from tests.models import SGD, attention, convolutional, workload

ROOT = Path(__file__).parent.parent
MINE = f"{ROOT}/tests/models.py:attention"
GPUS = ("rtx-3070-8gb", "a100-40gb", "h100-80gb")
RECIPES = ({}, {"precision": "bf16-mixed"})


@pytest.fixture(scope="module")
def processes():
    """Two processes that have imported torch once."""
    with pool(workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def here():
    return study([attention()], RECIPES, GPUS, devices=(1, 8), goals=[Goal(target_batch=4096, samples=10**6, epochs=2)], executor=Here())


def test_rows_come_in_the_order_of_the_axes(here):
    asked = [(recipe, gpu, devices) for recipe in RECIPES for gpu in GPUS for devices in (1, 8)]

    assert [(row.recipe, row.gpu, row.devices) for row in here.rows] == asked
    assert all(row.fits and row.effective_batch == 4096 for row in here.rows)


def test_a_row_says_what_the_library_says_of_one_card(here, a100):
    tape = bsmodel.trace(attention(), bsmodel.Training(), a100)
    fit = bsmodel.fit(tape, a100)
    plan = bsmodel.plan(fit, 4096, 8, samples=10**6, epochs=2)
    row = next(row for row in here.rows if row.gpu == "a100-40gb" and row.devices == 8)

    assert (row.largest_batch, row.split, row.peak, row.timing, row.total_steps) == (plan.fit.batch, plan.split, plan.peak, plan.timing, plan.total_steps)
    assert row.closed_form == bsmodel.footprint(plan.fit.tape) != bsmodel.footprint(tape)


def test_a_pool_of_processes_gives_the_same_rows(here, processes):
    again = study([attention()], RECIPES, GPUS, (1, 8), [Goal(target_batch=4096, samples=10**6, epochs=2)], executor=processes)

    assert again == here


def test_a_dask_cluster_gives_the_same_rows(here):
    distributed = pytest.importorskip("distributed")
    command = [sys.executable, "-W", "ignore", "-c", _ON_DASK]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert distributed and found.returncode == 0, found.stderr
    assert [adapter().validate_python(row) for row in json.loads(found.stdout)["rows"]] == list(here.rows)


_ON_DASK = """
from bsmodel.studies import Goal, study
from tests.models import attention
if __name__ == "__main__":
    from dask.distributed import Client, LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        goal = Goal(target_batch=4096, samples=10**6, epochs=2)
        gpus = ("rtx-3070-8gb", "a100-40gb", "h100-80gb")
        found = study([attention()], ({}, {"precision": "bf16-mixed"}), gpus, (1, 8), [goal], executor=client.get_executor())
        print(found.to_json())
"""


def test_cards_of_a_family_share_a_recording_and_it_is_made_once():
    seen: list[Progress] = []
    study([attention()], gpus=("rtx-3070-8gb", "rtx-4090-24gb", "a100-40gb", "h100-80gb"), executor=Here(), watch=seen.append)

    assert [progress.recorded.gpu.compute_capability for progress in seen if progress.recorded] == ["8.6", "9.0"]
    assert (seen[-1].done, seen[-1].total) == (4, 4)


def test_a_cell_that_fails_is_a_row_with_its_reason():
    def fails():
        raise RuntimeError("no such model")

    found = study([workload(), workload(fails, name="failing")], ({"precision": "bf16-mixed"},), ("t4-16gb", "a100-40gb"), executor=Here()).rows

    assert [row.status for row in found] == ["refused", "plan", "refused", "refused"]
    assert found[0].verdict.startswith("t4-16gb has no bf16 arithmetic") and "no such model" in found[3].verdict


def test_a_workload_that_cannot_be_sent_is_recorded_here(processes):
    found = study([workload(lambda: convolutional())], (SGD,), ("a100-40gb",), executor=processes)

    assert found.rows[0].fits


def test_a_process_that_dies_takes_no_other_cell_with_it(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("import os\nfrom tests.models import workload\ndef dies():\n    os._exit(9)\ndef work():\n    return workload(dies)\n")
    script = (
        "from bsmodel.studies import study\n"
        "if __name__ == '__main__':\n"
        f"    rows = study([{str(mine) + ':work'!r}, {MINE!r}], gpus=('a100-40gb',)).rows\n"
        "    print([row.status for row in rows], rows[0].verdict)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)

    assert found.stdout.startswith("['refused', 'plan'] the process that worked on it ended")


def test_an_interrupted_study_does_only_the_rest(tmp_path, here):
    out = tmp_path / "rows.jsonl"
    goals = [Goal(target_batch=4096, samples=10**6, epochs=2)]

    def stop(progress):
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study([attention()], RECIPES, GPUS, (1, 8), goals, executor=Here(), out=out, watch=stop)
    with out.open("a") as stream:
        stream.write('{"key": "cut o')
    recorded = []
    again = study([attention()], RECIPES, GPUS, (1, 8), goals, executor=Here(), out=out, watch=lambda p: recorded.append(p.recorded))

    assert again == here
    assert len(out.read_text().splitlines()) == len(here.rows)
    assert sum(tape is not None for tape in recorded) == 3  # of four: the first family was done


def test_a_killed_command_leaves_no_process_and_goes_on(tmp_path):
    out, marked = tmp_path / "rows.jsonl", {**os.environ, "MARKED_BY_A_TEST": str(tmp_path)}
    arguments = ["study", "--model", MINE, "--precision", "fp32", "--precision", "bf16-mixed", "--gpu", "a100-40gb", "--gpu", "h100-80gb", "--out", str(out)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    running = subprocess.Popen([sys.executable, "-m", "bsmodel", *arguments], env=marked, **silent)
    while not (out.exists() and out.read_bytes().count(b"\n")) and running.poll() is None:
        time.sleep(0.05)
    running.kill()
    running.wait()
    done = out.read_bytes().count(b"\n")

    assert 0 < done <= 4
    subprocess.run([sys.executable, "-m", "bsmodel", *arguments], check=True, **silent)
    assert out.read_bytes().count(b"\n") == 4
    assert not marked_processes(str(tmp_path))


def marked_processes(mark):
    """Processes with this in their environment; none where the system does not show them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [folder.name] if f"MARKED_BY_A_TEST={mark}".encode() in (folder / "environ").read_bytes() else []
    return found


def test_forms_that_other_tools_read(here):
    rows = list(csv.DictReader(io.StringIO(here.to_csv())))

    assert [row["gpu"] for row in rows] == [row.gpu for row in here.rows]
    assert [int(row["largest_batch"]) for row in rows] == [row.largest_batch for row in here.rows]
    assert rows[-1]["recipe_precision"] == "bf16-mixed" and rows[0]["recipe_precision"] == ""
    assert [adapter().validate_python(row) for row in json.loads(here.to_json())["rows"]] == list(here.rows)


def test_arrow_and_pandas(here):
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")

    assert here.to_arrow().num_rows == len(here.to_pandas()) == len(here.rows)
    assert here.to_pandas()["largest_batch"].tolist() == here.to_arrow()["largest_batch"].to_pylist()


def test_axes_that_are_empty_or_ambiguous_are_refused():
    for arguments, reason in (
        (([],), "at least one of workloads"),
        ((["gpt2"], (), ()), "at least one of gpus"),
        ((["gpt2"], (), ("a100-40gb",), (0,)), "devices is 0"),
        (([workload(), workload()],), "two workloads are called 'small'"),
        ((["gpt2"], ({"precison": "fp32"},)), "unknown training field 'precison'"),
    ):
        with pytest.raises(bsmodel.InvalidInputError if "unknown" not in reason else bsmodel.UnknownNameError, match=reason):
            study(*arguments)


def test_processes_of_a_study_start_none_of_their_own():
    from bsmodel.studies.executors import pays

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        assert one.submit(pays, 100, 1000).result() is False
