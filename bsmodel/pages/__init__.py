# SPDX-License-Identifier: Apache-2.0
"""A page that people look at: its frame, colours, tables and charts, in one file that loads nothing from elsewhere."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsmodel.pages.comparisons import Comparison
from bsmodel.pages.curves import Curve, Reach, signed
from bsmodel.pages.looks import CHOSEN, KINDS, Look, of_page, of_picture
from bsmodel.pages.offers import Offer, frontier
from bsmodel.pages.parts import ITSELF, UNKNOWN, Choice, Column, Drawing, Section, Table, as_csv, number, short
from bsmodel.pages.tiles import Tile, brief, least_width
from bsmodel.pages.writing import document, head, require_charts

if TYPE_CHECKING:
    from bsmodel.pages.batches import MEMORY, SECONDS, memory, step_seconds, throughput
    from bsmodel.pages.busy import spent
    from bsmodel.pages.drawing import HOVER, Spec, framed, named, still, told
    from bsmodel.pages.grids import grid
    from bsmodel.pages.holding import categories, icicle
    from bsmodel.pages.lengths import by_length, largest_by_length
    from bsmodel.pages.measured import BAND, error_shares, predicted_against_measured, relative_errors
    from bsmodel.pages.renting import costs
    from bsmodel.pages.stacking import passing

__all__ = (
    "BAND",
    "CHOSEN",
    "HOVER",
    "ITSELF",
    "KINDS",
    "MEMORY",
    "SECONDS",
    "UNKNOWN",
    "Choice",
    "Column",
    "Comparison",
    "Curve",
    "Drawing",
    "Look",
    "Offer",
    "Reach",
    "Section",
    "Spec",
    "Table",
    "Tile",
    "as_csv",
    "brief",
    "by_length",
    "categories",
    "costs",
    "document",
    "error_shares",
    "framed",
    "frontier",
    "grid",
    "head",
    "icicle",
    "largest_by_length",
    "least_width",
    "memory",
    "named",
    "number",
    "of_page",
    "of_picture",
    "passing",
    "predicted_against_measured",
    "relative_errors",
    "require_charts",
    "short",
    "signed",
    "spent",
    "step_seconds",
    "still",
    "throughput",
    "told",
)

_HOMES = dict.fromkeys(("MEMORY", "SECONDS", "memory", "step_seconds", "throughput"), "batches")
_HOMES |= dict.fromkeys(("categories", "icicle"), "holding")
_HOMES |= dict.fromkeys(("BAND", "error_shares", "predicted_against_measured", "relative_errors"), "measured")
_HOMES |= dict.fromkeys(("by_length", "largest_by_length"), "lengths")
_HOMES |= {"costs": "renting", "grid": "grids", "passing": "stacking", "spent": "busy"}
_HOMES |= dict.fromkeys(("HOVER", "Spec", "framed", "named", "still", "told"), "drawing")


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # what needs altair is imported when it is asked for
        return getattr(importlib.import_module(f"bsmodel.pages.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bsmodel.pages' has no attribute {name!r}")
