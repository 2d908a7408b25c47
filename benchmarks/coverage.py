# SPDX-License-Identifier: Apache-2.0
"""Which models record: every type of transformers' tables with its default configuration shrunk, models of timm, and those of torchvision.

python benchmarks/coverage.py                       # some hours on two cores: results/coverage.jsonl, goes on where it stopped
python benchmarks/coverage.py --only CAUSAL_LM      # one table; --types bart,t5 for some of its types
python benchmarks/coverage.py --show                # the table of what is there, and every refusal

A model counts where it trains on a CPU in plain PyTorch, forward and backward of its own loss, on the batch that is recorded. torchvision, of which no build
goes with a torch without CUDA, is taken without its compiled operators.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cases import RESULTS, read
from cases.environments import has_vision, run_with_vision
from cases.library import declare_torchvision_operators
from cases.shrunk import shrunk

import bsmodel

TABLES = (
    *("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING"),
    *("IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "OBJECT_DETECTION"),
    *("AUDIO_CLASSIFICATION", "CTC", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT"),
)
LIBRARIES = {"timm": 200, "torchvision": None}  # how many of their models, drawn at random; None: all
WITHOUT_OPERATORS = ("rcnn",)  # of torchvision: boxes are sorted out by its compiled operators
PICTURES = ("OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION")  # whose configurations name no size of images
SIDE = 128
TRAINED_SECONDS, SECONDS = 20, 400  # in which a small configuration is found that trains, and in which it is recorded
MOST_PARAMETERS = 200_000_000
Row = dict[str, Any]


def wanted(tables: tuple[str, ...], types: str | None) -> list[tuple[str, str]]:
    """Tables and the types or models in them."""
    found = [pair for name in tables for pair in (_models(name, LIBRARIES[name]) if name in LIBRARIES else _types(name))]
    return [pair for pair in found if types is None or pair[1] in types.split(",")]


def _types(table: str) -> list[tuple[str, str]]:
    from transformers.models.auto import modeling_auto

    return [(table, name) for name in sorted(getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES"))]


def _models(library: str, count: int | None) -> list[tuple[str, str]]:
    if library == "timm":
        from timm import list_models
    else:
        from torchvision.models import list_models
    names = [name for name in list_models() if not any(word in name for word in WITHOUT_OPERATORS)]
    return [(library, name) for name in (names if count is None else sorted(random.Random(0).sample(names, count)))]


def outcome(pair: tuple[str, str]) -> Row:
    """What became of one model: "records"; "refused", with the reason; "untrained" where it does not train on the CPU either."""
    table, name = pair
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    try:
        return {"table": table, "type": name, **(_of_library(table, name) if table in LIBRARIES else _of_transformers(table, name))}
    except _TooLong:
        return {"table": table, "type": name, "outcome": "untrained", "reason": f"takes more than {TRAINED_SECONDS} s"}
    except Exception as error:  # some default configurations are refused by transformers itself
        return {"table": table, "type": name, "outcome": "untrained", "reason": _said(error)}
    finally:
        _within(0)


def _within(seconds: int) -> None:
    """Raises `_TooLong` after so many seconds, and again where that is swallowed; never for 0."""
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)


class _TooLong(BaseException):
    """What no code on the way takes for an error of its own."""


def _too_long(*_: Any) -> None:
    raise _TooLong


def _of_transformers(table: str, model_type: str) -> Row:
    reason = ""
    _within(TRAINED_SECONDS)
    for config, class_name in shrunk(table, model_type):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{model_type}.json"
            file.write_text(json.dumps({**config, "architectures": [class_name]}, default=str))
            try:
                workload = bsmodel.Workload.named(str(file), image_size=SIDE if table in PICTURES else None)
                _train(workload)
            except Exception as error:
                reason = reason or _said(error)
                continue
            return _recorded(workload)
    return {"outcome": "untrained", "reason": reason}


def _train(workload: bsmodel.Workload) -> None:
    """Forward and backward on the CPU; raises what they raise."""
    import torch
    import transformers

    config, class_name, *_ = workload.model.args  # type: ignore[attr-defined]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in getattr(transformers, class_name)(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters, more than a CPU trains in a moment")
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config).train()
    assert workload.loss is not None
    loss, _ = workload.loss(model, workload.batch(2))
    loss.backward()


def _recorded(workload: bsmodel.Workload) -> Row:
    """In bf16-mixed, or in fp32 where that is refused: some models do not train under autocast on a card either."""
    refused = ""
    for precision in ("bf16-mixed", "fp32"):
        _within(SECONDS)
        try:
            bsmodel.trace(workload, bsmodel.Training(precision=precision), bsmodel.Gpu.named("a100-40gb"))
            return {"outcome": "records", **({"only_in": precision, "reason": refused} if refused else {})}
        except bsmodel.BsmodelError as error:
            refused = refused or _said(error)
        except _TooLong:
            return {"outcome": "refused", "reason": f"takes more than {SECONDS} s"}
    return {"outcome": "refused", "reason": refused}


def _of_library(library: str, name: str) -> Row:
    return _recorded(bsmodel.Workload.named(f"{library}:{name}"))


def _said(error: BaseException) -> str:
    """What an error says in one line, without the folders of this machine."""
    return re.sub(r"[^\s']*(site-packages|/tmp[^/]*)/", "", (str(error).strip() or type(error).__name__).splitlines()[0])[:400]


def rows_of(pairs: list[tuple[str, str]], workers: int) -> Iterator[Row]:
    """What became of each, as it is known."""
    with get_context("spawn").Pool(workers, declare_torchvision_operators, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(outcome, pairs)


def main() -> None:
    """Try what the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage.jsonl")
    parser.add_argument("--only", choices=[*TABLES, *LIBRARIES], metavar="TABLE", help="one of the tables, timm or torchvision")
    parser.add_argument("--types", help="some of its types")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--show", action="store_true", help="print the table of what is there")
    options = parser.parse_args()
    if options.show:
        return print(table_of(read(options.out)))
    if not has_vision():
        return run_with_vision([__file__, *sys.argv[1:]])
    declare_torchvision_operators()
    tables = tuple(name for name in (*TABLES, *LIBRARIES) if options.only in (None, name))
    known = {(row["table"], row["type"]) for row in read(options.out)} if options.out.exists() else set()
    missing = [pair for pair in wanted(tables, options.types) if pair not in known]
    with options.out.open("a") as stream:
        for done, row in enumerate(rows_of(missing, options.workers), 1):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(f"{done} of {len(missing)}: {row['table']} {row['type']} {row['outcome']} {row.get('reason', '')}", file=sys.stderr, flush=True)
    print(table_of(read(options.out)))


def table_of(rows: list[Row]) -> str:
    """For each table how many train on a CPU and record, and every refusal."""
    lines = ["| task | types | train on a CPU | record | share |", "| --- | ---: | ---: | ---: | ---: |"]
    for table in (*TABLES, *LIBRARIES):
        found = [row for row in rows if row["table"] == table]
        if not found:
            continue
        trained = [row for row in found if row["outcome"] != "untrained"]
        recorded = sum(row["outcome"] == "records" for row in trained)
        lines.append(f"| {table.lower().replace('_', ' ')} | {len(found)} | {len(trained)} | {recorded} | {recorded / max(1, len(trained)):.1%} |")
    lines += ["", *(f"* {row['table'].lower()} {row['type']}: {row['reason']}" for row in rows if row["outcome"] == "refused")]
    lines += [f"* {row['table'].lower()} {row['type']} records in {row['only_in']} only: {row['reason']}" for row in rows if "only_in" in row]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
