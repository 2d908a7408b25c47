# SPDX-License-Identifier: Apache-2.0
"""An answer of a command: as a document, as text, and whether anything fits."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from bsmodel.command.documents import Document
from bsmodel.errors import InvalidInputError


@dataclass(frozen=True)
class Answer:
    """What a command found. `text` is printed, or with `--json` the document, where the text is not the whole answer (`plain`)."""

    document: Document
    text: str
    fits: bool = True
    plain: bool = False


def write_answer(text: str) -> None:
    """Writes to stdout; nothing more where whoever read it has left, which changes no verdict. Raises `InvalidInputError` where it cannot be written."""
    try:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError as error:
        raise InvalidInputError(f"cannot write the answer: {error.strerror}") from None
