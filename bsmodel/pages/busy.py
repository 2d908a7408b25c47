# SPDX-License-Identifier: Apache-2.0
"""The chart of one step: how long the device, the host and the network are busy, and how long the step is."""

from __future__ import annotations

import altair as alt

from bsmodel.pages.drawing import Spec, framed, quick
from bsmodel.pages.looks import Look
from bsmodel.pages.parts import short
from bsmodel.timing import StepTime

_TALL = 200  # [px]


@quick
def spent(times: StepTime[int, float], look: Look) -> Spec:
    """A bar each of the seconds of the device by phase, of the host's launches and of what is said to others; a line where the step ends, in its band."""
    parts = [("device", phase, seconds) for phase, seconds in times.phases.items() if seconds]
    parts += [("host", "launches", times.host_seconds), ("network", "collectives", times.communication_seconds)]
    rows = [{"who": who, "what": what, "seconds": short(seconds), "order": place} for place, (who, what, seconds) in enumerate(parts) if seconds]
    kinds = [str(row["what"]) for row in rows]
    legend = alt.Legend(title=None, orient="bottom", labelColor=look.ink)
    colour = alt.Color("what:N", legend=legend).scale(domain=kinds, range=list(look.kinds[: len(kinds)]))
    told = [alt.Tooltip("who:N", title="busy"), alt.Tooltip("what:N", title="with"), alt.Tooltip("seconds:Q", title="seconds", format=",.4~r")]
    x, y = alt.X("seconds:Q", title="seconds of a step [s]").axis(format="~g"), alt.Y("who:N", title=None, sort=["device", "host", "network"])
    bars = alt.Chart().mark_bar(size=28, stroke=look.page, strokeWidth=1).encode(x=x, y=y, color=colour, order="order:Q", tooltip=told)
    step = {"seconds": short(times.seconds), "low": short(times.low_seconds), "high": short(times.high_seconds), "label": "step"}
    at = alt.Chart(alt.Data(values=[step]))
    band = at.mark_rect(color=look.soft, opacity=0.2).encode(x=alt.X("low:Q"), x2="high:Q")
    named = at.mark_text(baseline="bottom", dy=-3, color=look.ink).encode(x="seconds:Q", y=alt.value(0), text="label:N")
    rule = at.mark_rule(strokeDash=[6, 4], color=look.ink).encode(x="seconds:Q")
    return {**framed([band, bars, rule, named], look, "Seconds of a step: of the device by phase, of the host and of the network", rows), "height": _TALL}
