# SPDX-License-Identifier: Apache-2.0
"""Predict every measured row and print the errors, worst first.

python benchmarks/compare.py --measured benchmarks/measured.jsonl --out benchmarks/errors.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from matrix import Case, cases

import bsmodel
from bsmodel.tape import counted


def predicted(case: Case, tapes: dict[Any, Any]) -> dict[str, Any]:
    """The prediction for a case, its tape shared among cases that differ in the batch or in a like GPU only."""
    gpu = bsmodel.Gpu.named(case.gpu)
    shared = (case.model, case.options, repr(case.training), gpu.kernel_family)
    started = time.perf_counter()
    if shared not in tapes:
        tapes[shared] = bsmodel.trace(case.workload(), case.training, gpu)
    seconds = time.perf_counter() - started
    peak = bsmodel.predict(tapes[shared], gpu, case.batch)
    line = counted(tapes[shared])
    return {
        "allocated": peak.allocated_bytes,
        "reserved": peak.reserved_bytes,
        "requested": peak.requested_bytes,
        "counted": line.fixed + line.per_sample * case.batch,
        "trace_seconds": round(seconds, 2),
    }


def main() -> None:
    """Write one row per measured case, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, default=Path("benchmarks/measured.jsonl"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="cases whose key contains this")
    options = parser.parse_args()
    measured = {row["case"]: row for row in map(json.loads, options.measured.read_text().splitlines())}
    rows, tapes = [], {}
    for case in cases():
        if case.key not in measured or options.only not in case.key:
            continue
        try:
            found = predicted(case, tapes)
        except bsmodel.BsmodelError as error:
            print(f"{case.key}: {error}", file=sys.stderr)
            continue
        row = measured[case.key]
        errors = {name: found[name] / row[f"{name}_bytes"] - 1 for name in ("allocated", "reserved")}
        rows.append({"case": case.key, "torch": row["torch"], "measured": {n: row[f"{n}_bytes"] for n in errors}, "predicted": found, "error": errors})
        print(f"{errors['allocated']:+8.2%} {errors['reserved']:+8.2%}  {found['trace_seconds']:5.1f} s  {case.key}", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: -abs(row["error"]["allocated"]))
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("allocated", "reserved"):
        errors = sorted(abs(row["error"][name]) for row in rows)
        print(f"{name}: median {statistics.median(errors):.2%}, 95th percentile {errors[int(0.95 * (len(errors) - 1))]:.2%}, worst {errors[-1]:.2%}")


if __name__ == "__main__":
    main()
