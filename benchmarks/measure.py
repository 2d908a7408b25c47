# SPDX-License-Identifier: Apache-2.0
"""Measure the matrix on a CUDA device, one process per case, one JSON line each; rows already in the file are skipped.

python benchmarks/measure.py --gpu a100-40gb --out benchmarks/data/measured.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from cases import DATA, read
from cases.matrix import cases


def _measure_one(key: str) -> None:
    import torch

    from bsmodel.validation import measure

    case = next(case for case in cases() if case.key == key)
    found = measure(case.workload(), case.training, case.batch)
    print(json.dumps({"case": key, "gpu": case.gpu, "torch": torch.__version__, **asdict(found)}))


def main() -> None:
    """Measure every case of the GPUs asked for that the file does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="append", help="measure only the cases of this GPU (default: all)")
    parser.add_argument("--out", type=Path, default=DATA / "measured.jsonl")
    parser.add_argument("--one", help="measure the case with this key and print its row")
    options = parser.parse_args()
    if options.one:
        return _measure_one(options.one)
    done = {row["case"] for row in read(options.out)} if options.out.exists() else set()
    waiting = [case for case in cases() if case.key not in done and (not options.gpu or case.gpu in options.gpu)]
    for position, case in enumerate(waiting, 1):
        print(f"[{position}/{len(waiting)}] {case.key}", file=sys.stderr, flush=True)
        command = [*filter(None, os.environ.get("BSMODEL_PYTHON", sys.executable).split()), __file__, "--one", case.key]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "BSMODEL_GPU": case.gpu}, check=False)
        if run.returncode:
            print("   failed: " + (run.stderr.strip().splitlines() or ["no message"])[-1], file=sys.stderr)
            continue
        with options.out.open("a") as stream:
            stream.write(run.stdout.strip().splitlines()[-1] + "\n")


if __name__ == "__main__":
    main()
