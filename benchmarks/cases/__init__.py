# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: models, cases, and where the rows about them lie."""

import json
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

from bsmodel import Gpu
from bsmodel.hardware import KINDS, PLANNED, Source
from bsmodel.units import MiB

DATA = Path(__file__).parent.parent / "data"  # measured or published
RESULTS = Path(__file__).parent.parent / "results"  # computed from that


def simulated(gpu: Gpu) -> Gpu:
    """The card as the simulated device has it: a context of 500 MiB, and every workspace that cuDNN's planner wants."""
    source = Source(figures=("workspaces",), source="plans of cuDNN 9.19 without a device", checked=date(2026, 11, 1), kind="measured")
    card = gpu.leaving(context_bytes=500 * MiB)
    return card.model_copy(update={"workspaces": {kind: kind in PLANNED for kind in KINDS}, "sources": (*card.sources, source)})


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_missing(path: Path, models: Iterable[str], rows_of: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a file, with those of the models that it lacked, which are added as they come."""
    known = {row["model"] for row in (read(path) if path.exists() else [])}
    missing = [name for name in models if name not in known]
    for number, name in enumerate(missing, 1):
        print(f"{name}, {number} of {len(missing)}", file=sys.stderr)
        rows = rows_of(name)
        with path.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return read(path)
