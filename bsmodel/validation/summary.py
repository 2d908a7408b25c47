# SPDX-License-Identifier: Apache-2.0
"""Rows to figures and to Markdown: errors worst first, largest batches, rivals, and what failed."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.pages import Comparison
from bsmodel.units import GiB, format_bytes
from bsmodel.validation import rows
from bsmodel.validation.cases import calibrates

FIGURES = ("allocated", "reserved", "device", "step")
NAMES = {"allocated": "allocated", "reserved": "reserved", "device": "device-level", "step": "step time"}
# How a row calls a figure, and the ends of what is predicted of it; what torch allocates is predicted as one number.
_FIELDS = {
    "allocated": ("allocated_bytes", "", ""),
    "reserved": ("reserved_bytes", "reserved_lower_bytes", "reserved_upper_bytes"),
    "device": ("device_bytes", "device_lower_bytes", "device_upper_bytes"),
    "step": ("step_seconds", "step_low_seconds", "step_high_seconds"),
}


@dataclass(frozen=True)
class Statistics:
    """Absolute relative errors of one figure over n cases; of `intervals` predicted ones, `inside` have the measurement in them."""

    figure: str
    cases: int
    median: float
    ninety_fifth: float
    worst: float
    inside: int
    intervals: int


def compared(found: Sequence[rows.Row]) -> list[rows.Row]:
    """The step rows on which errors are reported: those that ran and were predicted; where a calibrated row predicted, only held-out cases."""
    steps = [item for item in rows.of_kind(found, "step") if item.get("predicted") and not item["measured"]["out_of_memory"]]
    return [item for item in steps if not (item["environment"].get("gpu_row_calibrated") and calibrates(item["case"]))]


def pairs(found: Sequence[rows.Row], figure: str) -> list[Comparison]:
    """Predicted and measured values of a figure, in bytes or seconds, worst first; cases that lack either are left out."""
    name, low, high = _FIELDS[figure]
    made = [
        Comparison(_sized(item), NAMES[figure], predicted[name], item["measured"][name], predicted.get(low), predicted.get(high))
        for item in compared(found)
        if (predicted := item["predicted"]).get(name) and item["measured"].get(name)
    ]
    return sorted(made, key=lambda pair: -abs(pair.error))


def _sized(item: rows.Row) -> str:
    """The case with the batch that its share of the largest came to."""
    return re.sub(r"share=(\S+)", rf"b={item['batch']} (\1 of the largest)", item["case"])


def statistics_of(found: Sequence[Comparison]) -> Statistics | None:
    """Median, 95th percentile and worst, and how many measurements lie in their intervals; None for no pairs."""
    if not found:
        return None
    errors, lying = sorted(abs(pair.error) for pair in found), [pair.lies for pair in found if pair.lies]
    sizes = statistics.median(errors), errors[round(0.95 * (len(errors) - 1))], errors[-1]
    return Statistics(found[0].figure, len(errors), *sizes, lying.count("inside"), len(lying))


def verdicts(found: Sequence[rows.Row]) -> list[rows.Row]:
    """Step rows whose prediction of fitting was wrong."""
    judged = [item for item in rows.of_kind(found, "step") if (item.get("predicted") or {}).get("fits") is not None]
    return [item for item in judged if item["predicted"]["fits"] == item["measured"]["out_of_memory"]]


def surroundings(found: Sequence[rows.Row]) -> list[str]:
    """One line for each environment the rows were measured in."""
    lines: dict[str, int] = {}
    for item in found:
        seen = item["environment"]
        words = [str(seen.get("name") or seen.get("gpu"))]
        if seen.get("name"):
            words.append(f"as {seen['gpu']}" + ("" if seen.get("in_catalogue", True) else " (its own properties, not in the catalogue)"))
        words += [f"{label} {seen[name]}" for name, label in _SURROUNDINGS if seen.get(name)]
        line = ", ".join(words)
        lines[line] = lines.get(line, 0) + 1
    return [f"{line} ({count} rows)" for line, count in lines.items()]


_SURROUNDINGS = (
    ("driver", "driver"),
    ("torch", "torch"),
    ("cuda", "CUDA"),
    ("cudnn", "cuDNN"),
    ("predicted_with_torch", "predicted with torch"),
    ("allocator_settings", "allocator settings"),
    ("gpu_row_calibrated", "GPU row calibrated"),
    ("bsmodel", "bsmodel"),
    ("revision", "revision"),
    ("date", "on"),
)


def document(found: Sequence[rows.Row]) -> dict[str, Any]:
    """The figures of a report as data."""
    figures = {figure: statistics_of(pairs(found, figure)) for figure in FIGURES}
    return {
        "rows": len(found),
        "environments": surroundings(found),
        "errors": {name: None if s is None else _told(s) for name, s in figures.items()},
        "wrong_verdicts": [item["case"] for item in verdicts(found)],
        "largest": [{"case": item["case"], "predicted": item["predicted"]["batch"], **item["measured"]} for item in rows.of_kind(found, "largest")],
        "failed": [{"kind": item["kind"], "case": item["case"], "reason": item["reason"]} for item in found if item["status"] == rows.FAILED],
        "side_by_side": [[str(cell) for cell in line] for line in side_by_side_rows(found)],
    }


def _told(found: Statistics) -> dict[str, float]:
    sizes = {"median": found.median, "p95": found.ninety_fifth, "worst": found.worst}
    return {"cases": found.cases, **sizes, "inside": found.inside, "intervals": found.intervals}


# -- Markdown ----------------------------------------------------------------------------------------------------------------------------

Table = tuple[str, Sequence[str], list[list[str]]]  # title, headings (a leading ">" aligns right), rows


def tables(found: Sequence[rows.Row]) -> list[Table]:
    """Every table of the report that has rows."""
    made: list[Table] = [
        ("Errors", ("figure", ">cases", ">median", ">95 %", ">worst", ">in the interval"), _statistics_rows(found)),
        ("Worst first", ("case", ">predicted GiB", ">measured GiB", ">allocated", ">reserved", ">device-level", ">step time"), _case_rows(found)),
        ("Largest batch", ("case", ">capacity", ">predicted", "runs", ">survives", ">first failure"), _largest_rows(found)),
        ("Accumulation", ("case", ">micro x accumulation", ">reserved GiB", ">capacity GiB", "runs", "gradients"), _accumulation_rows(found)),
        ("Estimators", _ESTIMATORS, estimator_rows(found)),
        ("Side by side", _SIDE, side_by_side_rows(found)),
        ("Said to fit and did not, or the other way", ("case", "predicted", "measured"), _verdict_rows(found)),
        ("Failed", ("kind", "case", "reason"), _failed_rows(found)),
    ]
    return [table for table in made if table[2]]


def markdown(found: Sequence[rows.Row]) -> str:
    """The report as Markdown."""
    if not found:
        raise InvalidInputError("no rows to report")
    lines = ["# Predicted against measured", "", *(f"* {line}" for line in surroundings(found)), *(f"* {line}" for line in remarks(found))]
    for title, headings, body in tables(found):
        lines += ["", f"## {title}", "", "| " + " | ".join(heading.lstrip(">") for heading in headings) + " |"]
        lines.append("| " + " | ".join("---:" if heading.startswith(">") else "---" for heading in headings) + " |")
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]
    return "\n".join(lines) + "\n"


def remarks(found: Sequence[rows.Row]) -> list[str]:
    """What a reader must know of the rows: what was left out of the errors, and why."""
    said = []
    calibrated = [item for item in rows.of_kind(found, "step") if item["environment"].get("gpu_row_calibrated")]
    if calibrated:
        left_out = sum(calibrates(item["case"]) for item in calibrated)
        said.append(f"Predicted with a calibrated GPU row: errors are of the {len(calibrated) - left_out} held-out cases; {left_out} belong to calibration")
    failed = sum(item["status"] == rows.FAILED for item in found)
    out_of_memory = sum(item["measured"]["out_of_memory"] for item in rows.of_kind(found, "step"))
    if out_of_memory or failed:
        said.append(f"Not among the errors: {out_of_memory} runs that ended out of memory, {failed} that failed")
    return said


def _statistics_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    made = [statistics_of(pairs(found, figure)) for figure in FIGURES]
    return [[s.figure, str(s.cases), f"{s.median:.2%}", f"{s.ninety_fifth:.2%}", f"{s.worst:.2%}", _within(s)] for s in made if s is not None]


def _within(found: Statistics) -> str:
    return f"{found.inside} of {found.intervals}" if found.intervals else "-"


def _case_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    by_case: dict[str, dict[str, Comparison]] = {}
    for figure in FIGURES:
        for pair in pairs(found, figure):
            by_case.setdefault(pair.case, {})[figure] = pair
    ranked = sorted(by_case.items(), key=lambda item: -max(abs(pair.error) for figure, pair in item[1].items() if figure != "step" or len(item[1]) == 1))
    made = []
    for case, figures in ranked:
        peak = figures.get("allocated")
        sizes = [f"{peak.predicted / GiB:.2f}", f"{peak.measured / GiB:.2f}"] if peak else ["-", "-"]
        made.append([case, *sizes, *(f"{figures[name].error:+.2%}" if name in figures else "-" for name in FIGURES)])
    return made


def _largest_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    ordered = sorted(rows.of_kind(found, "largest"), key=lambda item: item["predicted"]["batch"] / max(1, item["measured"]["batch"]))
    made = []
    for item in ordered:
        capacity = f"{item['capacity_bytes'] / GiB:.2f} GiB" if item.get("capacity_bytes") else "the card's"
        measured = item["measured"]
        made.append(
            [
                re.sub(r" capacity=\d+", "", item["case"]),
                capacity,
                str(item["predicted"]["batch"]),
                "yes" if measured["survives"] else "OUT OF MEMORY",
                str(measured["batch"]),
                str(measured.get("first_failure", "-")),
            ]
        )
    return made


def _accumulation_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    made = []
    for item in rows.of_kind(found, "accumulation"):
        measured, gradients = item["measured"], item["measured"]["gradients"]
        same = gradients["agree"]
        said = gradients.get("reason", "") if same is None else f"{'agree' if same else 'DIFFER'}, {gradients['difference']:.1e}"
        sizes = [f"{measured['reserved_bytes'] / GiB:.2f}", f"{item['capacity_bytes'] / GiB:.2f}"]
        made.append([item["case"], f"{item['micro_batch']} x {item['accumulation']}", *sizes, "yes" if measured["survives"] else "OUT OF MEMORY", said])
    return made


_SIDE = ("case", "estimator", ">says GiB", ">measured GiB", ">error", ">recommends", "runs", ">idle")


def side_by_side_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    """One line per case and estimator; one that could not answer says why."""
    made = []
    for item in (item for item in found if item["kind"] == "side-by-side"):
        if item["status"] == rows.FAILED:
            made.append([item["case"], item.get("rival", "-"), "-", "-", "-", "-", item["reason"], "-"])
            continue
        predicted, measured = item["predicted"], item["measured"]
        error = predicted["predicted_bytes"] / measured["allocated_bytes"] - 1
        batch, survives, idle = predicted.get("recommended_batch"), measured.get("recommended_survives"), measured.get("idle_bytes")
        runs = "-" if survives is None else "yes" if survives else "OUT OF MEMORY"
        sizes = [f"{predicted['predicted_bytes'] / GiB:.2f}", f"{measured['allocated_bytes'] / GiB:.2f}", f"{error:+.0%}"]
        made.append([item["case"], item["rival"], *sizes, "none" if batch is None else str(batch), runs, "-" if idle is None else format_bytes(idle)])
    return made


_ESTIMATORS = ("estimator", ">answers", ">error: median", ">worst", ">recommended batch runs", ">of the largest batch", ">idle")


def estimator_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    """One line per estimator over all cases: how often it answers, its errors, and what its batches come to; medians."""
    asked = [item for item in found if item["kind"] == "side-by-side"]
    made = []
    for name in dict.fromkeys(item["rival"] for item in asked):
        own = [item for item in asked if item["rival"] == name]
        answers = [item for item in own if item["status"] == rows.MEASURED]
        errors = sorted((item["predicted"]["predicted_bytes"] / item["measured"]["allocated_bytes"] - 1 for item in answers), key=abs)
        tried = [item["measured"]["recommended_survives"] for item in answers if item["measured"].get("recommended_survives") is not None]
        shares = [item["predicted"]["recommended_batch"] / item["measured"]["largest_batch"] for item in answers if _has_both(item)]
        idle = [item["measured"]["idle_bytes"] for item in answers if item["measured"].get("idle_bytes") is not None]
        made.append(
            [
                name,
                f"{len(answers)} of {len(own)}",
                f"{statistics.median(map(abs, errors)):.1%}" if errors else "-",
                f"{errors[-1]:+.1%}" if errors else "-",
                f"{sum(tried)} of {len(tried)}" if tried else "-",
                f"{statistics.median(shares):.0%}" if shares else "-",
                format_bytes(statistics.median(idle)) if idle else "-",
            ]
        )
    return made


def _has_both(item: rows.Row) -> bool:
    return item["predicted"].get("recommended_batch") is not None and bool(item["measured"].get("largest_batch"))


def _verdict_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    words = {True: "out of memory", False: "fits"}
    return [[item["case"], words[not item["predicted"]["fits"]], words[item["measured"]["out_of_memory"]]] for item in verdicts(found)]


def _failed_rows(found: Sequence[rows.Row]) -> list[list[str]]:
    return [[item["kind"], item["case"], item["reason"]] for item in found if item["status"] == rows.FAILED and item["kind"] != "side-by-side"]
