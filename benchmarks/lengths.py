# SPDX-License-Identifier: Apache-2.0
"""Hold every length against a recording of its own: each named model that reads tokens, at four lengths beyond those that its polynomials are of.

python benchmarks/lengths.py                  # an hour or two on two cores: results/lengths.jsonl, goes on where it stopped
python benchmarks/lengths.py gpt2 bert-base   # some of them
python benchmarks/lengths.py --show           # what is there
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
from cases import RESULTS, add_missing, read

import bsmodel
from bsmodel.workloads import NAMED, Source

ROWS = RESULTS / "lengths.jsonl"
SHORTEST, LONGEST = 128, 8192
GPU = "a100-40gb"
Row = dict[str, Any]


def outcome(name: str) -> Row:
    """Where a model's lengths end, in how many pieces, and at which of four lengths the told tape is the recorded one; or why there are none."""
    start = time.monotonic()
    try:
        lengths = bsmodel.trace_lengths(partial(_workload, name), None, bsmodel.Gpu.named(GPU), SHORTEST, LONGEST)
    except bsmodel.BsmodelError as error:
        return {"model": name, "refused": str(error).splitlines()[0]}
    told = time.monotonic() - start
    pieces = [[piece.lengths[0], piece.most] for piece in lengths.pieces]
    equal = {length: _equal(name, lengths.at(length), length) for length in beyond(lengths)}
    return {"model": name, "pieces": pieces, "ends": lengths.ends, "equal": equal, "seconds": round(told, 1)}


def _workload(name: str, tokens: int) -> bsmodel.Workload:
    return Source.of(name, seq_len=tokens).workload()


def beyond(lengths: Any) -> list[int]:
    """Four lengths that were not recorded, from the shortest such to the longest; fewer where there are no more."""
    known = {length for piece in lengths.pieces for length in (*piece.lengths, piece.most)}
    others = [length for length in lengths.known if length not in known]
    return [others[index] for index in sorted({0, len(others) // 3, 2 * len(others) // 3, len(others) - 1})] if others else []


def _equal(name: str, told: Any, length: int) -> bool:
    """Whether every size of a tape and of its upper end is that of a recording at this length."""
    workload = _workload(name, length)
    return _same(told, bsmodel.trace(workload, workload.training, bsmodel.Gpu.named(GPU)))


def _same(told: Any, direct: Any) -> bool:
    from bsmodel.recording.checks import same_memory

    work = all(np.array_equal(getattr(told.operations, part), getattr(direct.operations, part)) for part in ("fixed", "per_sample", "per_pair"))
    worst = told.worst is direct.worst is None or _same(told.worst, direct.worst)
    return work and worst and same_memory(told, direct)


def show(rows: list[Row]) -> None:
    """How many models at how many lengths, and every one that differs, ends early or is refused."""
    told = [row for row in rows if row.get("equal")]
    points = [equal for row in told for equal in row["equal"].values()]
    print(f"{len(told)} models, {len(points)} lengths that were not recorded: {sum(points)} to the byte")
    for row in rows:
        if "refused" in row:
            print(f"{row['model']}: {row['refused']}")
        elif (row["ends"] and "positions" not in row["ends"]) or not all(row["equal"].values()):
            print(f"{row['model']}: {row['pieces']} {row['ends']} {row['equal']}")


def main(arguments: argparse.Namespace) -> None:
    show(read(ROWS) if arguments.show else add_missing(ROWS, arguments.models or NAMED, lambda name: [outcome(name)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME")
    parser.add_argument("--show", action="store_true")
    main(parser.parse_args())
