# SPDX-License-Identifier: Apache-2.0
"""Predictions against figures recorded from the PyTorch CUDA allocator on a simulated device (benchmarks/data/measured.jsonl)."""

import importlib
from pathlib import Path

import pytest

import bsmodel

pytest.importorskip("transformers")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

KEYS = (
    "gpt2 a100-40gb b=4 precision=bf16-mixed optimizer=adamw",
    "gpt2 a100-40gb b=4 precision=bf16-mixed optimizer=adamw accumulation=4",
    "gpt2 rtx-3090-24gb b=4 precision=fp32 optimizer=adamw attention=eager",
    "vit-b-16 h100-80gb b=64 precision=bf16-mixed optimizer=adamw",
    "bert-base t4-16gb b=64 precision=fp16-mixed optimizer=adamw",
    "t5-base a100-40gb b=8 precision=bf16 optimizer=adafactor",
    "resnet50 a100-40gb b=64 precision=fp16-mixed optimizer=sgd-momentum channels_last=True",
    "torch-encoder a100-40gb b=32 precision=bf16-mixed optimizer=adamw",
)


@pytest.fixture
def script(monkeypatch):
    """A script of the benchmarks by its name, imported as they import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def rows(script):
    """The rows of a file of the benchmarks."""
    return lambda name: script("cases").read(BENCHMARKS / name)


@pytest.mark.parametrize("key", KEYS)
def test_allocated_and_reserved_are_the_recorded_ones(key, script, rows):
    measured = next(row for row in rows("data/measured.jsonl") if row["case"] == key)
    case = next(case for case in script("cases.matrix").cases() if case.key == key)
    gpu = bsmodel.Gpu.named(case.gpu)
    peak = bsmodel.predict(bsmodel.trace(case.workload(), case.training, gpu), gpu, case.batch)

    assert peak.allocated_bytes == pytest.approx(measured["allocated_bytes"], rel=0.002)
    assert peak.reserved_bytes == pytest.approx(measured["reserved_bytes"], rel=0.01)


@pytest.mark.parametrize("name", ["summary", "errors", "rivals", "times"])
def test_the_tables_of_the_readme_are_those_of_the_rows(name, script):
    content = script("table").TABLES["benchmarks/README.md"][name]()

    assert f"<!-- {name}: begin -->\n{content}<!-- {name}: end -->\n" in (BENCHMARKS / "README.md").read_text(), "stale: python benchmarks/table.py"


def test_the_first_page_has_the_same_summary(script):
    assert script("table").headline() in (BENCHMARKS.parent / "README.md").read_text(), "copy it from benchmarks/README.md"


def test_a_case_is_named_where_its_prediction_differs(script):
    known = [{"case": case, "predicted": {"allocated": 1, "reserved": 2}} for case in "abc"]
    new = [known[0], {"case": "b", "predicted": {"allocated": 1, "reserved": 3}}, {"case": "d", "predicted": {"allocated": 1, "reserved": 2}}]

    assert script("compare").differences(known, known) == []
    assert script("compare").differences(new, known) == ["b: reserved 2 -> 3", "c: not predicted", "d: not there"]


@pytest.mark.parametrize("model", ["resnet50", "bert-base-classifier", "vit-b-16"])
def test_predicted_step_times_are_the_published_tables(model, script, rows):
    published = script("published")
    row = next(row for row in rows("results/published_errors.jsonl") if row["model"] == model)

    assert published.predicted(row, {})[0] == pytest.approx(row["predicted_seconds"], rel=1e-6)
    assert published.published_seconds(row) == row["seconds"]


def test_the_median_error_of_published_step_times(rows):
    errors = sorted(abs(row["error"]) for row in rows("results/published_errors.jsonl"))

    assert len(errors) > 100 and errors[len(errors) // 2] < 0.12
