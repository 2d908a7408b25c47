# SPDX-License-Identifier: Apache-2.0
"""A value as Jupyter's kinds of data: its text, its tables as HTML with a chart that loads nothing, and that chart as Vega-Lite."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bsmodel.errors import InvalidInputError
from bsmodel.notebook.tables import tables_of
from bsmodel.pages import Column, Table, require_charts
from bsmodel.shown import Charted, Shown

if TYPE_CHECKING:
    import altair

    from bsmodel.pages import Spec

_SHORT = 48  # letters of a text that stays on one line


def bundle(value: Shown) -> dict[str, Any]:
    """What Jupyter asks a value for: `text/plain`, `text/html` and, of one that has a chart and where altair is installed, Vega-Lite."""
    lines, found = [_table(table) for table in tables_of(value)], dict[str, Any]({"text/plain": repr(value)})
    if isinstance(value, Charted):
        try:
            spec = _spec(value)
        except InvalidInputError as error:
            lines.append(f"<p>There is no chart: {escape(str(error))}.</p>")
        else:
            lines.append(_picture(spec))
            found[_kind(spec)] = spec
    return found | {"text/html": "\n".join(lines)}


def chart(value: Charted) -> altair.LayerChart:
    """The chart of a value; raises `InvalidInputError` where altair or vl-convert is not installed, or there is nothing to draw."""
    spec = _spec(value)
    import altair

    return altair.LayerChart.from_dict(spec)


def _spec(value: Charted) -> Spec:
    require_charts("a chart")
    from bsmodel.notebook.charts import chart_of

    return chart_of(value)


def _kind(spec: Spec) -> str:
    """`application/vnd.vegalite.v6+json`, or as the schema of the installed altair has it."""
    return f"application/vnd.vegalite.{spec['$schema'].rpartition('/')[2].partition('.')[0]}+json"


def _picture(spec: Spec) -> str:
    """The chart as it stands still: a notebook that is not trusted shows it too, with its own white ground in a dark one."""
    from bsmodel.pages import still

    drawn = base64.b64encode(still(spec).encode()).decode()
    return f'<img alt="{escape(spec["description"])}" src="data:image/svg+xml;base64,{drawn}">'


def _table(table: Table) -> str:
    """A table without colours of its own: it has those of the notebook."""
    top = "".join(f"<th{_side(column)}>{escape(column.heading)}</th>" for column in table.columns)
    lines = "".join(f"<tr>{_cells(table.columns, cells)}</tr>" for cells in table.lines)
    caption = f'<caption style="caption-side:top;text-align:left">{escape(table.caption)}</caption>'
    return f"<table>{caption}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _cells(columns: Sequence[Column], cells: Sequence[str]) -> str:
    return "".join(f"<td{_side(column)}>{escape(cell)}</td>" for column, cell in zip(columns, cells, strict=True))


def _side(column: Column) -> str:
    whole = ";white-space:nowrap" if column.right or max(map(len, column.cells), default=0) <= _SHORT else ""
    return f' style="text-align:{"right" if column.right else "left"}{whole}"'
