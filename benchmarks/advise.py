# SPDX-License-Identifier: Apache-2.0
"""Try the advice for ten models on the four default cards: the mildest recipe that is said to fit is recorded again, by itself, and replayed on its card.

python benchmarks/advise.py            # an hour on two cores: results/advise.jsonl, goes on where it stopped
python benchmarks/advise.py gpt2-xl    # some of the models
python benchmarks/advise.py --show     # what is there
"""

from __future__ import annotations

import argparse
from typing import Any

from cases import RESULTS, add_missing, read

import bsmodel
from bsmodel.hardware import defaults
from bsmodel.studies import Goal, advise
from bsmodel.workloads import Source

ROWS = RESULTS / "advise.jsonl"
TARGET_BATCH = 64
MODELS = ("gpt2-xl", "llama-3.2-1b", "llama-3-8b", "qwen3-4b", "gemma-2-2b", "phi-3.5-mini", "whisper-large-v3", "t5-3b", "vit-l-16", "sdxl-unet")
Row = dict[str, Any]


def tried(name: str) -> list[Row]:
    """For each card the mildest recipe that fits, its micro-batch, and whether that trains by a recording of its own; or that none fits."""
    source, cards = Source.of(name), defaults()
    advice = advise(source, {}, cards, Goal(target_batch=TARGET_BATCH), caching=False)
    rows: list[Row] = []
    for card in cards:
        mildest = next((each for each in advice if each.row.gpu == card.id and each.row.fits), None)
        row = {"model": name, "gpu": card.id, "recipes": sum(each.row.gpu == card.id for each in advice)}
        rows.append({**row, "change": None} if mildest is None else {**row, **_again(name, card, mildest.change, mildest.row.micro_batch)})
    return rows


def _again(name: str, card: bsmodel.Gpu, change: dict[str, Any], batch: int | None) -> Row:
    """A recipe by a recording of its own, on one card."""
    recipe = {field: value for field, value in change.items() if field != "seq_len"}
    options = {"seq_len": change["seq_len"]} if "seq_len" in change else {}
    workload = Source.of(name, **options).workload()
    tape = bsmodel.trace(workload, bsmodel.Training(**{**dict(workload.training), **recipe}), card)
    assert batch is not None, "what fits has a micro-batch"
    return {"change": change, "micro_batch": batch, "trains": bsmodel.predict(tape, card, batch).fits}


def show(rows: list[Row]) -> None:
    """How many of the answers train, and what each is."""
    named = [row for row in rows if row["change"] is not None]
    models = len({row["model"] for row in rows})
    print(f"{models} models on {len({row['gpu'] for row in rows})} cards: {len(named)} recipes are named, {sum(row['trains'] for row in named)} of them train")
    for row in rows:
        change = "nothing fits" if row["change"] is None else ", ".join(f"{name} {value}" for name, value in row["change"].items()) or "as asked"
        wrong = "" if row["change"] is None or row["trains"] else ": does not train"
        print(f"{row['model']:18} {row['gpu']:14} {change}{wrong}")


def main(arguments: argparse.Namespace) -> None:
    show(read(ROWS) if arguments.show else add_missing(ROWS, arguments.models or MODELS, tried))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME")
    parser.add_argument("--show", action="store_true")
    main(parser.parse_args())
