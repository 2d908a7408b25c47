# SPDX-License-Identifier: Apache-2.0
"""Hold predicted step times of several devices against published throughput, and print the errors, worst first.

python benchmarks/devices.py --out benchmarks/results/devices.jsonl    # rows of multi_gpu.jsonl whose recipe is known, one device too
python benchmarks/devices.py --only mpt-7b                             # rows whose id has this
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import read, write
from cases.own import hf

import bsmodel
from bsmodel import Parallel, Training, Workload
from bsmodel.errors import BsmodelError
from bsmodel.hardware import Gpu, network_named
from bsmodel.parallel import KINDS
from bsmodel.timing import StepTime, step_time
from bsmodel.workloads import LARGE_ENCODER, NAMED

# Trained with kernels of their own (apex's layer norm, GELU and dropout in one), which are not those of the model that is recorded.
_OWN_KERNELS = ("dle-bert",)
_OF_MANY = ("mpt-", "-s2048-")  # rows at many lengths, of which one is held against: a recording for each number of devices takes a while
ROWS = Path(__file__).parent / "multi_gpu.jsonl"
_AS = {"adam-fused": "adamw-fused"}  # the same kernel but for the decay
_SHARDED = ("param_dtype", "reduce_dtype")
_ENCODERS: dict[str, dict[str, Any]] = {"bert-base": {}, "bert-large": LARGE_ENCODER}


def is_known(row: dict[str, Any]) -> bool:
    """Whether all of the recipe is one that is predicted: not compiled, checkpointed whole or not at all, of a model that needs no further library."""
    modelled = row["model"] in _ENCODERS or row["model"] in NAMED or "config" in row
    kind = row["kind"] in ("single", *KINDS) and not row["id"].startswith(_OWN_KERNELS)
    chosen = not row["id"].startswith(_OF_MANY[0]) or _OF_MANY[1] in row["id"]
    return bool(row["complete"] and modelled and kind and chosen and not row["compile"] and row["checkpointing"] in (True, False) and not row.get("float8"))


def workload(row: dict[str, Any]) -> Workload:
    """The model of a row, at its length."""
    attention = "eager" if row.get("attention") == "eager" else None
    if row["model"] in _ENCODERS:
        head = "AutoModelForSequenceClassification" if row["seq_len"] == 384 else "AutoModelForMaskedLM"  # a head as small as that for spans
        return hf("bert", head, row["seq_len"], attention, **_ENCODERS[row["model"]])
    if "config" in row:
        fields = dict(row["config"])
        return replace(hf(fields.pop("model_type"), "AutoModelForCausalLM", row["seq_len"], attention, **fields), name=row["model"])
    options = {"image_size": row["image_size"]} if "image_size" in row else {"seq_len": row["seq_len"], **({"attention": attention} if attention else {})}
    return Workload.named(row["model"], **options)


def training(row: dict[str, Any]) -> Training:
    """The recipe of a row; a library's own mixed precision is of what would be float32."""
    given: dict[str, Any] = {"precision": row["precision"], "checkpointing": row["checkpointing"]}
    given["optimizer"] = _AS.get(row["optimizer"], row["optimizer"])
    if row.get("channels_last"):
        given["channels_last"] = True
    if row.get("clip_norm"):
        given["gradient_clipping"] = row["clip_norm"]
    if row["kind"] not in ("single", "ddp"):
        shared = {name: row[name] for name in _SHARDED if row.get(name)}
        if shared.get("param_dtype") and not row.get("autocast", True):
            given["precision"] = "fp32"
        reshard = {"reshard_after_forward": False} if row.get("sharding_strategy") == "SHARD_GRAD_OP" else {}
        given["parallel"] = Parallel(kind=row["kind"], devices=row["devices"], nodes=row["nodes"], **shared, **reshard)
    return Training(**given)


def predicted(row: dict[str, Any], tapes: dict[Any, Any]) -> StepTime[int, float]:
    """The step of a row, recorded once for all that differ in batch or card."""
    gpu, recipe = Gpu.named(row["gpu"]), training(row)
    if row["network"] is not None:
        gpu = gpu.model_copy(update={"network": network_named(row["network"])})
    shared = (row["model"], row.get("seq_len"), row.get("attention"), repr(recipe), gpu.kernel_family)
    if shared not in tapes:
        tapes[shared] = bsmodel.trace(workload(row), recipe, gpu)
    return step_time(bsmodel.memory.on_devices(tapes[shared], row["devices"]), gpu, row["micro_batch"], row["accumulation"])


def published_seconds(row: dict[str, Any]) -> float:
    """Seconds of an optimizer step, from the throughput of all devices or of one."""
    samples = row["micro_batch"] * row["accumulation"]
    if "tokens_per_s_per_gpu" in row:
        return float(samples * row["seq_len"] / row["tokens_per_s_per_gpu"])
    return float(samples * row["devices"] / row["samples_per_s"])


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its prediction and error, worst first."""
    found: list[dict[str, Any]] = []
    tapes: dict[Any, Any] = {}
    for row in rows:
        try:
            step = predicted(row, tapes)
        except BsmodelError as error:
            print(f"{row['id']}: {error}", file=sys.stderr, flush=True)
            continue
        seconds = published_seconds(row)
        figures = {"seconds": seconds, "predicted_seconds": step.seconds, "error": step.seconds / seconds - 1, "inside": step.low_seconds <= seconds}
        inside = bool(figures["inside"] and seconds <= step.high_seconds)
        found.append({**row, **figures, "inside": inside, "waiting": step.exposed_seconds / step.seconds, "bound": step.bound})
        print(f"{figures['error']:+7.1%} waits {step.exposed_seconds / step.seconds:4.0%} {step.bound:7} {row['id']}", file=sys.stderr, flush=True)
    return sorted(found, key=lambda row: -abs(row["error"]))


def summary(found: list[dict[str, Any]]) -> str:
    """Errors of several devices and of one."""
    lines = []
    for name, rows in (("several devices", [row for row in found if row["devices"] > 1]), ("one device", [row for row in found if row["devices"] == 1])):
        errors = sorted(abs(row["error"]) for row in rows)
        if errors:
            inside = sum(row["inside"] for row in rows)
            lines.append(f"{name}: {len(errors)} rows, median {statistics.median(errors):.1%}, worst {errors[-1]:.1%}, {inside} inside the interval")
    return "\n".join(lines)


def main() -> None:
    """Compare every row, and write the errors where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    found = compared([row for row in read(ROWS) if is_known(row) and options.only in row["id"]])
    print(summary(found))
    if options.out:
        write(options.out, found)


if __name__ == "__main__":
    main()
