# SPDX-License-Identifier: Apache-2.0
"""Hold the times of collectives against published ones, none of which the model was fitted to but those named as sources in hardware/nccl.toml.

python benchmarks/links.py            # rows of collectives.jsonl, by size and number of nodes; --all prints every sweep
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from cases import read

from bsmodel.hardware import Gpu, network_named
from bsmodel.timing import bus_share, group_of, seconds
from bsmodel.units import MiB

ROWS = Path(__file__).parent / "collectives.jsonl"
# Not what the model is of: reductions in the network's switches, rings where NCCL would use the NVLink switch, sources of its own figures,
# and networks that the sources do not tell.
LEFT_OUT = re.compile(r"-sharp-|-ring-|-old-|doc|stas-[bh]200-4-ar|v100-tcp")
SIZES = (0, MiB, 16 * MiB, 256 * MiB, 1 << 60)


def compared(row: dict[str, Any]) -> tuple[float, float, float, float]:
    """Measured and predicted seconds, likely, least and most."""
    gpu = Gpu.named(row["gpu"])
    if row["network"] is not None:
        gpu = gpu.model_copy(update={"network": network_named(row["network"])})
    group = group_of(row["devices"], 1, row["devices"] // row["nodes"])
    measured = row.get("seconds") or row["size_bytes"] * bus_share(row["kind"], row["devices"]) / row["bus_bytes_per_s"]
    likely, low, high = (float(seconds(row["kind"], row["size_bytes"], group, gpu, end)) for end in ("likely", "low", "high"))
    return measured, likely, low, high


def used() -> list[dict[str, Any]]:
    """The rows that count."""
    rows = [{"network": None, **row} for row in read(ROWS)]
    return [row for row in rows if not LEFT_OUT.search(row["id"]) and (row["nodes"] == 1 or row["network"] is not None)]


def errors() -> dict[str, list[float]]:
    """Of every row that counts, in one node and in several."""
    found: dict[str, list[float]] = {"one node": [], "several nodes": []}
    for row in used():
        measured, likely, *_ = compared(row)
        found["one node" if row["nodes"] == 1 else "several nodes"].append(measured / likely - 1)
    return found


def table() -> str:
    """By nodes and sizes: how many, errors of the bus bandwidth, and how many lie inside the interval."""
    groups: dict[tuple[str, int], list[tuple[float, bool]]] = defaultdict(list)
    for row in used():
        measured, likely, low, high = compared(row)
        size = next(number for number, limit in enumerate(SIZES[1:]) if row["size_bytes"] < limit)
        groups["one node" if row["nodes"] == 1 else "several nodes", size].append((abs(measured / likely - 1), low <= measured <= high))
    names = ("below 1 MiB", "1 to 16 MiB", "16 to 256 MiB", "256 MiB and more")
    lines = ["| devices in | size | points | median error | worst | inside the interval |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for (nodes, size), found in sorted(groups.items()):
        errors = sorted(error for error, _ in found)
        inside = sum(within for _, within in found)
        lines.append(f"| {nodes} | {names[size]} | {len(found)} | {statistics.median(errors):.1%} | {errors[-1]:.0%} | {inside} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or every sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    if not parser.parse_args().all:
        print(table(), end="")
        return
    sweeps: dict[str, list[str]] = defaultdict(list)
    for row in used():
        measured, likely, *_ = compared(row)
        sweeps[row["id"].rpartition("-")[0]].append(f"{row['size_bytes'] / MiB:.4g} MiB {likely / measured - 1:+.0%}")
    for name, errors in sweeps.items():
        print(f"{name}: {', '.join(errors)}")


if __name__ == "__main__":
    main()
