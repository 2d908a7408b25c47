# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whoever else writes or reads them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from bsmodel.errors import InvalidInputError


def require_writable(path: str | Path, what: str) -> Path:
    """The file that `path` means, symbolic links followed; `InvalidInputError` where no regular file could stand there."""
    if "\0" in str(path):
        raise InvalidInputError(f"cannot write {what} {str(path)!r}: no file has such a name")
    target = Path(os.path.realpath(path))
    wrong = ""
    try:
        wrong = "" if stat.S_ISREG(target.stat().st_mode) else "it is there, and no regular file"
    except FileNotFoundError:
        wrong = "" if target.parent.is_dir() else "No such file or directory"
    except OSError as error:
        wrong = error.strerror or str(error)
    if wrong:
        raise InvalidInputError(f"cannot write {what} {str(path)!r}: {wrong}")
    return target


def write_whole(path: str | Path, content: bytes, what: str) -> None:
    """Put `content` in the place of the file at `path`, in one step: a reader finds all of the old or all of the new one.

    What is not had: a process that is killed (SIGKILL) while it writes leaves its part beside the file, named `.bsmodel-....part`; and
    nothing is forced onto the disk, so that a power cut may undo it. Raises `InvalidInputError` where it cannot be written.
    """
    target = require_writable(path, what)
    partial = target.with_name(f".bsmodel-{os.getpid()}-{secrets.token_hex(6)}.part")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
        partial.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InvalidInputError(f"cannot write {what} {str(path)!r}: {error.strerror or error}") from None
