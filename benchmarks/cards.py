# SPDX-License-Identifier: Apache-2.0
"""Hold predictions against memory that others measured on physical cards, and print the errors.

python benchmarks/cards.py                 # predict the rows of cards.jsonl with the libraries that are installed
python benchmarks/cards.py --as-measured   # and those of other versions with these, put into folders of their own by pip
python benchmarks/cards.py --show          # what the file says, nothing predicted
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import DATA, read, write
from cases.adapters import after_emptying
from cases.environments import has_vision, run_with, run_with_vision
from cases.errors import summary
from cases.library import parts
from cases.scripts import SCRIPTS

import bsmodel
from bsmodel.hardware import SEARCH_PATH_VARIABLE, Context, runtime
from bsmodel.memory import data_parallel

CARDS = Path(__file__).parent / "cards.jsonl"
METRICS = {"allocated": "allocated", "reserved": "reserved", "process": "reserved", "device": "device"}  # `process`: on top of a bare context
Row = dict[str, Any]
os.environ.setdefault(SEARCH_PATH_VARIABLE, str(DATA / "cards"))  # cards that the catalogue does not have: nobody rents them


def gpu_of(row: Row) -> bsmodel.Gpu:
    """The card of a row with the memory that its source prints, and with all kernels loaded where its CUDA does that."""
    gpu = bsmodel.Gpu.named(row["card"])
    if row.get("total_bytes"):
        gpu = gpu.model_copy(update={"memory_bytes": row["total_bytes"]})
    return gpu if row.get("loading") != "eager" else gpu.leaving(context_bytes=_context(row, gpu).usual_bytes)


def _context(row: Row, gpu: bsmodel.Gpu) -> Context:
    return runtime().context(gpu.sm_count, gpu.compute_capability, row.get("loading", "lazy"))


def _recording(row: Row) -> str:
    """What rows must have in common to share a recording."""
    family = bsmodel.Gpu.named(row["card"]).kernel_family
    return json.dumps([row[name] for name in ("model", "options", "script", "recipe")] + [row.get("data_parallel", False), family], sort_keys=True)


def predicted(row: Row, tape: bsmodel.Tape) -> Row:
    """What the library says of a row: bytes and their interval, and whether the batch fits; for a bracket the largest batches."""
    gpu = gpu_of(row)
    if row["metric"] == "bracket":
        fit = bsmodel.fit(tape, gpu)
        return {"likely": fit.likely_batch, "safe": fit.batch}
    peak, metric = bsmodel.predict(tape, gpu, row["batch"]), METRICS[row["metric"]]
    found = {"bytes": getattr(peak, f"{metric}_bytes"), "fits": peak.fits, "likely_fits": peak.likely_fits}
    if row.get("emptied"):
        return {**found, "bytes": after_emptying(tape, gpu, row["batch"])}
    if metric == "allocated":
        return found
    low, high, context = peak.reserved_lower_bytes, peak.reserved_upper_bytes, _context(row, gpu)
    if row["metric"] == "device":
        low, high = low + context.low_bytes, high + context.high_bytes
    if row["metric"] == "process":  # kernels that are loaded after the first look at the process
        high += context.high_bytes - context.low_bytes
    return {**found, "low": low, "high": high}


def _answers(rows: Sequence[Row]) -> list[Row]:
    """The predictions for rows that share a recording; a refusal is one, too."""
    first = rows[0]
    try:
        workload = replace(SCRIPTS[first["script"]](parts(first["model"], **first["options"])), name=first["model"])
        training = bsmodel.Training(**first["recipe"])
        tape = bsmodel.trace(workload, training, bsmodel.Gpu.named(first["card"]))
        tape = data_parallel(tape) if first.get("data_parallel") else tape
        return [predicted(row, tape) for row in rows]
    except bsmodel.BsmodelError as error:
        return [{"refused": str(error).splitlines()[0]}] * len(rows)


def libraries(row: Row) -> list[str]:
    """The libraries that the model of a row comes from."""
    kinds = {
        "hub": "transformers",
        "peft": "transformers",
        "image": "transformers",
        "torchvision": "torchvision",
        "timm": "timm",
        "flux": "diffusers",
        "litgpt": "litgpt",
    }
    kind, _, name = row["model"].partition(":")
    adapted = kind in ("lora", "qlora") or row["options"].get("config") or row["recipe"].get("lora_rank") or (kind == "flux" and row["options"].get("rank"))
    return [name for name in (kinds.get(name.partition(":")[0] if kind in ("lora", "qlora") else kind), "peft" if adapted else None) if name]


def versions(row: Row) -> dict[str, str]:
    """The versions of these libraries here."""
    here = {distribution.name: distribution.version for distribution in reversed(list(importlib.metadata.distributions()))}
    return {name: here[name] for name in libraries(row) if name in here}


def predict_all(rows: Sequence[Row], label: str, workers: int) -> None:
    """Write what is predicted into the rows, under `label`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_recording(row), []).append(row)
    with ProcessPoolExecutor(workers) as pool:
        for done, (group, answers) in enumerate(zip(groups.values(), pool.map(_answers, groups.values()), strict=True), 1):
            for row, answer in zip(group, answers, strict=True):
                row.setdefault("predicted", {})[label] = {"versions": versions(row), **answer}
            print(f"{done} of {len(groups)} recordings: {group[0]['id']}", file=sys.stderr, flush=True)


# -- the versions that were measured -----------------------------------------------------------------------------------------------------


def _wanted(row: Row) -> tuple[str, ...]:
    """Requirements for the versions that were measured, where they are known and not what is installed; `stand_in` names others that still install.

    peft goes as it is here: an old one does not work beside today's accelerate.
    """
    here, measured = versions(row), {name: row["versions"][name] for name in libraries(row) if name in row["versions"] and name != "peft"}
    return tuple(sorted(f"{name}=={version}" for name, version in {**measured, **row.get("stand_in", {})}.items() if here.get(name) != version))


def as_measured(rows: Sequence[Row], workers: int) -> None:
    """Predict rows in processes that find the measured versions first on their path."""
    groups: dict[tuple[str, ...], list[Row]] = collections.defaultdict(list)
    for row in rows:
        if wanted := _wanted(row):
            groups[wanted].append(row)
    for wanted, group in groups.items():
        with tempfile.TemporaryDirectory() as scratch:
            part = Path(scratch) / "rows.jsonl"
            write(part, group)
            run_with(wanted, [__file__, "--rows", str(part), "--label", "as measured", "--workers", str(workers)])
            for row, found in zip(group, read(part), strict=True):
                row["predicted"] = found["predicted"]


def main() -> None:
    """Predict, write the rows again, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=CARDS)
    parser.add_argument("--only", default="", help="rows whose id contains this")
    parser.add_argument("--label", default="today", help="the name that predictions are written under")
    parser.add_argument("--as-measured", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if not options.show and not has_vision():
        return run_with_vision([__file__, *sys.argv[1:]])
    rows = read(options.rows)
    chosen: Iterable[Row] = [row for row in rows if options.only in row["id"]]
    if options.as_measured:
        as_measured(list(chosen), options.workers)
    elif not options.show:
        predict_all(list(chosen), options.label, options.workers)
    if not options.show:
        write(options.rows, rows)
    print(summary(list(chosen)))


if __name__ == "__main__":
    main()
