# SPDX-License-Identifier: Apache-2.0
"""Saved tapes: the recordings of one workload and recipe, one for each family of kernels, as gzipped JSON that is checked when it is read."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from bsmodel.errors import InvalidInputError
from bsmodel.files import write_whole
from bsmodel.tape.lengths import Lengths, Piece
from bsmodel.tape.operations import Operations
from bsmodel.tape.polynomials import Polynomial
from bsmodel.tape.schema import SCHEMA_VERSION, SIZES, SavedPiece, SavedTape, SavedTapes, require_pieces, require_sound
from bsmodel.tape.tape import Collective, Tape, Term, Wait, Workspace
from bsmodel.units import MiB, shown

LIMIT_BYTES = 256 * MiB  # of JSON; the tapes of the largest named models take two
WORDS = ("operators", "modules", "phases", "categories")  # kept as positions in a list of words
_SAME = ("name", "precision", "optimizer", "parameter_count", "recipe", "options")  # in all the tapes of a file
_MAGIC = b"\x1f\x8b"  # RFC 1952, section 2.3.1


def save_all(tapes: Iterable[Tape], path: str | Path) -> None:
    """Write the recordings of one workload and recipe into one file, in one step.

    Raises `InvalidInputError` where they are not of one workload and recipe or the file cannot be written.
    """
    kept = list(tapes)
    _require_one_workload(kept, "the tapes")
    _write(kept, (), path)


def save_lengths(several: Iterable[Lengths], path: str | Path) -> None:
    """Write recordings of one workload and recipe at several lengths, for one or more families of kernels; raises as `save_all` does."""
    kept = list(several)
    _require_one_workload([lengths.first for lengths in kept], "the recordings")
    pieces = [piece for lengths in kept for piece in lengths.pieces]
    _write([tape for piece in pieces for tape in piece.tapes], pieces, path)


def load_all(path: str | Path, options: Mapping[str, Any] | None = None) -> tuple[Tape, ...]:
    """Read the recordings in a file, one for each family of kernels; of a file of several lengths those at the one among `options`.

    Raises `InvalidInputError`, one line that names the field, for a file that is no tape, has another schema version, holds more than
    `LIMIT_BYTES` of JSON, breaks the schema, or holds recordings of several lengths of which none is given.
    """
    pieces, found = _read(path)
    if pieces:
        several = _along(pieces, found)
        if (length := (options or {}).get(several[0].option)) is None:
            raise InvalidInputError(f"the tape {str(path)!r} holds recordings of several lengths; say which with seq_len, or read it with load_lengths")
        found = tuple(each.at(length) for each in several)
    _require_one_workload(found, f"the tape {str(path)!r}")
    return found


def load_lengths(path: str | Path) -> tuple[Lengths, ...]:
    """Read what `save_lengths` wrote; none where the file holds recordings of one length. Raises `InvalidInputError` for a file that is no tape."""
    found = _along(*_read(path))
    if found:
        _require_one_workload([lengths.first for lengths in found], f"the tape {str(path)!r}")
    return found


def _along(pieces: Sequence[SavedPiece], tapes: Sequence[Tape]) -> tuple[Lengths, ...]:
    """The pieces with their tapes, for each family of kernels."""
    families: dict[tuple[int, int], list[Piece]] = {}
    for saved in pieces:
        own, tapes = tuple(tapes[: len(saved.lengths)]), tapes[len(saved.lengths) :]
        families.setdefault(own[0].gpu.kernel_family, []).append(Piece(tapes=own, **dict(saved)))
    return tuple(Lengths(tuple(several)) for several in families.values())


def _write(tapes: Sequence[Tape], pieces: Sequence[Piece], path: str | Path) -> None:
    along = [{name: getattr(piece, name) for name in SavedPiece.model_fields} for piece in pieces]
    document = {"schema_version": SCHEMA_VERSION, "tapes": [_document(tape) for tape in tapes], **({"pieces": along} if along else {})}
    content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    write_whole(path, gzip.compress(content, compresslevel=6, mtime=0), "the tape")


def _read(path: str | Path) -> tuple[tuple[SavedPiece, ...], tuple[Tape, ...]]:
    where = f"the tape {str(path)!r}"
    content = _content(path)
    try:
        saved = SavedTapes.model_validate_json(content)
    except ValidationError as error:
        raise InvalidInputError(_reason(error, content, str(path))) from None
    for number, document in enumerate(saved.tapes):
        require_sound(document, where if len(saved.tapes) == 1 else f"{where}: tapes.{number}")
    if saved.pieces:
        require_pieces(saved, where)
    return saved.pieces, tuple(_tape(document) for document in saved.tapes)


def is_tape(path: str | Path) -> bool:
    """Whether there is a file that begins as saved tapes do, whatever it is called."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError):
        return False


