# SPDX-License-Identifier: Apache-2.0
"""Predictions against figures recorded from the PyTorch CUDA allocator on a simulated device (benchmarks/measured.jsonl)."""

import json
import sys
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


@pytest.mark.parametrize("key", KEYS)
def test_allocated_and_reserved_are_the_recorded_ones(key, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    matrix = pytest.importorskip("matrix")
    measured = {row["case"]: row for row in map(json.loads, (BENCHMARKS / "measured.jsonl").read_text().splitlines())}[key]
    case = next(case for case in matrix.cases() if case.key == key)
    gpu = bsmodel.Gpu.named(case.gpu)
    peak = bsmodel.predict(bsmodel.trace(case.workload(), case.training, gpu), gpu, case.batch)

    assert peak.allocated_bytes == pytest.approx(measured["allocated_bytes"], rel=0.002)
    assert peak.reserved_bytes == pytest.approx(measured["reserved_bytes"], rel=0.01)
    sys.modules.pop("matrix", None)


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of the benchmarks, importable as their scripts import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield BENCHMARKS
    for name in ("matrix", "published", "table"):
        sys.modules.pop(name, None)


def test_the_tables_of_the_readme_are_those_of_the_rows(benchmarks):
    table = pytest.importorskip("table")
    text = (benchmarks.parent / "README.md").read_text()

    for name, content in (("errors", table.tables()), ("rivals", table.estimators()), ("times", table.times())):
        assert f"<!-- {name}: begin -->\n{content}<!-- {name}: end -->\n" in text


@pytest.mark.parametrize("model", ["resnet50", "bert-base-classifier", "vit-b-16"])
def test_predicted_step_times_are_the_published_tables(model, benchmarks):
    published = pytest.importorskip("published")
    rows = [json.loads(line) for line in (benchmarks / "published_errors.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["model"] == model)

    assert published.predicted(row, {})[0] == pytest.approx(row["predicted_seconds"], rel=1e-6)
    assert published.published_seconds(row) == row["seconds"]


def test_the_median_error_of_published_step_times(benchmarks):
    errors = sorted(abs(json.loads(line)["error"]) for line in (benchmarks / "published_errors.jsonl").read_text().splitlines())

    assert len(errors) > 100 and errors[len(errors) // 2] < 0.12
