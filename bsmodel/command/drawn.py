# SPDX-License-Identifier: Apache-2.0
"""Pages and pictures that options name: what cannot be drawn or written is said before the work, not after."""

from __future__ import annotations

from bsmodel.files import require_writable
from bsmodel.pages import require_charts

PAGE, PICTURE = "the page", "the picture"


def require_drawable(path: str | None, what: str = PAGE) -> None:
    """Raises `InvalidInputError` for a page or picture that cannot be drawn or written; None is none."""
    if path:
        require_charts(f"a {what.removeprefix('the ')}")
        require_writable(path, what)
