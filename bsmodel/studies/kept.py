# SPDX-License-Identifier: Apache-2.0
"""Rows that are known already: from the file of an interrupted study, and from the user's cache folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bsmodel.errors import InvalidInputError
from bsmodel.recording import cache_folder, keep, kept_as
from bsmodel.studies.grid import Cell
from bsmodel.studies.rows import Row
from bsmodel.workloads import Source


@functools.cache
def adapter() -> TypeAdapter[Row]:
    """Reads and writes rows."""
    return TypeAdapter(Row)


@dataclass(frozen=True)
class Ledger:
    """The rows of a study by the keys of their cells, and where new ones are written."""

    asked: dict[str, Cell]
    rows: dict[str, Row] = field(default_factory=dict)
    out: Path | None = None
    caching: bool | None = None

    @staticmethod
    def of(asked: Sequence[Cell], out: str | Path | None, caching: bool | None) -> Ledger:
        """What is known of these cells; raises `InvalidInputError` for a file that holds something else."""
        ledger = Ledger({cell.key: cell for cell in asked}, {}, None if out is None else Path(out), caching)
        if ledger.out is not None:
            ledger.rows.update((key, row) for key, row in _read(ledger.out) if key in ledger.asked)
        for key, cell in ledger.asked.items():
            if key not in ledger.rows and (path := _place(cell, caching)) and (row := _kept(path)):
                ledger.add(cell, row, new=False)
        return ledger

    def add(self, cell: Cell, row: Row, new: bool = True) -> None:
        """Note a row, and write it down where it is wanted."""
        self.rows[cell.key] = row
        content = adapter().dump_json(row)
        if self.out is not None:
            _append(self.out, b'{"key":"' + cell.key.encode() + b'","row":' + content + b"}\n")
        if new and row.status != "refused" and (path := _place(cell, self.caching)):
            keep(path, content)


def _place(cell: Cell, caching: bool | None) -> Path | None:
    """Where the answer is kept; None where it must not be."""
    if not isinstance(cell.subject, Source) or kept_as(cell.subject, dict(cell.recipe.changes), caching) is None:
        return None
    return cache_folder() / "answers" / f"{cell.key}.json"


def _kept(path: Path) -> Row | None:
    try:
        return adapter().validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _read(path: Path) -> list[tuple[str, Row]]:
    """Keys and rows of a file; half a line at the end, from a study that was cut off, is taken away."""
    if not path.exists():
        _append(path, b"")  # said now where it cannot be written, not after the work
        return []
    try:
        content = path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest:
            path.write_bytes(whole + b"\n" if whole else b"")
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return [_line(line, f"{str(path)!r} line {number}") for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]


def _line(line: bytes, where: str) -> tuple[str, Row]:
    try:
        item: Any = json.loads(line)
        return str(item["key"]), adapter().validate_python(item["row"])
    except (ValueError, KeyError, TypeError):
        raise InvalidInputError(f"{where} is no row of a study: expected what this version of bsmodel study wrote; give another --out") from None


def _append(path: Path, content: bytes) -> None:
    try:
        with path.open("ab") as stream:
            stream.write(content)
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror}") from None
