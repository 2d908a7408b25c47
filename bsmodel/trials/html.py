# SPDX-License-Identifier: Apache-2.0
"""A trial as one self-contained HTML page: charts that stand still without a script and answer with it, tables; nothing is loaded from elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.trials import looks, tables
from bsmodel.trials.results import Recommendation, Trial
from bsmodel.trials.tables import Column, Table

_BAD = ' class="bad"'
_JOINED = "\u00a0["  # a unit stays with what it is of
# What a browser is told to allow: no address is asked for anything.
_SAFE = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --rule: #d8dee4; --page: #ffffff; --card: #f6f8fa; --bad: #cf222e; WHITE }
@media screen and (prefers-color-scheme: dark) {
:root { --ink: #e6edf3; --soft: #9198a1; --rule: #30363d; --page: #0d1117; --card: #161b22; --bad: #f85149; BLACK } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page) }
body { margin: 0 auto; max-width: 110rem; padding: 1rem clamp(.8rem, 3vw, 3rem) 3rem }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem }
p, li, dd { max-width: 80ch; overflow-wrap: anywhere } ul { padding-left: 1.2rem } .why, figcaption, caption { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem; margin: 0 } dt { color: var(--soft) } dd { margin: 0 }
.top h2 { margin-top: .6rem }
.found { background: var(--card); border-left: 4px solid var(--k0); padding: .6rem 1.2rem } .found ul { margin: 0 }
.top, .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2.5rem }
figure { margin: 0; min-width: 0; max-width: 60rem } figcaption { margin-bottom: .4rem; font-size: .93rem } figcaption b { color: var(--ink); display: block }
.live, .live > div { width: 100% } svg { display: block; max-width: 100%; height: auto } .still svg { width: 100% }
.kinds { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; color: var(--ink) }
.legend { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: .6rem 0 1rem }
.legend button { font: inherit; color: inherit; background: var(--page); padding: .15rem .8rem; cursor: pointer }
.legend button { border: 1px solid var(--rule); border-radius: 1rem }
.legend button[aria-pressed=true] { border-color: var(--ink); background: var(--card); font-weight: 600 }
:focus-visible { outline: 3px solid var(--k0); outline-offset: 2px }
i { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .4em }
.scroll { overflow-x: auto; margin: 1rem 0; min-width: 0 }
table { min-width: min(100%, 26rem); border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
caption { text-align: left; padding-bottom: .4rem; position: sticky; left: 0; max-width: min(80ch, 88vw) }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: bottom; white-space: nowrap }
thead th { color: var(--soft); font-weight: 600; white-space: normal; min-width: 5.5rem } .r { text-align: right } .bad { color: var(--bad); font-weight: 600 }
tbody th, td { vertical-align: top } tbody th { position: sticky; left: 0; background: var(--page) } tr.chosen > * { background: var(--card); font-weight: 600 }
#vg-tooltip-element { position: fixed; visibility: hidden; z-index: 9; pointer-events: none; padding: .4rem .6rem; font-size: 13px; max-width: 90vw }
#vg-tooltip-element.visible { visibility: visible; background: var(--page); border: 1px solid var(--rule); box-shadow: 0 2px 8px #0004 }
#vg-tooltip-element table { font-size: 13px } #vg-tooltip-element td { border: 0; padding: 0 .6rem 0 0; white-space: normal }
#vg-tooltip-element .key { color: var(--soft) }
@media print { @page { size: landscape; margin: 12mm } body { font-size: 12px; padding: 0 } figure, tr, .found { break-inside: avoid } h2 { break-after: avoid }
.scroll { overflow: visible } table { font-size: 8px } th, td { white-space: normal; padding-right: 3px }
thead th { min-width: 0 } .legend button { border: 0; padding: 0 .4rem } }
"""

_SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent), views = [];
for (const [name, spec] of Object.entries(charts)) {
  const figure = document.getElementById(name), live = figure.querySelector(".live"), still = figure.querySelector(".still");
  still.hidden = true;
  vegaEmbed(live, {...spec, width: "container"}, {actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: {disableDefaultStyle: true}})
    .then(made => { views.push(made.view); still.remove() }, () => { still.hidden = false });
}
const buttons = [...document.querySelectorAll(".legend button")];
for (const button of buttons) button.addEventListener("click", () => {
  const on = button.getAttribute("aria-pressed") !== "true", batch = on ? Number(button.dataset.batch) : 0;
  for (const each of buttons) each.setAttribute("aria-pressed", String(on && each.dataset.batch === button.dataset.batch));
  for (const view of views) view.signal("CHOSEN", batch).run();
  for (const line of document.querySelectorAll("tr[data-batch]")) line.classList.toggle("chosen", Number(line.dataset.batch) === batch);
});
"""


def page(trial: Trial, costs: Sequence[Recommendation] = ()) -> str:
    """The trial as one HTML page; `costs` are recommendations for other cards, beside that for the one it ran on.

    Raises `InvalidInputError` where altair or vl-convert is not installed.
    """
    _require_charts()
    from bsmodel.trials.sections import sections

    own, batches = trial.recommended, [rung.batch for rung in trial.by_rung]
    told = (*((own,) if own is not None else ()), *costs)
    parts = sections(trial, told, looks.of_page(len(batches)))
    name = f"Trial of {trial.question.get('workload', 'a workload')}"
    body = [f"<header><h1>{escape(name)}</h1></header>", "<main>", f'<div class="top">{_found(trial, told)}{_asked(trial)}</div>']
    if batches:
        body.append(f"<section><h2>Every batch</h2>{_table(tables.of_batches(trial))}</section>")
    body += [_section(part, _legend(batches) if place == 0 and part.drawings else "") for place, part in enumerate(parts)]
    specs = {drawing.name: drawing.spec for part in parts for drawing in part.drawings}
    return _document(name, len(batches), "\n".join([*body, "</main>", _scripts(specs) if specs else ""]))


def picture(trial: Trial) -> str:
    """The loss of each batch against samples seen as SVG, for a README.

    Raises `InvalidInputError` where altair or vl-convert is not installed, or there is no loss to draw.
    """
    _require_charts()
    from bsmodel.trials import charts, drawn

    if not drawn.losses(trial):
        raise InvalidInputError("there is nothing to draw: no run of the trial has made a step whose loss is a number")
    spec = charts.loss(trial, "samples", looks.of_picture(len(trial.by_rung)))
    return _svg(spec)


def _require_charts() -> None:
    for name, package in (("altair", "altair"), ("vl_convert", "vl-convert-python")):
        if importlib.util.find_spec(name) is None:
            raise InvalidInputError(f'a page needs {package}, which is not installed; pip install "bsmodel[page]"')


def _svg(spec: dict[str, Any]) -> str:
    """A chart that stands still; what answers to a pointer is left out."""
    import vl_convert

    from bsmodel.trials.charts import HOVER, VERSION

    layers = [layer for layer in spec["layer"] if layer.get("name") != HOVER]
    found: str = vl_convert.vegalite_to_svg({**spec, "layer": layers}, vl_version=VERSION)
    return re.sub(r' (?:d|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), found)  # hundredths of a pixel are enough


@functools.cache
def _bundle(version: str) -> str:
    """Vega, Vega-Lite and vega-embed as one script, the same for all charts of a page."""
    import vl_convert

    found: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return found.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _scripts(specs: dict[str, dict[str, Any]]) -> str:
    from bsmodel.trials.charts import VERSION

    data = json.dumps(specs, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    own = _SCRIPT.replace("CHOSEN", looks.CHOSEN)
    return f'<script type="application/json" id="charts">{data}</script>\n<script>{_bundle(VERSION)}</script>\n<script>{own}</script>'


# -- parts ---------------------------------------------------------------------------------------------------------------------------------


def _document(name: str, batches: int, body: str) -> str:
    style = _STYLE.replace("WHITE", looks.variables(batches, dark=False)).replace("BLACK", looks.variables(batches, dark=True))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{_SAFE}">'
    head += f"<title>bsmodel: {escape(name)}</title><style>{style}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _found(trial: Trial, told: Sequence[Recommendation]) -> str:
    return f'<section><h2>What came of it</h2><div class="found">{_list(tables.findings(trial, told))}</div></section>'


def _asked(trial: Trial) -> str:
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in tables.facts(trial))
    remarks = f'<div class="why">{_list(trial.remarks)}</div>' if trial.remarks else ""
    return f"<section><h2>What was tried</h2><dl>{told}</dl>{remarks}</section>"


def _legend(batches: Sequence[int]) -> str:
    """Buttons that show one batch in all charts; without a script they only name its colour."""
    buttons = [
        f'<button type="button" aria-pressed="false" data-batch="{batch}"><i style="background:var(--b{place})"></i>{batch:,}</button>'
        for place, batch in enumerate(batches)
    ]
    return f'<div class="legend" role="group" aria-label="Show one batch in all charts"><span>Batch</span>{"".join(buttons)}</div>'


def _section(part: Any, legend: str) -> str:
    said = f'<p class="why">{escape(" ".join(part.said))}</p>'
    drawings = "".join(map(_figure, part.drawings))
    table = "" if part.table is None else _table(part.table)
    beside, below = (table, "") if len(part.drawings) == 1 else ("", table)
    charts = f'{legend}<div class="charts">{drawings}{beside}</div>' if drawings else ""
    return f"<section><h2>{escape(part.title)}</h2>{said}{charts}{below}</section>"


def _figure(drawing: Any) -> str:
    kinds = "".join(f'<span><i style="background:var(--k{place})"></i>{escape(kind)}</span>' for place, kind in drawing.kinds)
    legend = f'<span class="kinds">{kinds}</span>' if kinds else ""
    caption = f"<figcaption><b>{escape(drawing.title)}</b>{escape(drawing.caption)}{legend}</figcaption>"
    return f'<figure id="{drawing.name}">{caption}<div class="still">{_svg(drawing.spec)}</div><div class="live"></div></figure>'


def _table(table: Table) -> str:
    top = "".join(f'<th scope="col"{_side(column)}>{escape(column.heading.replace(" [", _JOINED))}</th>' for column in table.columns)
    lines = []
    for batch, cells in zip(table.keys, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        first, *rest = (_cell(column, cell, place == 0) for place, (column, cell) in enumerate(zip(table.columns, cells, strict=True)))
        lines.append(f'<tr data-batch="{batch}">{first}{"".join(rest)}</tr>')
    inside = f"<table><caption>{escape(table.caption)}</caption><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}">{inside}</div>'


def _cell(column: Column, cell: str, heads: bool) -> str:
    if heads:
        return f'<th scope="row"{_side(column)}>{escape(cell)}</th>'
    wrong = "out of memory" in cell or "diverged" in cell
    return f"<td{_BAD if wrong else _side(column)}>{escape(cell).replace(' (', '<br>(', 1)}</td>"


def _side(column: Column) -> str:
    return ' class="r"' if column.right else ""
