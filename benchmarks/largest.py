# SPDX-License-Identifier: Apache-2.0
"""Hold predicted largest batches against real out-of-memory errors, one process per trial, one JSON line per case.

python benchmarks/largest.py --out benchmarks/results/largest.jsonl
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from cases import RESULTS, read, simulated
from cases.matrix import Case, largest_cases

import bsmodel
from bsmodel.validation.searching import largest_survivor


def _survives(case: Case, batch: int) -> bool:
    """Whether the steps complete on the device at this batch."""
    command = [*os.environ.get("BSMODEL_PYTHON", sys.executable).split(), __file__, "--one", case.key, "--batch", str(batch)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "BSMODEL_GPU": case.gpu}, check=False)
    if run.returncode:
        raise SystemExit(f"{case.key} at batch {batch}: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return run.stdout.strip().splitlines()[-1] == "survives"


def _one(key: str, batch: int) -> None:
    from bsmodel.validation import measure
    from bsmodel.validation.jobs import TRIAL_STEPS

    case = next(case for case in largest_cases() if case.key == key)
    print("dies" if measure(case.workload(), case.training, batch, TRIAL_STEPS).out_of_memory else "survives")


def main() -> None:
    """Measure every case that the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "largest.jsonl")
    parser.add_argument("--one", help="try the case with this key")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    if options.one:
        return _one(options.one, options.batch)
    done = {row["case"] for row in read(options.out)} if options.out.exists() else set()
    for case in largest_cases():
        if case.key in done:
            continue
        gpu = simulated(bsmodel.Gpu.named(case.gpu))
        predicted = bsmodel.fit(bsmodel.trace(case.workload(), case.training, gpu), gpu).batch
        measured = largest_survivor(functools.partial(_survives, case), predicted).largest
        print(f"{predicted:6d} of {measured:6d}  {predicted / measured - 1:+.1%}  {case.key}", file=sys.stderr, flush=True)
        with options.out.open("a") as stream:
            stream.write(json.dumps({"case": case.key, "gpu": case.gpu, "predicted": predicted, "measured": measured}) + "\n")


if __name__ == "__main__":
    main()
