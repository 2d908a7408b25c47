# SPDX-License-Identifier: Apache-2.0
"""`--emit FRAMEWORK[=FILE]` of `bsmodel plan`: what is asked for, and the files that it comes to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from bsmodel.command import arguments
from bsmodel.configs import emit, require_settings, rule_of
from bsmodel.errors import InvalidInputError
from bsmodel.files import require_writable, write_whole
from bsmodel.hardware import Gpu
from bsmodel.studies import Row


def asked(options: argparse.Namespace, of_lengths: bool) -> dict[str, str]:
    """The framework of each file that is asked for; refused where one is written twice, or cannot be written."""
    files: dict[str, str] = {}
    taken = {os.path.realpath(path) for path in (options.html, options.save) if path}
    for text in options.emit:
        framework, _, name = text.partition("=")
        path = os.path.realpath(name or rule_of(framework).file)
        rule_of(framework)
        if path in taken or path in files:
            raise InvalidInputError(f"--emit {text} writes {os.path.relpath(path)!r}, which something else is written to; give {framework}=FILE")
        files[str(require_writable(path, f"the file for {framework}"))] = framework
    if files and of_lengths:
        raise InvalidInputError("--emit writes a plan of samples of one length; give one, and no --lengths")
    return files


def require_followed(files: Mapping[str, str], options: argparse.Namespace, gpus: Sequence[Gpu]) -> None:
    """Raises `InvalidInputError` where it is not said of which card the plan is, or a flag says what a framework cannot do; before any work."""
    if files and len(gpus) > 1:
        raise InvalidInputError(f"--emit writes the plan of one GPU, and {len(gpus)} are asked about: choose by --gpu, of {', '.join(gpu.id for gpu in gpus)}")
    for framework in files.values():
        require_settings(framework, arguments.changes(options), gpus[0], options.devices)


def written(files: Mapping[str, str], row: Row, gpu: Gpu) -> list[str]:
    """Write the files, none of them where one cannot be made, and say which they are, with what has no room in them."""
    made = {path: emit(row, framework, gpu) for path, framework in files.items()}
    notes = []
    for path, one in made.items():
        write_whole(path, one.text.encode(), f"the file for {one.framework}")
        unsaid = [line for line in one.said if line not in one.text]
        notes.append("; ".join([f"{one.framework}: {os.path.relpath(path)} is written", *unsaid]))
    return notes
