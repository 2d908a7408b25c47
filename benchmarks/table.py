# SPDX-License-Identifier: Apache-2.0
"""Write the tables of benchmarks/README.md, made from the rows in results/, and of hardware/README.md and docs/capacity.md, made from schemas.

python benchmarks/table.py            # rewrites what stands between the markers
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cases import RESULTS, read
from cases.errors import brackets_line, brackets_table, causes_table, devices_table, error, peaks_table, ranks_table, rivals_table
from links import errors as link_errors
from links import table as links_table
from pydantic import BaseModel

from bsmodel.command.study import StudyFile
from bsmodel.hardware import Communicator, Gpu, Kernels, Network, Runtime, Source, WorkspaceRule
from bsmodel.validation import rows as validated
from bsmodel.validation import summary
from bsmodel.validation.rivals import RIVALS

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "benchmarks" / "cards.jsonl"
_CONVOLUTIONAL = ("resnet50", "vgg16", "depthwise", "densenet121", "convnext-tiny", "segmenter", "mobilevit", "efficientnet-b7", "unet-3d", "vae-like")
_SHOWN = 14
SIMULATED = "the allocator on a simulated device"


def _summary(label: str, rows: list[dict[str, Any]]) -> str:
    cells = []
    for figure in ("allocated", "reserved"):
        errors = sorted(abs(row["error"][figure]) for row in rows)
        cells.append(f"{statistics.median(errors):.2%} | {errors[round(0.95 * (len(errors) - 1))]:.2%} | {errors[-1]:.2%}")
    return f"| {label} | {len(rows)} | {' | '.join(cells)} |"


def _form(label: str, name: str, rows: list[dict[str, Any]]) -> str:
    errors = sorted(abs(row["predicted"][name] / row["measured"]["allocated"] - 1) for row in rows)
    return f"| {label} | {statistics.median(errors):.2%} | {errors[round(0.95 * (len(errors) - 1))]:.2%} | {errors[-1]:.2%} |"


def headline() -> str:
    """The worst error beside the median of what is predicted, on physical cards and on the simulated device; README.md has it too."""
    rows, largest, timed, ranks, steps = (read(RESULTS / f"{name}.jsonl") for name in ("errors", "largest", "published_errors", "ranks", "devices"))
    cards = read(CARDS)
    families = {"convolutional networks": ("cnn",), "transformers": tuple({row["family"] for row in cards} - {"cnn"})}
    lines = ["| predicted | held against | n | median error | worst | by |", "| --- | --- | ---: | ---: | ---: | --- |"]

    def add(what: str, against: str, found: Iterable[float | None], script: str) -> None:
        sizes = sorted(abs(value) for value in found if value is not None)
        lines.append(f"| {what} | {against} | {len(sizes):,} | {statistics.median(sizes):.1%} | {sizes[-1]:,.1%} | `{script}` |")

    for name, members in families.items():
        known = [row for row in cards if row["family"] in members and error(row) is not None]
        add(f"peak, {name}", f"{len({row['card'] for row in known})} kinds of physical card", map(error, known), "cards.py")
    lines.append(brackets_line(read(RESULTS / "brackets.jsonl")))
    for figure in ("allocated", "reserved"):
        add(f"{figure} bytes", SIMULATED, (row["error"][figure] for row in rows), "compare.py")
    add("largest batch", "the same", (row["predicted"] / row["measured"] - 1 for row in largest), "largest.py")
    for figure in ("allocated", "reserved"):
        add(f"{figure} bytes of a rank of several", SIMULATED, (row["errors"][figure] for row in ranks), "ranks.py")
    add("step time", f"{len({row['gpu'] for row in timed})} kinds of physical card", (row["error"] for row in timed), "published.py")
    several = [row for row in steps if row["devices"] > 1]
    add("step time of several devices", f"{len({row['gpu'] for row in several})} kinds of physical card", (row["error"] for row in several), "devices.py")
    for where, found in link_errors().items():
        add(f"one collective, {where}", "published times", found, "links.py")
    return "\n".join(lines) + "\n"


def cards() -> str:
    """Peaks and brackets on physical cards, what other estimators said of the same rows, and what explains the large residuals."""
    rows, placed = read(CARDS), read(RESULTS / "brackets.jsonl")
    return "\n".join((peaks_table(rows), brackets_table(placed), rivals_table(rows), causes_table(rows)))


def tables() -> str:
    """Summary, the worst cases, and the largest batches, in Markdown."""
    rows, largest = read(RESULTS / "errors.jsonl"), read(RESULTS / "largest.jsonl")
    convolutional = [row for row in rows if row["case"].split()[0] in _CONVOLUTIONAL]
    other = [row for row in rows if row not in convolutional]
    lines = ["| cases | n | allocated: median | 95 % | worst | reserved: median | 95 % | worst |", "| --- " * 8 + "|"]
    lines += [_summary("all", rows), _summary("convolutional", convolutional), _summary("all others", other), ""]
    lines += ["| closed form against measured allocated | median | 95 % | worst |", "| --- | ---: | ---: | ---: |"]
    lines += [_form("traced, `M(b) = max_t (f_t + s_t b)`", "requested", rows), _form("counted, `M(b) = states + b activation_bytes`", "counted", rows), ""]
    lines += ["| worst cases first | allocated | reserved |", "| --- | ---: | ---: |"]
    worst = sorted(rows, key=lambda row: -max(abs(row["error"]["allocated"]), abs(row["error"]["reserved"])))
    lines += [f"| {row['case']} | {row['error']['allocated']:+.2%} | {row['error']['reserved']:+.2%} |" for row in worst[:_SHOWN]]
    lines += ["", "| largest batch | predicted | survives | of it |", "| --- | ---: | ---: | ---: |"]
    for row in sorted(largest, key=lambda row: -abs(row["predicted"] / row["measured"] - 1)):
        lines.append(f"| {row['case'].replace(' b=0', '')} | {row['predicted']} | {row['measured']} | {row['predicted'] / row['measured']:.1%} |")
    return "\n".join(lines) + "\n"


def estimators() -> str:
    """What other estimators come to on recorded cases, in Markdown."""
    lines = ["| estimator | what it adds up | answers | error: median | worst | its batch runs | of the largest |", "| --- | --- " + "| ---: " * 5 + "|"]
    for name, *cells, _idle in summary.estimator_rows(validated.read(RESULTS / "rivals.jsonl")):
        rival = RIVALS.get(name)
        label = f"[{name}]({rival.source})" if rival and rival.source.startswith("http") else name
        lines.append(f"| {label} | {rival.what if rival else 'the recorded step'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _recipe(row: dict[str, Any]) -> str:
    words = [f"b={row['batch']}", row["precision"], *(f"{name.replace('_', '-')} {value}" for name, value in row["options"].items())]
    words += [row["optimizer"]] if row["scope"] == "step" else ["no optimizer"]
    words += ["channels-last"] if row["channels_last"] else []
    return ", ".join([*words, *(f"{name.replace('_', '-')} {value}" for name, value in row["recipe"].items())])


def _figures(label: str, rows: list[dict[str, Any]]) -> str:
    errors = sorted(abs(row["error"]) for row in rows)
    return f"| {label} | {len(rows)} | {len({row['gpu'] for row in rows})} | {statistics.median(errors):.1%} | {errors[-1]:.1%} |"


def times() -> str:
    """Predicted step times against published ones, in Markdown: a summary, then the worst row of each model and precision, worst first."""
    rows = read(RESULTS / "published_errors.jsonl")
    families = {
        "convolutional": lambda row: row["model"].startswith(("resnet", "vgg", "densenet", "convnext", "mobilenet", "regnet", "timm:", "torchvision:")),
        "of them grouped": lambda row: "regnet" in row["model"] or "resnext" in row["model"],
        "of them depthwise": lambda row: any(name in row["model"] for name in ("convnext", "convmixer", "mobilenet", "mnasnet", "efficientnet")),
        "of them contiguous half precision on a T4": lambda row: row["gpu"] == "t4-16gb" and row["precision"] == "fp16",
        "vision transformers": lambda row: row["model"].startswith(("vit", "deit", "swin")),
        "BERT, GPT, OPT": lambda row: row["model"].startswith(("bert", "gpt", "opt")),
        "diffusion": lambda row: row["model"].startswith("dit"),
        "fp32 and tf32": lambda row: row["precision"] in ("fp32", "tf32"),
        "half and mixed precision": lambda row: row["precision"] not in ("fp32", "tf32"),
    }
    lines = ["| published figures | n | GPUs | error: median | worst |", "| --- " + "| ---: " * 4 + "|", _figures("all", rows)]
    lines += [_figures(label, list(filter(belongs, rows))) for label, belongs in families.items()]
    lines += ["", "| model | GPU | recipe | published | predicted | error | source |", "| --- | --- | --- | ---: | ---: | ---: | --- |"]
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -abs(row["error"])):
        worst.setdefault((row["model"], row["precision"]), row)
    for row in worst.values():
        published, predicted = (f"{1e3 * row[name]:,.0f} ms" for name in ("seconds", "predicted_seconds"))
        source = row["source"].partition(" @")[0].partition("; ")[0]
        lines.append(f"| {row['model']} | {row['gpu']} | {_recipe(row)} | {published} | {predicted} | {row['error']:+.1%} | {source} |")
    return "\n".join(lines) + "\n"


def fields(row: type[BaseModel]) -> str:
    """What a row of this kind may have, from its schema, in Markdown."""
    schema = row.model_json_schema()
    lines = ["| name | meaning | required |", "| --- | --- | --- |"]
    for name, field in schema["properties"].items():
        lines.append(f"| `{name}` | {_unit(name, field)}: {field['description']} | {'yes' if name in schema.get('required', ()) else ''} |")
    return "\n".join(lines) + "\n"


def _unit(name: str, field: dict[str, Any]) -> str:
    """The unit a name ends in, otherwise the type of its value."""
    if found := re.search(r"_(bytes_per_s|flops_per_s|usd_per_hour|seconds|bytes|count)(_low|_high)?$", name):
        return {"flops_per_s": "FLOP/s", "bytes_per_s": "bytes/s", "usd_per_hour": "USD/h"}.get(found[1], found[1])
    kind = next((choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"), field)
    if "$ref" in kind:
        return "table"
    if "enum" in kind:
        return "one of " + ", ".join(f"`{value}`" for value in kind["enum"])
    if kind["type"] == "array":
        return _items(kind["items"])
    number = "fraction" if name.endswith("efficiency") else "number"
    return {"string": kind.get("format", "text"), "boolean": "true or false", "number": number, "integer": "count", "object": "table"}[kind["type"]]


def _items(kind: dict[str, Any]) -> str:
    """What a list is of."""
    words = {"string": "text", "integer": "numbers", "object": "tables"}
    return "list of " + " or ".join(words[choice.get("type", "object")] for choice in kind.get("anyOf", [kind]))


SEVERAL: dict[str, Callable[[], str]] = {
    "ranks": lambda: ranks_table(read(RESULTS / "ranks.jsonl"), read(RESULTS / "ranks_largest.jsonl")),
    "links": links_table,
    "devices": lambda: devices_table(read(RESULTS / "devices.jsonl")),
}
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"summary": headline},
    "benchmarks/README.md": {"summary": headline, "cards": cards, "errors": tables, "rivals": estimators, "times": times, **SEVERAL},
    "docs/capacity.md": {"studyfile": lambda: fields(StudyFile)},
    "hardware/README.md": {row.__name__.lower(): lambda row=row: fields(row) for row in (Gpu, Source, Runtime, Kernels, Communicator, Network, WorkspaceRule)},
}


def main() -> None:
    """Replace what stands between the markers."""
    for path, made in TABLES.items():
        text = (ROOT / path).read_text()
        for name, table in made.items():
            begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
            text = text[: text.index(begin) + len(begin)] + table() + text[text.index(end) :]
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
