# SPDX-License-Identifier: Apache-2.0
"""Tables of the text as those of a page, and what was asked, by name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bsmodel.command.terminal import Cell
from bsmodel.pages import Column, Table

_ASKED = (("Target batch", "target_batch"), ("Samples", "samples"), ("Epochs", "epochs"), ("Devices", "devices"), ("Batch", "batch"))


def written(name: str, caption: str, columns: Sequence[tuple[str, str]], lines: Sequence[Sequence[Cell]]) -> Table:
    """A table of the text as one of the page."""
    cells = [tuple(str(line[place]) for line in lines) for place in range(len(columns))]
    return Table(name, caption, tuple(Column(heading, own, side == "right") for (heading, side), own in zip(columns, cells, strict=True)))


def what_was_asked(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The numbers on the command line, each with its name."""
    known = [(name, getattr(options, field, None)) for name, field in _ASKED]
    return [(name, ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}".removesuffix(".0")) for name, value in known if value is not None]
