# SPDX-License-Identifier: Apache-2.0
"""Recordings kept in the user's cache folder, found again by everything that can change them; safe to delete at any time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel

from bsmodel.errors import InvalidInputError
from bsmodel.files import write_whole
from bsmodel.hardware import Gpu
from bsmodel.tape import STEP, Lengths, Tape, load_lengths, save_lengths
from bsmodel.training import Training
from bsmodel.workloads import Source, Workload

FOLDER_VARIABLE = "BSMODEL_CACHE_DIR"
_SHORTEST = STEP  # tokens: recordings at several lengths begin here, or at the shortest that is asked about
_LIBRARIES = ("torch", "fvcore", "transformers", "diffusers", "accelerate", "peft", "bitsandbytes", "torchao", "timm", "torchvision")


def cache_folder() -> Path:
    """Where recordings and answers are kept: `BSMODEL_CACHE_DIR`, else the system's folder for caches."""
    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_cache_dir("bsmodel", appauthor=False))


@functools.cache
def versions() -> dict[str, str]:
    """What computes an answer: Python, this package's own files, and the libraries whose code decides what a model allocates."""
    root = Path(__file__).parent.parent
    own = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):  # not the version alone: an editable installation changes under the same number
        status = path.stat()
        own.update(f"{path.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    found = {"python": platform.python_version(), "bsmodel": own.hexdigest()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def key_of(**facts: Any) -> str:
    """A name for these facts and the versions of all that computes with them; equal facts give equal names."""
    text = json.dumps({**facts, "versions": versions()}, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def keep(path: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all; where the folder cannot be written, nothing is kept."""
    with contextlib.suppress(OSError, InvalidInputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, "what is kept")


def kept_as(source: Source, changes: Mapping[str, Any], caching: bool | None) -> dict[str, Any] | None:
    """What tells a workload and recipe from others in the cache; None where they must not be kept.

    `caching`: False keeps nothing, True also what the user's own Python file makes. `changes` are the fields of the recipe that are not the
    workload's own; an optimizer that is no name cannot be told from another.
    """
    return None if caching is False or callable(changes.get("optimizer")) else source.identity(own=bool(caching))


def tape_path(source: Source, changes: Mapping[str, Any], family: tuple[int, int], caching: bool | None = None, **along: Any) -> Path | None:
    """Where the recording of this recipe on this family of cards is kept, or its recordings at several lengths; None where it must not be."""
    identity = kept_as(source, changes, caching)
    if identity is None:
        return None
    capability = f"{family[0]}.{family[1]}"
    key = key_of(workload=identity, recipe=dict(changes), capability=capability, **along)
    name = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in identity["name"].rpartition("/")[2])
    return cache_folder() / "recordings" / f"{name}-{capability}-{key}.json.gz"


def kept_tape(path: Path | None) -> Tape | None:
    """The recording kept there; None where there is none, or one that cannot be read."""
    if path is None or not path.is_file():
        return None
    try:
        return Tape.load(path)
    except InvalidInputError:
        return None


def kept_lengths(path: Path | None) -> Lengths | None:
    """The recordings at several lengths kept there; None where there are none, or some that cannot be read."""
    if path is None or not path.is_file():
        return None
    try:
        return next(iter(load_lengths(path)), None)
    except InvalidInputError:
        return None


def with_torch() -> Any:
    """The part of this room that records; raises `InvalidInputError` where torch, which it needs, is not installed."""
    try:
        return importlib.import_module("bsmodel.recording.tracing")  # takes two seconds
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in ("torch", "fvcore"):
            raise
        raise InvalidInputError(f'recording needs {name}, which cannot be imported ({error}); pip install "bsmodel[record]"') from None


def new_tape(workload: Workload, changes: Mapping[str, Any], gpu: Gpu) -> Tape:
    """A recording for the family of kernels of this card, with other values in some fields of the workload's recipe."""
    tape: Tape = with_torch().trace(workload, _recipe(workload, changes), _for_family(gpu))
    return replace(tape, gpu=gpu)  # the card itself, whose buffers may have other sizes than those of the one that stands for its family


def _named(tape: Tape, source: Source, gpu: Gpu) -> Tape:
    return replace(tape, gpu=gpu, options=dict(source.options))


def _recipe(workload: Workload, changes: Mapping[str, Any]) -> Training:
    return Training(**{**dict(workload.training), **changes})


def _for_family(gpu: Gpu) -> Gpu:
    major, minor = gpu.kernel_family
    return gpu.model_copy(update={"compute_capability": f"{major}.{minor}"})


def _workload(source: Source) -> Workload:
    with_torch()  # said before what else is missing
    with importlib.import_module("bsmodel.recording.cuda_like.flash").pretended():  # a file of the user's own may import it
        return source.workload()


def _keep(save: Callable[[Path], None], path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError, InvalidInputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path)


def recorded(source: Source, changes: Mapping[str, Any], gpu: Gpu, caching: bool | None = None) -> Tape:
    """The recording of a named workload for the kernels of this card: the one that is kept, else a new one, which is kept.

    `caching` as for `kept_as`. Raises what `trace` raises.
    """
    path = tape_path(source, changes, gpu.kernel_family, caching)
    tape = kept_tape(path)
    if tape is None:
        tape = _named(new_tape(_workload(source), changes, gpu), source, gpu)
        _keep(tape.save, path)
    return tape


def lengths_path(source: Source, changes: Mapping[str, Any], family: tuple[int, int], span: tuple[int, int], caching: bool | None = None) -> Path | None:
    """Where the recordings of this recipe at several lengths are kept; None where they must not be."""
    return tape_path(source, changes, family, caching, lengths=span)


def recorded_lengths(source: Source, changes: Mapping[str, Any], gpu: Gpu, span: tuple[int, int], caching: bool | None = None) -> Lengths:
    """The recordings of a named workload from a number of tokens to another: those that are kept, else new ones; raises what `trace_lengths` raises."""
    path = lengths_path(source, changes, gpu.kernel_family, span, caching)
    found = kept_lengths(path)
    if found is None:
        with_torch()

        def workload(length: int) -> Workload:
            return _workload(Source.of(source.name, **{**dict(source.options), "seq_len": length}))

        low, high = span
        first = workload(low)
        start = min(low, _SHORTEST) if first.tokens_per_sample == low else low  # sound has a length that is not one of tokens
        trace_lengths = importlib.import_module("bsmodel.recording.lengths").trace_lengths
        made: Lengths = trace_lengths(workload, _recipe(first, changes), _for_family(gpu), start, high)
        found = Lengths(tuple(replace(piece, tapes=tuple(_named(tape, source, gpu) for tape in piece.tapes)) for piece in made.pieces))
        _keep(lambda path: save_lengths([found], path), path)
    return found
