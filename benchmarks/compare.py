# SPDX-License-Identifier: Apache-2.0
"""Predict every measured row and print the errors, worst first.

python benchmarks/compare.py --out benchmarks/results/errors.jsonl
python benchmarks/compare.py --against benchmarks/results/errors.jsonl    # exits 1 and names the cases predicted otherwise than there
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from cases import DATA, read, simulated, write
from cases.matrix import Case, cases

import bsmodel
from bsmodel.tape import counted


def predicted(case: Case, tapes: dict[Any, Any]) -> dict[str, int]:
    """The prediction for a case, its tape shared among cases that differ in the batch or in a like GPU only."""
    gpu = simulated(bsmodel.Gpu.named(case.gpu))
    shared = (case.model, case.options, repr(case.training), gpu.kernel_family)
    if shared not in tapes:
        tapes[shared] = bsmodel.trace(case.workload(), case.training, gpu)
    peak = bsmodel.predict(tapes[shared], gpu, case.batch)
    return {
        "allocated": peak.allocated_bytes,
        "reserved": peak.reserved_bytes,
        "requested": peak.requested_bytes,
        "counted": counted(tapes[shared])(case.batch),
    }


def compared(measured: dict[str, dict[str, Any]], only: str) -> list[dict[str, Any]]:
    """One row per measured case whose key contains `only`, worst first."""
    rows, tapes = [], {}
    for case in cases():
        if case.key not in measured or only not in case.key:
            continue
        started = time.perf_counter()
        try:
            found = predicted(case, tapes)
        except bsmodel.BsmodelError as error:
            print(f"{case.key}: {error}", file=sys.stderr)
            continue
        row = measured[case.key]
        errors = {name: found[name] / row[f"{name}_bytes"] - 1 for name in ("allocated", "reserved")}
        rows.append({"case": case.key, "torch": row["torch"], "measured": {n: row[f"{n}_bytes"] for n in errors}, "predicted": found, "error": errors})
        seconds = time.perf_counter() - started  # on stderr only: a second run writes the same file
        print(f"{errors['allocated']:+8.2%} {errors['reserved']:+8.2%}  {seconds:5.1f} s  {case.key}", file=sys.stderr, flush=True)
    return sorted(rows, key=lambda row: -abs(row["error"]["allocated"]))


def differences(rows: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[str]:
    """A line for every case that is predicted otherwise than in the known rows, or is in one of the two only."""
    new, old = ({row["case"]: row["predicted"] for row in some} for some in (rows, known))
    lines = []
    for key in sorted(new.keys() | old.keys()):
        if key not in old or key not in new:
            lines.append(f"{key}: {'not there' if key in new else 'not predicted'}")
        elif changed := [f"{name} {old[key].get(name)} -> {value}" for name, value in new[key].items() if value != old[key].get(name)]:
            lines.append(f"{key}: {', '.join(changed)}")
    return lines


def main() -> None:
    """Write one row per measured case, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=DATA / "measured.jsonl")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="cases whose key contains this")
    parser.add_argument("--against", type=Path, help="exit 1 where a prediction differs from the rows of this file")
    options = parser.parse_args()
    known = read(options.against) if options.against else []  # before --out, which may be the same file
    rows = compared({row["case"]: row for row in read(options.measured)}, options.only)
    if not rows:
        raise SystemExit(f"no measured case contains {options.only!r}")
    if options.out:
        write(options.out, rows)
    for name in ("allocated", "reserved"):
        errors = sorted(abs(row["error"][name]) for row in rows)
        print(f"{name}: median {statistics.median(errors):.2%}, 95th percentile {errors[int(0.95 * (len(errors) - 1))]:.2%}, worst {errors[-1]:.2%}")
    if options.against:
        changed = differences(rows, [row for row in known if options.only in row["case"]])
        print(*changed, f"{len(changed)} of {len(rows)} cases differ from {options.against}", sep="\n")
        raise SystemExit(bool(changed))


if __name__ == "__main__":
    main()
