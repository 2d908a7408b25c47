# SPDX-License-Identifier: Apache-2.0
"""Errors of predictions against rows from physical cards, by family."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]
LABELS = ("as measured", "today")


def best(row: Row, label: str | None = None) -> Row | None:
    """What is predicted of a row: with the measured versions of libraries where that is known, else with today's; None where it is refused."""
    known = row.get("predicted", {})
    found = next((known[name] for name in ([label] if label else LABELS) if name in known), None)
    return None if found is None or "refused" in found else found


def error(row: Row, label: str | None = None) -> float | None:
    """The relative error of a peak; None where the run died, or nothing is predicted."""
    found = best(row, label)
    return None if found is None or row.get("out_of_memory") or row["metric"] == "bracket" else found["bytes"] / row["peak_bytes"] - 1


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def bracket(row: Row, label: str | None = None) -> str:
    """Where the likely batch lies: inside of what ran and what failed, above, below, or refused."""
    found = best(row, label)
    if found is None:
        return "refused"
    if row["fails"] is not None and found["likely"] >= row["fails"]:
        return "above"
    return "below" if row["fits"] is not None and found["likely"] < row["fits"] else "inside"


def line(rows: Sequence[Row]) -> str:
    """Median, ninth decile and worst error of the peaks, how many lie in their interval, and what was said of runs that fit or ran out."""
    errors = [abs(value) for row in rows if (value := error(row)) is not None]
    known = [(row, found) for row in rows if (found := best(row)) and row["metric"] != "bracket"]
    spans = [(row, found) for row, found in known if "low" in found and not row.get("out_of_memory")]
    inside = sum(found["low"] <= row["peak_bytes"] <= found["high"] for row, found in spans)
    refused = sum(not found["likely_fits"] for row, found in known if not row.get("out_of_memory"))
    called_safe = sum(found["fits"] for row, found in known if row.get("out_of_memory"))
    text = f"{len(errors):4d} peaks"
    if errors:
        text += f": median {statistics.median(errors):.2%}, 90 % {quantile(errors, 0.9):.2%}, worst {max(errors):.1%}"
    died = sum(bool(row.get("out_of_memory")) for row in rows)
    return f"{text}; {inside} of {len(spans)} in their interval; {refused} that ran refused; {called_safe} of {died} that ran out called safe"


def summary(rows: Sequence[Row]) -> str:
    """A line for each family, one for all, and one for the brackets."""
    families = sorted({row["family"] for row in rows})
    lines = [f"{name:16} {line([row for row in rows if row['family'] == name])}" for name in families]
    lines.append(f"{'all':16} {line(rows)}")
    brackets = [bracket(row) for row in rows if row["metric"] == "bracket"]
    if brackets:
        lines.append("brackets: " + ", ".join(f"{brackets.count(word)} {word}" for word in ("inside", "above", "below", "refused")))
    return "\n".join(lines)


# -- in Markdown -------------------------------------------------------------------------------------------------------------------------

_LARGE = 0.05  # an error that has to be explained


def _cells(label: str, rows: Sequence[Row], name: str | None = None) -> str:
    known = [row for row in rows if error(row, name) is not None]
    errors = sorted(abs(error(row, name) or 0.0) for row in known)
    spans = [found["low"] <= row["peak_bytes"] <= found["high"] for row in known if (found := best(row, name)) and "low" in found]
    inside = f"{sum(spans)} of {len(spans)}" if spans else "-"
    died = [found["fits"] for row in rows if row.get("out_of_memory") and (found := best(row, name))]
    safe = f"{sum(died)} of {len(died)}" if died else "-"
    figures = f"{statistics.median(errors):.2%} | {quantile(errors, 0.9):.1%} | {errors[-1]:.1%}" if errors else "- | - | -"
    return f"| {label} | {len(errors)} | {len({row['card'] for row in known})} | {figures} | {inside} | {safe} |"


def peaks_table(rows: Sequence[Row]) -> str:
    """Peaks by family and by source: how far off, and how many lie in the interval that is given."""
    columns = "peaks on physical cards | n | cards | error: median | 90 % | worst | in their interval | ran out, called safe"
    lines = [f"| {columns} |", "| --- " + "| ---: " * 7 + "|", _cells("all", rows)]
    lines += [_cells(name, [row for row in rows if row["family"] == name]) for name in sorted({row["family"] for row in rows})]
    both = [row for row in rows if {*LABELS} <= set(row.get("predicted", {}))]
    lines += [_cells("library as measured", both, "as measured"), _cells("the same rows with today's", both, "today")]
    sources = sorted({row["source"].split()[0].rstrip(",") for row in rows})
    lines += [_cells(f"from {name}", [row for row in rows if row["source"].startswith(name)]) for name in sources]
    return "\n".join([*(line for line in lines if "| 0 |" not in line), "", _outside(rows)]) + "\n"


