# SPDX-License-Identifier: Apache-2.0
"""Write the error tables and that of other estimators into README.md, worst case first.

python benchmarks/table.py            # rewrites what stands between the markers
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bsmodel.validation import rows as validated
from bsmodel.validation import summary
from bsmodel.validation.rivals import RIVALS

ROOT = Path(__file__).parent.parent
_CONVOLUTIONAL = ("resnet50", "vgg16", "depthwise", "densenet121", "convnext-tiny", "segmenter")
_SHOWN = 14


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "benchmarks" / name).read_text().splitlines()]


def _summary(label: str, rows: list[dict[str, Any]]) -> str:
    cells = []
    for figure in ("allocated", "reserved"):
        errors = sorted(abs(row["error"][figure]) for row in rows)
        cells.append(f"{statistics.median(errors):.2%} | {errors[round(0.95 * (len(errors) - 1))]:.2%} | {errors[-1]:.2%}")
    return f"| {label} | {len(rows)} | {' | '.join(cells)} |"


def tables() -> str:
    """Summary, the worst cases, and the largest batches, in Markdown."""
    rows, largest = _rows("errors.jsonl"), _rows("largest.jsonl")
    convolutional = [row for row in rows if row["case"].split()[0] in _CONVOLUTIONAL]
    other = [row for row in rows if row not in convolutional]
    lines = ["| cases | n | allocated: median | 95 % | worst | reserved: median | 95 % | worst |", "| --- " * 8 + "|"]
    lines += [_summary("all", rows), _summary("convolutional", convolutional), _summary("all others", other), ""]
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
    for name, *cells, _idle in summary.estimator_rows(validated.read(ROOT / "benchmarks" / "rivals.jsonl")):
        rival = RIVALS.get(name)
        label = f"[{name}]({rival.source})" if rival and rival.source.startswith("http") else name
        lines.append(f"| {label} | {rival.what if rival else 'the recorded step'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    return text[: text.index(begin) + len(begin)] + content + text[text.index(end) :]


def main() -> None:
    """Replace what stands between the markers."""
    readme = ROOT / "README.md"
    readme.write_text(_between(_between(readme.read_text(), "errors", tables()), "rivals", estimators()))


if __name__ == "__main__":
    main()
