# SPDX-License-Identifier: Apache-2.0
"""Hold the memory of one rank of several, and the largest batch that it trains, against the PyTorch CUDA allocator on a simulated device.

python benchmarks/ranks.py --out      # a table by kind, and every row to results/ranks.jsonl and results/ranks_largest.jsonl

data/ranks.jsonl has peaks after three steps on an A100 of 40 GB, data/ranks_largest.jsonl the largest batches on an RTX 3070 that train four; both of
rank 0, recorded with torch 2.11 and DeepSpeed 0.19. `late_...` are those of a device that lags behind, where that makes a difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers
from cases import DATA, RESULTS, read, simulated, write
from cases.errors import ranks_table

import bsmodel
from bsmodel import Training, Workload

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "vocab_size": 20011}),
    "llama": (
        "LlamaForCausalLM",
        {
            "model_type": "llama",
            **{"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4},
            **{"vocab_size": 32000, "max_position_embeddings": 2048},
        },
    ),
    "bert": (
        "BertForSequenceClassification",
        {"model_type": "bert", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "num_labels": 2},
    ),
    "vit": (
        "ViTForImageClassification",
        {"model_type": "vit", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "num_labels": 10},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"model_type": "resnet", "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [2, 2, 2, 2], "num_labels": 10},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "model_type": "t5",
            **{"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 4, "num_heads": 8},
            **{"vocab_size": 32128, "decoder_start_token_id": 0, "pad_token_id": 0},
        },
    ),
}


def workload(name: str) -> Workload:
    """A small model of each family, with texts of 256 tokens or pictures of 224 pixels a side."""
    architecture, fields = CONFIGS[name]

    def model() -> torch.nn.Module:
        config = {field: value for field, value in fields.items() if field != "model_type"}
        made: torch.nn.Module = getattr(transformers, architecture)(transformers.AutoConfig.for_model(fields["model_type"], **config))
        return made

    def batch(size: int) -> dict[str, torch.Tensor]:
        if name in ("vit", "resnet"):
            return {"pixel_values": torch.zeros(size, 3, 224, 224), "labels": torch.zeros(size, dtype=torch.long)}
        tokens = torch.zeros(size, 256, dtype=torch.long)
        if name == "bert":
            return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.zeros(size, dtype=torch.long)}
        return {"input_ids": tokens, "labels": tokens.clone()}

    def loss(model: Callable[..., Any], batch: dict[str, torch.Tensor]) -> Any:
        outputs = model(**batch)
        return outputs.loss, outputs

    return Workload(model, batch, loss, name=name)


def peaks() -> list[dict[str, Any]]:
    """Each row with its errors, and whether what is reserved lies in the interval."""
    gpu, found = bsmodel.Gpu.named("a100-40gb"), []
    for row in read(DATA / "ranks.jsonl"):
        tape = bsmodel.trace(workload(row["model"]), Training(**row["training"]), gpu)
        peak = bsmodel.predict(tape, simulated(gpu), row["batch"])
        errors = {name: getattr(peak, f"{name}_bytes") / row[name] - 1 for name in ("allocated", "reserved")}
        measured = [row[name] for name in ("reserved", "late_reserved") if name in row]
        inside = all(0.999 * peak.reserved_lower_bytes <= each <= 1.001 * peak.reserved_upper_bytes for each in measured)
        found.append({**row, "kind": row["training"]["parallel"]["kind"], "errors": errors, "inside": inside})
    return found


def largest() -> list[dict[str, Any]]:
    """Each row with the predicted largest batch, without room for NCCL, which the simulated device has not."""
    found = []
    for row in read(DATA / "ranks_largest.jsonl"):
        gpu = bsmodel.Gpu.named(row["gpu"])
        tape = bsmodel.trace(workload(row["model"]), Training(**row["training"]), gpu)
        alone = simulated(gpu.model_copy(update={"memory_bytes": gpu.memory_bytes + gpu.communicator.high_bytes}))
        survives = min(row[name] for name in ("largest", "late_largest") if name in row)
        found.append({**row, "kind": row["training"]["parallel"]["kind"], "predicted": bsmodel.fit(tape, alone).batch, "survives": survives})
    return found


def main() -> None:
    """Hold every row against its prediction, and write both tables' rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", action="store_true", help="write results/ranks.jsonl and results/ranks_largest.jsonl")
    options = parser.parse_args()
    found, batches = peaks(), largest()
    if options.out:
        write(RESULTS / "ranks.jsonl", found)
        write(RESULTS / "ranks_largest.jsonl", batches)
    print(ranks_table(found, batches), end="")


if __name__ == "__main__":
    main()
