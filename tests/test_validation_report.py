# SPDX-License-Identifier: Apache-2.0
"""The report of recorded rows, and other estimators asked on the CPU."""

import json
import re
from pathlib import Path

import pytest

import bsmodel
from bsmodel.command import main
from bsmodel.validation import rivals, rows, summary
from bsmodel.validation.cases import calibrates
from tests.models import SGD, attention, workload
from tests.test_validation import recorded, written

BENCHMARKS = Path(__file__).parent.parent / "benchmarks" / "results"


def test_the_report_of_the_recorded_rows(tmp_path, capsys):
    recorded_rows = tmp_path / "rows.jsonl"
    recorded_rows.write_text("".join((BENCHMARKS / name).read_text() for name in ("errors.jsonl", "largest.jsonl")))
    known = [json.loads(line) for line in (BENCHMARKS / "errors.jsonl").read_text().splitlines()]
    largest = [json.loads(line) for line in (BENCHMARKS / "largest.jsonl").read_text().splitlines()]

    assert main(["validate", "--report", str(recorded_rows), "--markdown", str(tmp_path / "report.md")]) == 0
    text = (tmp_path / "report.md").read_text()
    worst = max(abs(row["error"]["allocated"]) for row in known)
    assert f"| allocated | {len(known)} |" in text and f"{worst:.2%} |" in text
    assert all(row["case"] in text for row in known) and text.count("| yes |") == sum(row["predicted"] <= row["measured"] for row in largest)
    errors = [max(abs(float(cell)) for cell in re.findall(r"([+-]\d+\.\d+)%", line)) for line in text.splitlines() if " b=" in line and "%" in line]
    assert len(errors) == len(known) and errors == sorted(errors, reverse=True)
    capsys.readouterr()


def test_the_json_of_a_report_has_the_figures_of_the_table(tmp_path, capsys):
    assert main(["validate", "--report", str(written(tmp_path / "rows.jsonl", recorded())), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert document["command"] == "validate" and document["errors"]["allocated"] == {
        "cases": 20,
        "median": 0.0,
        "p95": 0.0,
        "worst": 0.0,
        "inside": 0,
        "intervals": 0,
    }
    assert document["errors"]["step"] is None and document["errors"]["device"]["worst"] > 0


def test_rows_predicted_with_a_calibrated_gpu_count_only_where_they_were_held_out():
    found = recorded(gpu_row_calibrated="2026-11-20")
    held_out = [item for item in found if item["kind"] == "step" and not calibrates(item["case"])]

    assert summary.compared(found) == held_out and 0 < len(held_out) < 20
    assert f"errors are of the {len(held_out)} held-out cases" in summary.markdown(found)


def test_failures_wrong_verdicts_and_names_with_bars_are_shown():
    found = recorded(3)
    found[0]["measured"]["out_of_memory"] = True
    found.append(rows.row("step", "a|b <script>", rows.FAILED, workload="x", reason="killed by SIGKILL", environment={"gpu": "a100-40gb"}))
    text = summary.markdown(found)

    assert "| mine a100-40gb b=0 | fits | out of memory |" in text
    assert "| step | a\\|b <script> | killed by SIGKILL |" in text
    assert "1 runs that ended out of memory, 1 that failed" in text


# -- rivals ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, rival in rivals.RIVALS.items() if not rival.needs_device])
def test_a_rival_answers_on_the_cpu(name):
    rival = rivals.RIVALS[name]
    if rival.package:
        pytest.importorskip(rival.package)
    found = rivals.ask(rival, workload(), SGD, 64, 2 << 30)

    weights = 4 * sum(parameter.numel() for parameter in workload().model().parameters())
    assert found.predicted_bytes > weights
    if rival.knows_batch:
        low, high = (rival.estimate(workload(), SGD, batch) for batch in (found.recommended_batch, found.recommended_batch + 2))
        assert low <= 2 << 30 < high * 1.01
    else:
        assert found.recommended_batch is None


@pytest.mark.filterwarnings("ignore")
def test_mem_tracker_sees_the_optimizer_and_the_batch():
    adam = bsmodel.Training(optimizer="adamw")
    asked = ((adam, 4), (adam, 64), (bsmodel.Training(optimizer="sgd"), 4))
    small, large, stateless = (rivals.RIVALS["MemTracker"].estimate(attention(), training, batch) for training, batch in asked)

    assert stateless < small < large


@pytest.mark.parametrize(
    ("estimate", "capacity", "largest"),
    [
        (lambda batch: 100 + 10 * batch, 1000, 90),
        (lambda batch: max(500, 100 + 10 * batch), 1000, 90),
        (lambda batch: max(900 + batch, 10 * batch), 100_000, 10_000),
        (lambda batch: 1000 * batch, 3500, 3),
        (lambda batch: 10**6, 100, 0),
        (lambda batch: 50, 100, None),
    ],
)
def test_the_largest_batch_of_an_estimator_is_searched_not_extrapolated(estimate, capacity, largest):
    rival = rivals.Rival("made up", "", "", lambda workload, training, batch: estimate(batch), "", linear=False)

    assert rivals.ask(rival, workload(), SGD, 1, capacity).recommended_batch == largest


def test_a_rival_that_is_not_installed_says_what_to_install():
    absent = rivals.Rival("absent", "no_such_package", "", lambda *_: 0, "")

    with pytest.raises(bsmodel.InvalidInputError, match=r'absent cannot be imported .*; pip install "bsmodel\[rivals\]"'):
        rivals.ask(absent, workload(), SGD, 1, 1)


def test_every_rival_has_its_line_in_the_report():
    found = []
    for name in ("bsmodel", *rivals.RIVALS):
        answer = {"predicted_bytes": 2 << 30, "recommended_batch": 12}
        measured = {"allocated_bytes": 1 << 30, "recommended_survives": name == "bsmodel", "idle_bytes": 1 << 30 if name == "bsmodel" else None}
        content = {"predicted": answer, "measured": measured, "environment": {"gpu": "a100-40gb"}}
        found.append(rows.row("side-by-side", "one", rows.MEASURED, rival=name, **content))
    found[-1] = rows.row("side-by-side", "one", rows.FAILED, rival=name, reason="not today", environment={"gpu": "a100-40gb"})
    lines = [line for line in summary.markdown(found).splitlines() if line.startswith("| one |")]

    assert lines[0] == "| one | bsmodel | 2.00 | 1.00 | +100% | 12 | yes | 1.00 GiB |"
    assert len(lines) == 1 + len(rivals.RIVALS) and sum("OUT OF MEMORY" in line for line in lines) == len(lines) - 2
    assert "not today" in lines[-1]
    assert "| bsmodel | 1 of 1 | 100.0% | +100.0% | 1 of 1 | - | 1.00 GiB |" in summary.markdown(found)
    assert "| torch-kitsune | 0 of 1 | - | - | - | - | - |" in summary.markdown(found)
