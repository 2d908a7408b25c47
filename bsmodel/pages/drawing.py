# SPDX-License-Identifier: Apache-2.0
"""What all charts share, as Vega-Lite by altair: their frame, what they tell of a point, and how they stand still."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import altair as alt
import vl_convert
from altair.utils.schemapi import debug_mode

from bsmodel.pages.looks import CHOSEN, Look
from bsmodel.recording import cache_folder, keep

WIDTH, HEIGHT = 560, 330  # [px], where nothing says how wide the page is
HOVER = "hover"  # the layer that only tells numbers, which a chart that stands still can do without
_VERSION = ".".join(alt.SCHEMA_VERSION.split(".")[:2])

_FORMATS = {"batch": ",d", "step": ",d", "steps": ",.4~r", "samples": ",.6~r", "seed": "d", "seconds": ",.4~r", "loss": ",.5~r"}
_TEXT = ("status", "by", "what")

Spec = dict[str, Any]
Rows = list[dict[str, Any]]
quick = debug_mode(False)  # decorates what draws: altair's checks take longer than all else, and tests make them


def told(*names: str, **titled: str) -> list[alt.Tooltip]:
    """What is told of a point: fields by name, or by name and title."""
    given = {name: name for name in names} | titled
    return [
        alt.Tooltip(f"{name}:N", title=title) if name in _TEXT else alt.Tooltip(f"{name}:Q", title=title, format=_FORMATS.get(name, ",.4~r"))
        for name, title in given.items()
    ]


def framed(layers: Sequence[Any], look: Look, description: str, rows: Rows | None = None, named: Mapping[str, Rows] = MappingProxyType({})) -> Spec:
    """The layers as one chart; `rows` are data of those that have none of their own, `named` what others name: altair copies neither."""
    axis = {"labelColor": look.soft, "titleColor": look.ink, "gridColor": look.grid, "domainColor": look.soft, "tickColor": look.soft}
    config = {
        "axis": axis | {"titleFontWeight": 600, "labelFontSize": 12, "titleFontSize": 12},
        "background": look.page if look.legend else "transparent",
        "font": "system-ui, sans-serif",
        "legend": {"labelColor": look.ink, "titleColor": look.ink, "labelFontSize": 12},
        "mark": {"aria": False},
        "padding": 4,
        "text": {"fontSize": 12},
        "view": {"stroke": None},
    }
    given: dict[str, Any] = {} if rows is None else {"data": alt.NamedData(name="rows")}  # all at once: each change would copy the chart
    chart = alt.layer(*layers, **given, width=WIDTH, height=HEIGHT, description=description, config=config)
    sets = ({} if rows is None else {"rows": rows}) | {**named}
    found = {**chart.to_dict(validate=False), "params": [{"name": CHOSEN, "value": 0}]}
    return {**found, "datasets": sets} if sets else found


def named(names: Sequence[str], look: Look) -> list[Any]:
    """The names of the first colours of `kinds`, for a chart that has them without a scale; a page writes them itself."""
    if not look.legend:
        return []
    colour = alt.Color("name:N", legend=alt.Legend(title=None, orient="bottom", symbolType="square", symbolOpacity=1))
    colour = colour.scale(domain=list(names), range=list(look.kinds[: len(names)]))
    at = alt.Chart(alt.Data(values=[{"name": name} for name in names]))
    return [at.mark_point(filled=True, opacity=0).encode(x=alt.value(0), y=alt.value(0), color=colour)]


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
