# SPDX-License-Identifier: Apache-2.0
"""Hold predicted step times against figures that others published, and print the errors, worst first.

python benchmarks/published.py --out benchmarks/results/published_errors.jsonl    # rows of data/published.jsonl, each with its source

Rows of `timm:NAME` and `torchvision:NAME` need those libraries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import DATA, read, write
from cases.environments import has_vision, run_with_vision
from cases.library import declare_torchvision_operators
from cases.own import OWN, hf

import bsmodel
from bsmodel import Training, Workload
from bsmodel.timing import StepTime, step_time
from bsmodel.workloads import LARGE_ENCODER, vision


def _resnet(**fields: Any) -> Callable[..., Workload]:
    return lambda image_size=224, **options: vision("resnet", image_size, Training(), **fields, **options)


def _of(model_type: str, **fields: Any) -> Callable[..., Workload]:
    return lambda image_size=224, **options: vision(model_type, image_size, Training(), image_size=image_size, **fields, **options)


def _causal(model_type: str, **fields: Any) -> Callable[..., Workload]:
    return lambda seq_len, **options: hf(model_type, "AutoModelForCausalLM", seq_len, **fields, **options)


def _sum_of_logits(model: Any, batch: Any) -> Any:
    return model(input_ids=batch["input_ids"]).logits.sum()


_GPT3 = {"n_positions": 2048, "n_ctx": 2048}
MODELS: dict[str, Callable[..., Workload]] = {
    **OWN,
    "resnet18": _resnet(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]),
    "resnet34": _resnet(layer_type="basic", depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 256, 512]),
    "resnet101": _resnet(depths=[3, 4, 23, 3]),
    "resnet152": _resnet(depths=[3, 8, 36, 3]),
    "vit-b-32": _of("vit", patch_size=32),
    "vit-s-16": _of("vit", hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    "deit-tiny": _of("vit", hidden_size=192, num_attention_heads=3, intermediate_size=768),
    "deit-base": _of("vit"),
    "swin-tiny": _of("swin"),
    "swin-base": _of("swin", embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),
    "convnext-tiny": _of("convnext"),
    "convnext-base": _of("convnext", depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024]),
    "convnext-large": _of("convnext", depths=[3, 3, 27, 3], hidden_sizes=[192, 384, 768, 1536]),
    "regnetx-032": _of("regnet", layer_type="x", embedding_size=32, hidden_sizes=[96, 192, 432, 1008], depths=[2, 6, 15, 2], groups_width=48),
    "mobilenetv2": _of("mobilenet_v2"),
    "bert-base-classifier": lambda seq_len, **options: hf("bert", "AutoModelForSequenceClassification", seq_len, **options),
    "bert-large-classifier": lambda seq_len, **options: hf("bert", "AutoModelForSequenceClassification", seq_len, **LARGE_ENCODER, **options),
    "bert-base-logits": lambda seq_len, **options: replace(hf("bert", "AutoModelForMaskedLM", seq_len, **options), loss=_sum_of_logits),
    "opt-350m-logits": lambda seq_len, **options: replace(OWN["opt-350m"](seq_len, **options), loss=_sum_of_logits),
    "gpt2-large": _causal("gpt2", n_embd=1280, n_layer=36, n_head=20),
    "gpt3-xl": _causal("gpt2", n_embd=3072, n_layer=24, n_head=24, **_GPT3),
    "gpt3-2.7b": _causal("gpt2", n_embd=2560, n_layer=32, n_head=32, **_GPT3),
    "opt-1.3b": _causal("opt", hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192, word_embed_proj_dim=2048),
}


def workload(row: dict[str, Any]) -> Workload:
    """The workload of a published row."""
    name, options = row["model"], row.get("options", {})
    return replace(MODELS[name](**options), name=name) if name in MODELS else Workload.named(name, **options)


def predicted(row: dict[str, Any], tapes: dict[Any, Any]) -> tuple[float, StepTime]:
    """Seconds of what a row's figure timed, and the whole step."""
    gpu = bsmodel.Gpu.named(row["gpu"])
    training = Training(precision=row["precision"], optimizer=row["optimizer"], channels_last=row["channels_last"], **row.get("recipe", {}))
    shared = (row["model"], repr(row.get("options")), repr(training), gpu.kernel_family)
    if shared not in tapes:
        tapes[shared] = bsmodel.trace(workload(row), training, gpu)
    step = step_time(tapes[shared], gpu, row["batch"])
    if row["scope"] == "step":
        return float(step.seconds), step
    return float(max(step.seconds - step.phases["step"], step.host_seconds)), step


def published_seconds(row: dict[str, Any]) -> float:
    """Seconds of a step from a figure in ms, or in samples or tokens per second."""
    if row["unit"] == "ms":
        return float(row["figure"]) / 1e3
    tokens = row["options"]["seq_len"] if row["unit"] == "tokens/s" else 1
    return float(row["batch"] * row.get("recipe", {}).get("accumulation", 1) * tokens / row["figure"])


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its prediction and error, worst first."""
    found, tapes = [], {}
    if any(":" in row["model"] for row in rows):
        declare_torchvision_operators()
    for row in rows:
        seconds, step = predicted(row, tapes)
        error = seconds / published_seconds(row) - 1
        found.append({**row, "seconds": published_seconds(row), "predicted_seconds": seconds, "error": error})
        bound = "host" if step.host_seconds >= step.device_seconds else "device"
        print(f"{error:+7.1%} {bound}  {row['model']} {row['gpu']} b={row['batch']} {row['precision']} cl={row['channels_last']}", file=sys.stderr, flush=True)
    return sorted(found, key=lambda row: -abs(row["error"]))


def main() -> None:
    """Compare every row, and write the errors where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=DATA / "published.jsonl")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="rows that contain this")
    options = parser.parse_args()
    rows = [row for row in read(options.rows) if options.only in json.dumps(row)]
    if any(":" in row["model"] for row in rows) and not has_vision():
        return run_with_vision([__file__, *sys.argv[1:]])
    found = compared(rows)
    errors = sorted(abs(row["error"]) for row in found)
    print(f"{len(found)} figures: median {statistics.median(errors):.1%}, mean {statistics.mean(errors):.1%}, worst {errors[-1]:.1%}")
    if options.out:
        write(options.out, found)


if __name__ == "__main__":
    main()