def _outside(rows: Sequence[Row]) -> str:
    """How many peaks lie above the upper end of their interval, and by how much, and how many below the lower one."""
    spans = [(row, found) for row in rows if error(row) is not None and (found := best(row)) and "low" in found]
    above = [over for row, found in spans if (over := row["peak_bytes"] / found["high"] - 1) > 0]
    below = sum(row["peak_bytes"] < found["low"] for row, found in spans)
    return f"Outside of their interval: {len(above)} above, by {statistics.median(above):.1%} in the median and {max(above):.1%} at most, and {below} below."


def rivals_table(rows: Sequence[Row]) -> str:
    """What other estimators said of the same rows, by their own publication."""
    lines = ["| on the rows that it was published for | n | its error: median | worst | of bsmodel: median | worst |", "| --- " + "| ---: " * 5 + "|"]
    for name in sorted({name for row in rows for name in row.get("rivals") or {}}):
        pairs = [(row["rivals"][name] / row["peak_bytes"] - 1, own) for row in rows if name in (row.get("rivals") or {}) and (own := error(row)) is not None]
        cells = [f"{statistics.median(map(abs, errors)):.1%} | {max(map(abs, errors)):.0%}" for errors in zip(*pairs, strict=True)]
        lines.append(f"| {name} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def causes_table(rows: Sequence[Row]) -> str:
    """Every residual above a twentieth by its cause, worst first, each with its worst row."""
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        found = error(row)
        if found is not None and abs(found) > _LARGE:
            groups.setdefault(row.get("cause", "not explained"), []).append((found, row))
    lines = ["| why more than 5 % | rows | worst | which |", "| --- | ---: | ---: | --- |"]
    for cause, found in sorted(groups.items(), key=lambda item: -max(abs(value) for value, _ in item[1])):
        value, row = max(found, key=lambda item: abs(item[0]))
        lines.append(f"| {cause} | {len(found)} | {value:+.1%} | {row['model'].partition(':')[2]}, batch {row['batch']}, {row['card']} |")
    return "\n".join(lines) + "\n"


def _shares(rows: Sequence[Row]) -> list[float]:
    return [sum(row["place"] == word for row in rows) / len(rows) for word in ("inside", "tied", "above", "below")]


def brackets_line(rows: Sequence[Row]) -> str:
    """The line of the headline: the share of pairs between which, or as near as the driver's share lets one know, the likely batch lies."""
    inside, tied, above, below = _shares([row for row in rows if "place" in row])
    known = sum("place" in row for row in rows)
    shares = f"{inside + tied:.1%} between or tied | {above:.1%} of pairs above, {below:.1%} below"
    return f"| largest batch | pairs that trained and failed on an RTX 3090 | {known} | {shares} | `brackets.py` |"


def brackets_table(rows: Sequence[Row]) -> str:
    """Where the likely batch lies between a batch that trained and one that failed, by layout and family, and which lie outside."""
    known = [row for row in rows if "place" in row]
    groups: dict[str, list[Row]] = {"all": known}
    for row in known:
        for name in ({"nchw": "contiguous", "nhwc": "channels-last"}[row["layout"]], family(row["model"])):
            groups.setdefault(name, []).append(row)
    lines = ["| likely batch on an RTX 3090 | pairs | between | tied | above | below |", "| --- " + "| ---: " * 5 + "|"]
    for name, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        if len(members) >= _FEW:
            lines.append(f"| {name} | {len(members)} | " + " | ".join(f"{share:.1%}" for share in _shares(members)) + " |")
    for word in ("above", "below"):
        names = ", ".join(f"{row['model']} {row['layout']} [{row['fits']}, {row['fails']})" for row in known if row["place"] == word)
        lines += ["", f"{word.capitalize()}: {names or 'none'}."]
    return "\n".join(lines) + "\n"


_FEW = 12  # rows of a family that has a line of its own


def family(model: str) -> str:
    """The family of a timm model: its name's letters, without the prefix of who trained it."""
    found = re.match(r"(?:tf_|gluon_|swsl_|ssl_|legacy_)?([a-z]+)", model)
    assert found is not None
    return found[1]


def ranks_table(found: Sequence[dict[str, Any]], batches: Sequence[dict[str, Any]]) -> str:
    """Errors of ranks of several by kind, the worst rows, and the largest batches, in Markdown."""
    kinds = list(dict.fromkeys(row["kind"] for row in found))
    lines = ["| kind | cases | allocated: median | worst | reserved: median | worst | measured inside the interval |", "| --- " + "| ---: " * 6 + "|"]
    for kind in ("all", *kinds):
        rows = [row for row in found if kind in ("all", row["kind"])]
        errors = [sorted(abs(row["errors"][name]) for row in rows) for name in ("allocated", "reserved")]
        figures = " | ".join(f"{statistics.median(each):.3%} | {each[-1]:.2%}" for each in errors)
        lines.append(f"| {kind} | {len(rows)} | {figures} | {sum(row['inside'] for row in rows)} |")
    lines += ["", "| worst cases first | allocated | reserved |", "| --- | ---: | ---: |"]
    for row in sorted(found, key=lambda row: -max(map(abs, row["errors"].values())))[:8]:
        shared = row["training"]["parallel"]
        what = f"{row['model']}, {row['kind']} over {shared['devices']}, {row['training']['precision']}, b={row['batch']}"
        lines.append(f"| {what} | {row['errors']['allocated']:+.2%} | {row['errors']['reserved']:+.2%} |")
    lines += ["", "| largest batch on an RTX 3070 | predicted | survives | of it |", "| --- | ---: | ---: | ---: |"]
    for row in sorted(batches, key=lambda row: row["predicted"] / row["survives"]):
        what = f"{row['model']}, {row['kind']} over {row['training']['parallel']['devices']}, {row['training']['precision']}"
        lines.append(f"| {what} | {row['predicted']} | {row['survives']} | {row['predicted'] / row['survives']:.1%} |")
    return "\n".join(lines) + "\n"


def devices_table(rows: Sequence[dict[str, Any]]) -> str:
    """Errors of published steps of several devices, by what they are, the worst first, in Markdown."""
    several = [row for row in rows if row["devices"] > 1]
    groups: dict[str, Callable[[dict[str, Any]], bool]] = {
        "all of several devices": lambda row: True,
        "ddp": lambda row: row["kind"] == "ddp",
        "fsdp1 and fsdp2 on A100": lambda row: row["kind"] != "ddp" and row["gpu"].startswith("a100"),
        "fsdp1 on H100": lambda row: row["kind"] != "ddp" and row["gpu"].startswith("h100"),
        "several nodes": lambda row: row["nodes"] > 1,
    }
    lines = ["| published steps | n | GPUs | error: median | worst | inside the interval |", "| --- " + "| ---: " * 5 + "|"]

    def add(name: str, found: Sequence[dict[str, Any]]) -> None:
        errors = sorted(abs(row["error"]) for row in found)
        gpus = len({row["gpu"] for row in found})
        lines.append(f"| {name} | {len(found)} | {gpus} | {statistics.median(errors):.1%} | {errors[-1]:.1%} | {sum(row['inside'] for row in found)} |")

    for name, belongs in groups.items():
        add(name, [row for row in several if belongs(row)])
    add("one device, of the same sources", [row for row in rows if row["devices"] == 1])
    errors = sorted(_scaling(rows))
    lines.append(f"| throughput over that of one device | {len(errors)} | | {statistics.median(errors):.1%} | {errors[-1]:.1%} | |")
    lines += ["", "| worst row of each model and GPU | devices | kind | error | waiting | source |", "| --- | ---: | --- | ---: | ---: | --- |"]
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(several, key=lambda row: -abs(row["error"])):
        worst.setdefault((row["model"], row["gpu"]), row)
    for row in worst.values():
        what = f"{row['model']} on {row['gpu']}, {row['precision']}"
        lines.append(f"| {what} | {row['devices']} | {row['kind']} | {row['error']:+.1%} | {row['waiting']:.0%} | {row['source'].partition(',')[0]} |")
    return "\n".join(lines) + "\n"


def _scaling(rows: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Errors of the throughput of several devices over that of one with the same recipe and micro-batch."""
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["id"].partition("-")[0], row["model"], row["gpu"], row["precision"], row["micro_batch"], row.get("seq_len")), []).append(row)
    for same in alike.values():
        alone = next((row for row in same if row["devices"] == 1), None)
        for row in same if alone else ():
            if alone and row["devices"] > 1:
                published, predicted = (alone[name] / alone["accumulation"] / row[name] * row["accumulation"] for name in ("seconds", "predicted_seconds"))
                yield abs(predicted / published - 1)