def _content(path: str | Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            content = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"cannot read the tape {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"cannot read the tape {str(path)!r}: {error}") from None
    if len(content) > LIMIT_BYTES:
        raise InvalidInputError(f"the tape {str(path)!r} holds more than {LIMIT_BYTES // MiB} MiB, which no recording does")
    return content


def _reason(error: ValidationError, content: bytes, path: str) -> str:
    """One line for the first thing that is wrong; that it is no tape, or one of another version, goes before."""
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{path!r} is not a saved tape: expected the file written by Tape.save"
    if version != SCHEMA_VERSION or isinstance(version, bool):
        return f"the tape {path!r} has schema version {shown(version)}, this bsmodel reads {SCHEMA_VERSION}: record it again"
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    place = place[2:] if place[:2] == ["tapes", "0"] else place
    field, message = ".".join(place) or "the document", first["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    if first["type"] == "missing":
        return f"the tape {path!r}: {field} is missing"
    return f"the tape {path!r}: {field} is {shown(first['input'])}: {message[0].lower()}{message[1:]}"


def _require_one_workload(tapes: Sequence[Tape], where: str) -> None:
    if not tapes:
        raise InvalidInputError(f"{where}: there is none; expected at least one")
    for other in tapes[1:]:
        for name in _SAME:
            if getattr(other, name) != getattr(tapes[0], name):
                one, another = shown(getattr(tapes[0], name)), shown(getattr(other, name))
                raise InvalidInputError(f"{where}: {name} is {one} in one recording and {another} in another; a file is for one workload and recipe")
    families = [tape.gpu.kernel_family for tape in tapes]
    if twice := [family for family in families if families.count(family) > 1]:
        raise InvalidInputError(f"{where}: two recordings are for compute capability {twice[0][0]}.{twice[0][1]}; a file has one for each")


def _document(tape: Tape) -> dict[str, Any]:
    plain = {field.name: getattr(tape, field.name) for field in fields(tape)}
    document = {**plain, "gpu": tape.gpu.model_dump(mode="json"), "operations": tape.operations.document()}
    document.update((name, plain[name].tolist()) for name in SIZES)
    document["workspaces"] = [[number, workspace.kind, astuple(workspace.excess)] for number, workspace in tape.workspaces.items()]
    document["streams"], document["lent"] = list(tape.streams.items()), list(tape.lent.items())
    document["collectives"] = [(each.kind, astuple(each.size), *each[2:]) for each in tape.collectives]
    document["worst"] = tape.worst and _document(tape.worst)
    document["terms"] = [[number, term.formula, [astuple(parameter) for parameter in term.parameters]] for number, term in tape.terms.items()]
    for name in WORDS:
        words = sorted(set(plain[name]))
        index = {word: position for position, word in enumerate(words)}
        document[name] = {"words": words, "index": [index[word] for word in plain[name]]}
    return document


def _tape(saved: SavedTape) -> Tape:
    plain = {field.name: getattr(saved, field.name) for field in fields(Tape)}
    for name in WORDS:
        words = plain[name].words
        plain[name] = tuple(words[position] for position in plain[name].index)
    for name in SIZES:
        plain[name] = np.array(plain[name], np.int64)
    plain["terms"] = {number: Term(formula, tuple(Polynomial(*each) for each in parameters)) for number, formula, parameters in saved.terms}
    plain["workspaces"] = {number: Workspace(kind, Polynomial(*excess)) for number, kind, excess in saved.workspaces}
    plain["collectives"] = tuple(Collective(each[0], Polynomial(*each[1]), *each[2:]) for each in saved.collectives)
    plain["streams"], plain["lent"] = dict(saved.streams), dict(saved.lent)
    plain["waits"] = {name: tuple(Wait(*each) for each in found) for name, found in saved.waits.items()}
    plain["worst"] = saved.worst and _tape(saved.worst)
    plain["operations"] = Operations.of(dict(saved.operations))
    return Tape(**plain)
