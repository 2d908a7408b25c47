# SPDX-License-Identifier: Apache-2.0
"""Rows to one self-contained HTML page: plots drawn as SVG by hand, tables, light and dark; no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from bsmodel.units import GiB
from bsmodel.validation import rows, summary
from bsmodel.validation.summary import Pair

_SHOWN = 30  # bars in an error plot; the table below has every case
_LEFT, _TOP, _SIDE = 62, 14, 380  # of the scatter plot [px]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --rule: #d1d9e0; --page: #ffffff; --one: #0969da; --two: #bc4c00; --bad: #cf222e }
@media (prefers-color-scheme: dark) {
:root { --ink: #e6edf3; --soft: #9198a1; --rule: #3d444d; --page: #0d1117; --one: #4493f8; --two: #f0883e; --bad: #f85149 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } .plots h2 { margin-top: 0 }
ul { color: var(--soft); padding-left: 1.2rem }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; align-items: flex-start }
figure { margin: 0; max-width: 100% } figcaption { color: var(--soft); margin-bottom: .4rem }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top }
th { color: var(--soft); font-weight: 600 } .r { text-align: right; white-space: nowrap } .bad { color: var(--bad); font-weight: 600 }
.soft { fill: var(--soft) } .rule { stroke: var(--rule); stroke-width: 1; fill: none } .axis { stroke: var(--soft); stroke-width: 1; fill: none }
.one { fill: var(--one) } .two { fill: var(--two) } .dot { fill-opacity: .6 }
circle.two { fill: none; stroke: var(--two); stroke-width: 1.5 }
"""


def page(found: Sequence[rows.Row]) -> str:
    """The report of the rows as one HTML page."""
    facts = "".join(f"<li>{escape(line)}</li>" for line in (*summary.surroundings(found), *summary.remarks(found)))
    plots, tables = _plots(found), [_table(*table) for table in summary.tables(found)]
    first = plots[:1] + tables[:1] if plots else []  # the table of errors stands beside the scatter plot
    body = ["<h1>Predicted against measured</h1>", f"<ul>{facts}</ul>", f'<div class="plots">{"".join(map(_boxed, first + plots[1:]))}</div>']
    body += tables[1:] if plots else tables
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>bsmodel: predicted against measured</title><style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _boxed(part: str) -> str:
    return f"<div>{part}</div>"


