# SPDX-License-Identifier: Apache-2.0
"""Ask other estimators about measured cases, one process per case; one row per case and estimator, as `bsmodel validate --report` reads them.

python benchmarks/rivals.py --out benchmarks/results/rivals.jsonl
bsmodel validate --report benchmarks/results/rivals.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import DATA, RESULTS, read
from cases.matrix import Case, cases

import bsmodel
from bsmodel.validation import rows
from bsmodel.validation.rivals import RIVALS, ask

CHOSEN = (
    "resnet50 a100-40gb b=64 precision=fp32 optimizer=sgd-momentum",
    "resnet50 a100-40gb b=64 precision=fp16-mixed optimizer=sgd-momentum",
    "vgg16 a100-40gb b=32 precision=fp32 optimizer=sgd-momentum",
    "densenet121 a100-40gb b=32 precision=fp32 optimizer=sgd-momentum",
    "convnext-tiny a100-40gb b=32 precision=fp16-mixed optimizer=sgd-momentum",
    "segmenter a100-40gb b=16 precision=fp16-mixed optimizer=adamw",
    "vit-b-16 a100-40gb b=64 precision=bf16-mixed optimizer=adamw",
    "vit-b-16 rtx-4090-24gb b=64 precision=bf16-mixed optimizer=adamw",
    "gpt2 a100-40gb b=4 precision=bf16-mixed optimizer=adamw",
    "gpt2 a100-40gb b=4 precision=fp32 optimizer=adamw",
    "bert-base a100-40gb b=64 precision=bf16-mixed optimizer=adamw",
    "bert-base rtx-4090-24gb b=64 precision=bf16-mixed optimizer=adamw",
)


def _answers(case: Case) -> dict[str, Any]:
    """What every rival that needs no device says, or why it says nothing."""
    said: dict[str, Any] = {}
    for name, rival in RIVALS.items():
        try:
            if rival.needs_device:
                raise bsmodel.InvalidInputError("needs the GPU itself: it runs a forward there")
            found = ask(rival, case.workload(), case.training, case.batch, bsmodel.Gpu.named(case.gpu).usable_bytes)
            said[name] = {"predicted_bytes": found.predicted_bytes, "recommended_batch": found.recommended_batch}
        except Exception as error:
            said[name] = {"failure": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    return said


def _rows(case: Case, said: dict[str, Any], measured: dict[str, Any], largest: int | None) -> list[rows.Row]:
    common = {"workload": case.model, "gpu": case.gpu, "batch": case.batch, "environment": {"gpu": case.gpu, "torch": measured["torch"]}}
    made = []
    for name, answer in said.items():
        if "failure" in answer:
            made.append(rows.row("side-by-side", case.key, rows.FAILED, rival=name, reason=answer["failure"], **common))
            continue
        batch = answer["recommended_batch"]
        survives = None if batch is None or largest is None else batch <= largest
        found = {"allocated_bytes": measured["allocated_bytes"], "largest_batch": largest, "recommended_survives": survives, "idle_bytes": None}
        made.append(rows.row("side-by-side", case.key, rows.MEASURED, rival=name, predicted=answer, measured=found, **common))
    return made


def _own(case: Case) -> dict[str, Any]:
    gpu = bsmodel.Gpu.named(case.gpu)
    tape = bsmodel.trace(case.workload(), case.training, gpu)
    peak = bsmodel.predict(tape, gpu, case.batch)
    return {"predicted_bytes": peak.allocated_bytes, "recommended_batch": bsmodel.fit(tape, gpu).batch}


def main() -> None:
    """Ask about every chosen case that the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "rivals.jsonl")
    parser.add_argument("--one", help="ask about the case with this key and print the answers")
    options = parser.parse_args()
    known = {case.key: case for case in cases()}
    if options.one:
        case = known[options.one]
        print(json.dumps({"bsmodel": _own(case), **_answers(case)}))
        return
    measured = {row["case"]: row for row in read(DATA / "measured.jsonl")}
    largest = {row["case"].replace(" b=0", ""): row["measured"] for row in read(RESULTS / "largest.jsonl")}
    done = {row["case"] for row in rows.read(options.out)} if options.out.exists() else set()
    for key in CHOSEN:
        if key in done:
            continue
        print(key, file=sys.stderr, flush=True)
        run = subprocess.run([sys.executable, __file__, "--one", key], capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if run.returncode:
            print("   failed: " + (run.stderr.strip().splitlines() or ["no message"])[-1], file=sys.stderr)
            continue
        case = known[key]
        for row in _rows(case, json.loads(run.stdout.strip().splitlines()[-1]), measured[key], largest.get(key.replace(f" b={case.batch}", ""))):
            rows.append(options.out, row)


if __name__ == "__main__":
    main()
