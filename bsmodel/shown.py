# SPDX-License-Identifier: Apache-2.0
"""Values that show themselves in a notebook."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair


class Shown:
    """A value that a notebook shows as a table, with the numbers that the command prints."""

    __slots__ = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        found: dict[str, Any] = _notebook().bundle(self)
        return found


class Charted(Shown):
    """A value that has a chart as well, which a notebook shows below the table."""

    __slots__ = ()

    def plot(self) -> altair.LayerChart:
        """The chart that a notebook shows, to be changed or saved.

        Raises `InvalidInputError` where altair or vl-convert is not installed, or there is nothing to draw.
        """
        found: altair.LayerChart = _notebook().chart(self)
        return found


def _notebook() -> Any:
    """By name: what values show is known to the room above all others, and these only know those below them."""
    return importlib.import_module("bsmodel.notebook")
