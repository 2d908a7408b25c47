# SPDX-License-Identifier: Apache-2.0
"""A trial as plain files: its question, a line for each optimizer step of each run, and what was measured in rows that `bsmodel validate` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bsmodel.errors import InvalidInputError
from bsmodel.files import write_whole
from bsmodel.trials.values import Run, Rung, Update
from bsmodel.units import shown

SCHEMA_VERSION = 1
_QUESTION, _RUNS, ROWS = "trial.json", "runs", "rows.jsonl"
_UPDATE = TypeAdapter(Update)
_RUNG = TypeAdapter(Rung)


class _Recipe(TypedDict):
    precision: str
    optimizer: str


class _Question(TypedDict):
    """What is read of a question; there may be more in it."""

    workload: str
    device: str
    recipe: _Recipe
    data: str
    rungs: Annotated[list[Rung], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    target_loss: float | None
    remarks: list[str]


_QUESTION_FORM = TypeAdapter(_Question)


def began(folder: Path, question: Mapping[str, Any]) -> None:
    """Write what is asked, or see that the folder holds the same question: then the trial goes on where it stopped.

    Raises `InvalidInputError` where it holds another, or cannot be written.
    """
    document = {"schema_version": SCHEMA_VERSION, **question}
    if (folder / _QUESTION).exists():
        other = _difference("", question_in(folder), json.loads(json.dumps(document)))
        if other:
            raise InvalidInputError(f"{str(folder)!r} holds another trial: {other}; give another folder")
        return
    try:
        (folder / _RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(folder)!r}: {error.strerror}") from None
    write_whole(folder / _QUESTION, json.dumps(document, indent=1).encode() + b"\n", "the trial")


def _difference(name: str, there: Any, here: Any) -> str:
    """The first field in which two questions differ, and how; nothing where they are the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [(key, there.get(key), here.get(key)) for key in sorted({*there, *here})]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(str(place), *pair) for place, pair in enumerate(zip(there, here, strict=True))]
    else:
        return "" if there == here else f"{name} is {shown(there)} there, and {shown(here)} here"
    return next((found for key, *pair in pairs if (found := _difference(f"{name}.{key}".lstrip("."), *pair))), "")


def question_in(folder: Path) -> dict[str, Any]:
    """What was asked; `InvalidInputError` for a folder without a trial, or one of another version."""
    try:
        found = json.loads((folder / _QUESTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InvalidInputError(f"{str(folder)!r} holds no trial: expected {_QUESTION} in it, as bsmodel trial --out writes it") from None
    if not isinstance(found, dict) or found.get("schema_version") != SCHEMA_VERSION:
        raise InvalidInputError(f"{str(folder)!r} holds a trial of another version than {SCHEMA_VERSION}, which this bsmodel reads: run it again")
    try:
        _QUESTION_FORM.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, said = ".".join(map(str, first["loc"])), first["msg"]
        raise InvalidInputError(f"{_QUESTION} of {str(folder)!r} cannot be read: {place}: {said}; expected what bsmodel trial --out wrote") from None
    return found


def path_of(folder: Path, rung: Rung, seed: int) -> Path:
    """Where a run is written."""
    return folder / _RUNS / f"batch-{rung.batch}-seed-{seed}.jsonl"


def write(path: Path, item: Mapping[str, Any] | Update, first: bool) -> None:
    """One more line of a run; the first takes the place of what an interrupted one left. A loss that is no number is null: JSON has no other word for it."""
    known = item if isinstance(item, Mapping) else {name: value for name, value in asdict(item).items() if value is not None}
    line = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in known.items()}
    try:
        with path.open("w" if first else "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror}") from None


def read(folder: Path, rung: Rung, seed: int) -> Run | None:
    """A run that is over; None where it has not begun, or was interrupted."""
    path = path_of(folder, rung, seed)
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        *steps, end = lines or [{}]
        if "status" not in end:
            return None
        return Run(rung, seed, updates=tuple(map(_update, steps)), **end)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ValidationError):  # half a line at its end: it was interrupted
        return None


def _update(line: Mapping[str, Any]) -> Update:
    return _UPDATE.validate_python({name: math.nan if value is None else value for name, value in line.items()})


def runs(folder: Path) -> Iterator[Run]:
    """All that are over, by batch and seed."""
    question = question_in(folder)
    for given in question["rungs"]:
        rung = _RUNG.validate_python(given)
        for seed in question["seeds"]:
            found = read(folder, rung, seed)
            if found is not None:
                yield found
