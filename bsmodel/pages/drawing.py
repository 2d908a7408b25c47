# SPDX-License-Identifier: Apache-2.0
"""What all charts share, as Vega-Lite by altair: their frame, what they tell of a point, and how they stand still."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from bsmodel.pages.looks import CHOSEN, Look
from bsmodel.recording import cache_folder, keep

WIDTH, HEIGHT = 560, 330  # [px], where nothing says how wide the page is
HOVER = "hover"  # the layer that only tells numbers, which a chart that stands still can do without
_VERSION = ".".join(alt.SCHEMA_VERSION.split(".")[:2])

_FORMATS = {"batch": ",d", "step": ",d", "steps": ",.4~r", "samples": ",.6~r", "seed": "d", "seconds": ",.4~r", "loss": ",.5~r"}
_TEXT = ("status", "by", "what")

Spec = dict[str, Any]


def told(*names: str, **titled: str) -> list[alt.Tooltip]:
    """What is told of a point: fields by name, or by name and title."""
    given = {name: name for name in names} | titled
    return [
        alt.Tooltip(f"{name}:N", title=title) if name in _TEXT else alt.Tooltip(f"{name}:Q", title=title, format=_FORMATS.get(name, ",.4~r"))
        for name, title in given.items()
    ]


def framed(layers: Sequence[Any], look: Look, description: str, rows: Sequence[dict[str, Any]] | None = None) -> Spec:
    """The layers as one chart; `rows` are data of those that have none of their own, kept once."""
    chart = alt.layer(*layers) if rows is None else alt.layer(*layers, data=alt.NamedData(name="rows"))
    axis = alt.AxisConfig(labelColor=look.soft, titleColor=look.ink, gridColor=look.grid, domainColor=look.soft, tickColor=look.soft)
    axis = alt.AxisConfig(**axis.to_dict(), titleFontWeight=600, labelFontSize=12, titleFontSize=12)
    chart = chart.add_params(alt.param(name=CHOSEN, value=0)).properties(width=WIDTH, height=HEIGHT, description=description)
    background = look.page if look.legend else "transparent"
    chart = chart.configure(background=background, font="system-ui, sans-serif", axis=axis, mark=alt.MarkConfig(aria=False), padding=4)
    chart = chart.configure_view(stroke=None).configure_text(fontSize=12).configure_legend(labelColor=look.ink, titleColor=look.ink, labelFontSize=12)
    return chart.to_dict() if rows is None else {**chart.to_dict(), "datasets": {"rows": list(rows)}}


def still(spec: Spec) -> str:
    """A chart that stands still, as SVG; what answers to a pointer is left out."""
    layers = [layer for layer in spec["layer"] if layer.get("name") != HOVER]
    found: str = vl_convert.vegalite_to_svg({**spec, "layer": layers}, vl_version=_VERSION)
    return re.sub(r' (?:d|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), found)  # hundredths of a pixel are enough


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, the same for all charts; made in two seconds, and kept in the cache folder."""
    path = _place()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        made: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VERSION)
        found = made.replace("</script", "<\\/script").replace("<!--", "<\\!--")
        keep(path, found.encode())
        return found


def _place() -> Path:
    return cache_folder() / "pages" / f"vega-lite-{_VERSION}-by-{importlib.metadata.version('vl-convert-python')}.js"
