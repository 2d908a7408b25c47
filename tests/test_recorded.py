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
