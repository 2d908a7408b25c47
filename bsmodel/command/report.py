# SPDX-License-Identifier: Apache-2.0
"""An answer of a command: as a document, as text, and whether anything fits."""

from __future__ import annotations

from dataclasses import dataclass

from bsmodel.command.documents import Document


@dataclass(frozen=True)
class Answer:
    """What a command found. `text` is printed, or with `--json` the document, where the text is not the whole answer (`plain`)."""

    document: Document
    text: str
    fits: bool = True
    plain: bool = False
