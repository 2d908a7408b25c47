# SPDX-License-Identifier: Apache-2.0
"""Rows of measurements: one JSON object a line, appended as they come, each with what was predicted, measured and where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError

SCHEMA_VERSION = 1
MEASURED, FAILED = "measured", "failed"

Row = dict[str, Any]


def row(kind: str, case: str, status: str, **content: Any) -> Row:
    """A row as it is written. `kind`: step, largest, accumulation, side-by-side, hardware or workspaces."""
    return {"schema_version": SCHEMA_VERSION, "kind": kind, "case": case, "status": status, **content}


def read(path: Path) -> list[Row]:
    """The rows of a file, the last one of each case only; half a line at the end, from a run that was cut off, is left out.

    Rows of the forms written before there was a `kind` are converted. Raises `InvalidInputError` for a file that holds no rows.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"{str(path)!r} is not text: expected one JSON object a line") from None
    found: dict[tuple[str, str, str], Row] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError:
            if number == len(lines):  # no line break after it: the run that wrote it was cut off
                continue
            raise InvalidInputError(f"{str(path)!r} line {number} is not JSON") from None
        converted = _converted(item, f"{str(path)!r} line {number}")
        found[converted["kind"], converted["case"], converted.get("rival", "")] = converted
    return list(found.values())


def append(path: Path, item: Row) -> None:
    """Add one row; half a line that an interrupted run left is taken away first, so that it spoils no other."""
    try:
        if path.exists():
            _end_last_line(path)
        with path.open("ab") as stream:
            stream.write(json.dumps(item).encode() + b"\n")
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror}") from None


def _end_last_line(path: Path) -> None:
    content = path.read_bytes()
    start = content.rfind(b"\n") + 1
    if start == len(content):
        return
    try:
        json.loads(content[start:])
    except ValueError:
        path.write_bytes(content[:start])
    else:
        path.write_bytes(content + b"\n")


def done(rows: Iterable[Row], kind: str, retry: bool = False) -> set[tuple[str, str]]:
    """Case and rival of the rows of a kind that need not be run again; failures count unless they are to be tried again."""
    return {(item["case"], item.get("rival", "")) for item in rows if item["kind"] == kind and (item["status"] == MEASURED or not retry)}


def kinds_taken(item: Row) -> dict[str, bool]:
    """Of a row of single convolutions, which kinds of workspace the card takes: those of which it allocates more than half."""
    return {kind: sizes["taken_bytes"] > sizes["wanted_bytes"] / 2 for kind, sizes in item["measured"]["kinds"].items()}


def of_kind(rows: Sequence[Row], kind: str, status: str = MEASURED) -> list[Row]:
    """The rows of one kind with one status."""
    return [item for item in rows if item["kind"] == kind and item["status"] == status]


# -- older forms: what benchmarks/compare.py and benchmarks/largest.py write ------------------------------------------------------------


def _converted(item: Any, where: str) -> Row:
    if not isinstance(item, dict) or "case" not in item:
        raise InvalidInputError(f"{where} is no row: expected an object with a case, as bsmodel validate --out writes it")
    if "kind" in item:
        if item.get("schema_version") != SCHEMA_VERSION:
            raise InvalidInputError(f"{where} has schema version {item.get('schema_version')!r}, this bsmodel reads {SCHEMA_VERSION}: measure again")
        return item
    words = item["case"].split()
    common = {"workload": words[0], "gpu": words[1] if len(words) > 1 else ""}
    surroundings = {"gpu": common["gpu"], "torch": item.get("torch")}
    if isinstance(item.get("measured"), int):  # a largest batch
        capacity = {"capacity_bytes": None, "own_capacity": True, "environment": surroundings}
        pair = {"predicted": {"batch": item["predicted"]}, "measured": {"batch": item["measured"], "survives": item["predicted"] <= item["measured"]}}
        return row("largest", item["case"].replace(" b=0", ""), MEASURED, **common, **pair, **capacity)
    if "allocated_bytes" in item:  # measured, not predicted
        figures = {name: item[name] for name in ("allocated_bytes", "reserved_bytes", "retries", "out_of_memory")}
        return row("step", item["case"], MEASURED, **common, batch=item["batch"], measured=figures, predicted=None, environment=surroundings)
    if not isinstance(item.get("measured"), dict):
        raise InvalidInputError(f"{where} is no row: nothing measured in it")
    batch = next((int(word[2:]) for word in words if word.startswith("b=")), None)
    pair = {side: {f"{name}_bytes": item[side][name] for name in ("allocated", "reserved")} for side in ("measured", "predicted")}
    pair["measured"]["out_of_memory"] = False
    return row("step", item["case"], MEASURED, **common, batch=batch, **pair, environment=surroundings)