def _plots(found: Sequence[rows.Row]) -> list[str]:
    memory = {figure: summary.pairs(found, figure) for figure in ("allocated", "reserved")}
    plots = []
    if memory["allocated"]:
        title = "Peak memory, predicted against measured; on the line they are equal"
        plots.append(_figure(title, scatter(memory, GiB, "GiB")))
    if times := summary.pairs(found, "step"):
        plots.append(_figure("Step time, predicted against measured", scatter({"step": times}, 1e-3, "ms")))
    for figure in summary.FIGURES:
        if pairs := summary.pairs(found, figure):
            shown = f", the worst {_SHOWN} of {len(pairs)} cases" if len(pairs) > _SHOWN else ""
            plots.append(_figure(f"Error of {summary.NAMES[figure]}, worst first{shown}", bars(pairs[:_SHOWN])))
    return plots


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _table(title: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    sides = [' class="r"' if heading.startswith(">") else "" for heading in headings]
    top = "".join(f"<th{side}>{escape(heading.lstrip('>'))}</th>" for side, heading in zip(sides, headings, strict=True))
    lines = []
    for line in body:
        cells = [f"<td{_side(side, cell)}>{escape(cell)}</td>" for side, cell in zip(sides, line, strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<h2>{escape(title)}</h2><div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _side(side: str, cell: str) -> str:
    return ' class="bad"' if cell.startswith(("OUT OF MEMORY", "DIFFER")) else side


# -- scatter -----------------------------------------------------------------------------------------------------------------------------


def scatter(groups: dict[str, list[Pair]], unit: float, unit_name: str) -> str:
    """Predicted over measured on logarithmic axes, one colour for each figure."""
    values = [value / unit for pairs in groups.values() for pair in pairs for value in (pair.predicted, pair.measured)]
    low, high = min(values) / 1.15, max(values) * 1.15

    def at(value: float) -> float:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) * _SIDE

    def xy(measured: float, predicted: float) -> tuple[float, float]:
        return _LEFT + at(measured), _TOP + _SIDE - at(predicted)

    diagonal = f'<line class="axis" x1="{_LEFT}" y1="{_TOP + _SIDE}" x2="{_LEFT + _SIDE}" y2="{_TOP}"/>'
    parts = [*_axes(low, high, at, unit_name), diagonal]
    for colour, (figure, pairs) in zip(("one", "two"), groups.items(), strict=False):
        for pair in pairs:
            x, y = xy(pair.measured / unit, pair.predicted / unit)
            label = f"{pair.case}: {summary.NAMES[figure]} {pair.error:+.2%}"
            parts.append(f'<circle class="{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="{3 if colour == "one" else 5}"><title>{escape(label)}</title></circle>')
    if len(groups) > 1:
        for number, (colour, figure) in enumerate(zip(("one", "two"), groups, strict=False)):
            y = _TOP + 18 + 18 * number
            parts.append(f'<circle class="{colour}" cx="{_LEFT + 16}" cy="{y - 4}" r="4"/>')
            parts.append(f'<text x="{_LEFT + 26}" y="{y}">{escape(summary.NAMES[figure])}</text>')
    return _svg(_LEFT + _SIDE + 18, _TOP + _SIDE + 44, parts, "scatter plot of predicted against measured values")


def ticks(low: float, high: float) -> list[float]:
    """Round values from low to high for a logarithmic axis: 1, 2 and 5 times powers of ten, or only powers where these are many."""
    found = [m * 10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    powers = [value for value in inside if math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)]
    return powers if len(inside) > 10 else inside


def _axes(low: float, high: float, at: Callable[[float], float], unit_name: str) -> list[str]:
    bottom = _TOP + _SIDE
    parts = [f'<rect class="axis" x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>']
    for value in ticks(low, high):
        x, y, text = _LEFT + at(value), bottom - at(value), f"{value:g}"
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<line class="rule" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _SIDE}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
        parts.append(f'<text class="soft" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = _TOP + _SIDE / 2
    parts.append(f'<text x="{_LEFT + _SIDE / 2}" y="{bottom + 37}" text-anchor="middle">measured [{unit_name}]</text>')
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">predicted [{unit_name}]</text>')
    return parts


# -- bars --------------------------------------------------------------------------------------------------------------------------------


def bars(pairs: Sequence[Pair]) -> str:
    """Signed errors as bars from a common zero, the case to the left and the number at the end of its bar."""
    labels = [_short(pair.case) for pair in pairs]
    label_width = 7.3 * max(len(label) for label in labels) + 12  # no measuring of text without a browser: wide enough for a wide font
    width, row, top = 250.0, 18, 4
    reach = max(*(abs(pair.error) for pair in pairs), 1e-4)
    number_width = 58.0
    zero = label_width + number_width + width / 2
    parts = []
    for position, (pair, label) in enumerate(zip(pairs, labels, strict=True)):
        y, length = top + row * position, abs(pair.error) / reach * width / 2
        x = zero if pair.error >= 0 else zero - length
        side, end = ("start", zero + length + 5) if pair.error >= 0 else ("end", zero - length - 5)
        parts.append(f'<text class="soft" x="{label_width - 8}" y="{y + 13}" text-anchor="end">{escape(label)}<title>{escape(pair.case)}</title></text>')
        parts.append(f'<rect class="{"two" if pair.error < 0 else "one"}" x="{x:.1f}" y="{y + 3}" width="{max(length, 0.6):.1f}" height="12"/>')
        parts.append(f'<text x="{end:.1f}" y="{y + 13}" text-anchor="{side}">{pair.error:+.2%}</text>')
    bottom = top + row * len(pairs)
    parts.append(f'<line class="axis" x1="{zero:.1f}" y1="{top}" x2="{zero:.1f}" y2="{bottom}"/>')
    parts.append(f'<text class="soft" x="{zero - 8:.1f}" y="{bottom + 16}" text-anchor="end">predicted too little</text>')
    parts.append(f'<text class="soft" x="{zero + 8:.1f}" y="{bottom + 16}">predicted too much</text>')
    return _svg(label_width + 2 * number_width + width, bottom + 24, parts, "bar plot of relative errors")


def _short(case: str) -> str:
    """A case without what its words can do without."""
    dropped = {" of the largest": "", "precision=": "", "optimizer=": "", "channels_last=True": "channels-last", "checkpointing=True": "checkpointing"}
    for long, short in dropped.items():
        case = case.replace(long, short)
    return case if len(case) <= 64 else case[:63] + "…"


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" {size}>{"".join(parts)}</svg>'
