# SPDX-License-Identifier: Apache-2.0
"""Hold likely batches against timm's tables of training on an RTX 3090: a batch that trained, and by the script's walk the next that did not.

python benchmarks/brackets.py           # some three hours on two cores, in random order; data/timm_rtx3090.csv -> results/brackets.jsonl, goes on
python benchmarks/brackets.py --show    # the table of what is there
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import DATA, RESULTS, read
from cases.environments import run_with
from cases.errors import brackets_table
from cases.library import parts
from cases.scripts import SCRIPTS

import bsmodel
from bsmodel.hardware import runtime

VERSIONS = ("timm==0.6.7", "torchvision==0.28.0", "pillow")
WALK = (512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)  # timm/utils/decay_batch.py from 512 on
Row = dict[str, Any]


def published() -> list[Row]:
    """Model, layout, image side and the two batches of every row that has both."""
    with (DATA / "timm_rtx3090.csv").open() as stream:
        rows = [{**row, "fits": int(row["fits"]), "image_size": int(row["image_size"])} for row in csv.DictReader(stream)]
    return [{**row, "fails": WALK[WALK.index(row["fits"]) - 1]} for row in rows if row["fits"] < WALK[0]]


def _sgd(parameters: Any) -> Any:
    """What timm's factory makes of "sgd"; torch 1.12 had no foreach by default."""
    import torch

    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, nesterov=True, foreach=False)


def placed(row: Row) -> Row:
    """Where the likely batch lies with the usual context of that CUDA, and whether another context in the range says otherwise."""
    gpu = bsmodel.Gpu.named("rtx-3090-24gb")
    channels_last = row["layout"] == "nhwc"
    workload = SCRIPTS["timm"](parts(f"timm:{row['model']}", image_size=row["image_size"]))
    training = bsmodel.Training(precision="fp32", optimizer=_sgd, channels_last=channels_last)
    try:
        tape = bsmodel.trace(replace(workload, name=row["model"]), training, gpu)
        eager = runtime().context(gpu.sm_count, gpu.compute_capability, "eager")
        place = _word(tape, gpu.leaving(context_bytes=eager.usual_bytes), row)
        others = [] if place == "inside" else [_word(tape, gpu.leaving(context_bytes=size), row) for size in (eager.high_bytes, eager.low_bytes)]
    except bsmodel.BsmodelError as error:
        return {**row, "refused": str(error).splitlines()[0]}
    return {**row, "place": place if all(word == place for word in others) else "tied"}


def _word(tape: bsmodel.Tape, gpu: bsmodel.Gpu, row: Row) -> str:
    if bsmodel.predict(tape, gpu, row["fails"]).likely_fits:
        return "above"
    return "inside" if bsmodel.predict(tape, gpu, row["fits"]).likely_fits else "below"


def main() -> None:
    """Place every row that the file does not have yet, in processes with timm as it was, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "brackets.jsonl")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--here", action="store_true", help="with the timm that is installed")
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    options = parser.parse_args()
    if options.show:
        return print(brackets_table(read(options.out)))
    if not options.here:
        return run_with(VERSIONS, [__file__, "--out", str(options.out), "--workers", str(options.workers), "--here"])
    known = {(row["model"], row["layout"]) for row in read(options.out)} if options.out.exists() else set()
    missing = [row for row in published() if (row["model"], row["layout"]) not in known]
    random.Random(0).shuffle(missing)  # what is done first stands for all
    with ProcessPoolExecutor(options.workers, max_tasks_per_child=40) as pool, options.out.open("a") as stream:
        for done, row in enumerate(pool.map(placed, missing), 1):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(f"{done} of {len(missing)}: {row['model']} {row['layout']} {row.get('place', 'refused')}", file=sys.stderr, flush=True)
    rows = read(options.out)
    refused = [row for row in rows if "refused" in row]
    print(brackets_table(rows))
    print(f"refused: {len(refused)}", *sorted({row["model"] for row in refused}))


if __name__ == "__main__":
    main()
