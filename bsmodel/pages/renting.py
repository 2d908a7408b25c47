# SPDX-License-Identifier: Apache-2.0
"""The chart of what a run costs against how long it takes, with the efficient ways numbered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from bsmodel.pages.drawing import HOVER, Rows, Spec, framed, quick
from bsmodel.pages.looks import Look
from bsmodel.pages.offers import Offer, frontier
from bsmodel.pages.parts import short


@quick
def costs(offers: Sequence[Offer], of: str, look: Look) -> Spec:
    """US dollars against hours, both logarithmic; `of` says of what. Ways to share have the colours of `kinds`, the efficient ones a number and a line."""
    rows, best = [_row(offer) for offer in offers], [{**_row(offer), "place": place} for place, offer in enumerate(frontier(offers), 1)]
    ways = list(dict.fromkeys(offer.way for offer in offers))
    x = alt.X("hours:Q", title=f"hours {of} [h]").scale(type="log", nice=False, padding=24).axis(format="~g", tickCount=6)
    y = alt.Y("usd:Q", title=f"US dollars {of} [$]").scale(type="log", nice=False, padding=24).axis(format="~g", tickCount=6)
    legend = alt.Legend(title=None, orient="bottom") if look.legend and len(ways) > 1 else None
    colour = alt.Color("way:N", legend=legend).scale(domain=ways, range=[look.kinds[place % len(look.kinds)] for place in range(len(ways))])
    told = [alt.Tooltip("name:N", title="GPUs"), alt.Tooltip("way:N", title="shared by")]
    told += [alt.Tooltip("hours:Q", title=f"hours {of}", format=",.4~r"), alt.Tooltip("usd:Q", title=f"US dollars {of}", format=",.4~r")]
    base, efficient, named = (alt.Chart(data).encode(x=x, y=y) for data in (alt.Undefined, *map(alt.NamedData, ("frontier", "numbers"))))
    named = named.mark_text(align="left", baseline="bottom", dx=7, dy=-5, color=look.ink, fontWeight=600).encode(text="label:N")
    layers: list[Any] = [efficient.mark_line(interpolate="step-after", strokeWidth=1.5, strokeDash=[5, 3], color=look.ink).encode(detail="model:N")]
    layers += [base.mark_point(filled=True, size=55, opacity=0.85).encode(color=colour), efficient.mark_point(size=190, strokeWidth=2, color=look.ink), named]
    layers.append(base.mark_point(filled=True, size=300, opacity=0).encode(tooltip=told).properties(name=HOVER))
    sets = {"frontier": best, "numbers": _numbers(best)}
    return framed(layers, look, "What the run costs against how long it takes, on logarithmic axes; the efficient ways are numbered", rows, sets)


def _numbers(best: Sequence[dict[str, Any]]) -> Rows:
    """What is written beside the efficient ways: one label where several are alike."""
    labels: dict[tuple[float, float], dict[str, Any]] = {}
    for row in best:
        alike = labels.setdefault((row["hours"], row["usd"]), {"hours": row["hours"], "usd": row["usd"], "label": ""})
        alike["label"] += f"{', ' if alike['label'] else ''}{row['place']}"
    return [*labels.values()]


def _row(offer: Offer) -> dict[str, Any]:
    return {"name": offer.name, "way": offer.way, "model": offer.model, "hours": short(offer.hours), "usd": short(offer.usd)}
