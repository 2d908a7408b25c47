# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures that options name: what cannot be drawn or written is said before the work, not after."""

from __future__ import annotations

from pathlib import Path

from bsmodel.files import require_writable, write_whole
from bsmodel.pages import require_charts

PAGE, PICTURE = "the page", "the picture"


def require_drawable(path: str | Path | None, what: str = PAGE) -> None:
    """Raises `InvalidInputError` for a page or picture that cannot be drawn or written; None is none."""
    if path:
        require_charts(f"a {what.removeprefix('the ')}")
        require_writable(path, what)


def write(path: str | Path, text: str, what: str = PAGE) -> None:
    """Writes a page or picture, whole or not at all; raises `InvalidInputError` where that fails."""
    write_whole(path, text.encode(), what)
