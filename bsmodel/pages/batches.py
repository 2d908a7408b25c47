# SPDX-License-Identifier: Apache-2.0
"""Charts against the micro-batch: memory with the card's line, throughput with its knee, and the seconds of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from bsmodel.memory import Footprint, Peak
from bsmodel.pages.drawing import HOVER, Spec, framed, named, quick
from bsmodel.pages.looks import CHOSEN, Look
from bsmodel.pages.parts import short
from bsmodel.timing import StepTime
from bsmodel.units import GiB

MEMORY = ("requested", "allocated", "reserved")  # what the colours 0, 1 and 2 of the chart of memory are
SECONDS = ("device", "host")  # and 0 and 1 of that of seconds
_POINTS = 64  # of the closed form
_LEAST_ABOVE, _MOST_ABOVE = 1.15, 1.5  # of the card, up to which memory is drawn
_NARROW = 11  # [px] to either side of a batch: there a pointer finds it

Rows = list[dict[str, Any]]
Times = StepTime[Any, Any]  # of several batches


# -- memory --------------------------------------------------------------------------------------------------------------------------------


@quick
def memory(form: Footprint, peaks: Sequence[Peak], usable_bytes: int, micro_batch: int, look: Look) -> Spec:
    """Memory against the batch: the closed form as a line, the replayed peaks as points, up to their upper ends; above the card it is out of memory."""
    rows, most = [_of_peak(peak) for peak in peaks], usable_bytes / GiB
    top = min(max(rows[-1]["upper"] * 1.05, _LEAST_ABOVE * most), _MOST_ABOVE * most)
    x, scale = _batch([peak.batch for peak in peaks], even=True), alt.Scale(domain=[0, short(top)], nice=False)
    base = alt.Chart().encode(x=x)
    layers: list[Any] = [
        *_beyond(most, top, scale, look),
        base.mark_area(opacity=0.3, color=look.kinds[2], clip=True).encode(y=_gib("reserved", scale), y2=alt.Y2("upper:Q")),
    ]
    line = alt.Chart(alt.NamedData(name="closed form")).mark_line(color=look.kinds[0], strokeWidth=2, clip=True)
    layers.append(line.encode(x=x, y=_gib("requested", scale)))
    for name, colour in zip(MEMORY[1:], look.kinds[1:3], strict=True):
        drawn = base.encode(y=_gib(name, scale))
        layers += [drawn.mark_line(color=colour, strokeWidth=1.5, strokeDash=[4, 2] if name == "allocated" else [1, 0], clip=True)]
        layers += [drawn.mark_point(color=colour, filled=True, size=40, opacity=1, clip=True)]
    layers += [*_marked(micro_batch, f"micro-batch {micro_batch:,}", x, look), *named(MEMORY, look), *_answering(base, _told_memory(), look)]
    return framed(layers, look, "Memory of a training step against the micro-batch, and what the card has", rows, {"closed form": _requested(form, peaks)})


def _of_peak(peak: Peak) -> dict[str, Any]:
    sizes = {name: short(getattr(peak, f"{name}_bytes") / GiB) for name in MEMORY}
    found = "fits" if peak.fits else "likely fits" if peak.likely_fits else "out of memory"
    return {"batch": peak.batch, **sizes, "upper": short(peak.reserved_upper_bytes / GiB), "found": found}


def _requested(form: Footprint, peaks: Sequence[Peak]) -> Rows:
    """The closed form from the first of the peaks to the last."""
    batches = np.unique(np.geomspace(peaks[0].batch, peaks[-1].batch, _POINTS).round().astype(np.int64))
    return [{"batch": int(batch), "requested": short(size / GiB)} for batch, size in zip(batches, form(batches).tolist(), strict=True)]


def _beyond(most: float, top: float, scale: Any, look: Look) -> list[Any]:
    """The card's line, with what is out of memory shaded above it."""
    at = alt.Chart(alt.Data(values=[{"reserved": short(most), "top": short(top), "label": f"{most:.2f} GiB usable"}]))
    at = at.encode(y=_gib("reserved", scale))
    text = at.mark_text(align="left", baseline="bottom", dy=-3, color=look.bad, fontWeight=600).encode(x=alt.XValue(4), text=alt.Text("label:N"))
    return [at.mark_rect(color=look.bad, opacity=0.1).encode(y2=alt.Y2("top:Q")), at.mark_rule(color=look.bad, strokeWidth=1.5), text]


def _gib(name: str, scale: Any) -> alt.Y:
    return alt.Y(f"{name}:Q", title="memory [GiB]").scale(scale).axis(format="~g")


def _told_memory() -> list[alt.Tooltip]:
    titles = {"requested": "requested [GiB]", "allocated": "allocated [GiB]", "reserved": "reserved [GiB]", "upper": "reserved at most [GiB]"}
    sizes = [alt.Tooltip(f"{name}:Q", title=title, format=".2f") for name, title in titles.items()]
    return [alt.Tooltip("batch:Q", title="micro-batch", format=",d"), *sizes, alt.Tooltip("found:N", title="on this card")]


# -- time ----------------------------------------------------------------------------------------------------------------------------------


@quick
def throughput(times: Times, asked: Sequence[int], knee: int, replicas: int, look: Look) -> Spec:
    """Samples a second of all devices against the batch, with the knee; `asked` are the batches that answer to a pointer."""
    rows = _of_times(times, replicas)
    x, base = _batch([rows[0]["batch"], rows[-1]["batch"]]), alt.Chart()
    y = alt.Y("samples:Q", title="samples a second").scale(zero=True).axis(format="~s")
    base = base.encode(x=x)
    layers: list[Any] = [
        *_hosted(rows, x, look),
        base.mark_area(opacity=0.25, color=look.kinds[2]).encode(y=alt.Y("low:Q", title="samples a second"), y2=alt.Y2("high:Q")),
    ]
    layers += [base.mark_line(strokeWidth=2, color=look.kinds[2]).encode(y=y), *_marked(knee, f"knee {knee:,}", x, look)]
    layers += _answering(_only(base, rows, asked), _told_times(), look)
    return framed(layers, look, "Throughput against the micro-batch; the knee is where nine tenths of the best are reached", rows)


@quick
def step_seconds(times: Times, asked: Sequence[int], look: Look) -> Spec:
    """Seconds of a step against the batch, both logarithmic: the longer of the device's work and the host's launches."""
    rows = _of_times(times, 1)
    x, base = _batch([rows[0]["batch"], rows[-1]["batch"]]), alt.Chart()
    base = base.encode(x=x)
    scale = alt.Scale(type="log", nice=False, padding=10)
    layers: list[Any] = [*_hosted(rows, x, look), base.mark_area(opacity=0.2, color=look.soft).encode(y=_step("least", scale), y2=alt.Y2("most:Q"))]
    layers.append(base.mark_line(strokeWidth=5, opacity=0.35, color=look.soft).encode(y=_step("step", scale)))
    for name, colour in zip(SECONDS, look.kinds, strict=False):
        layers.append(base.mark_line(strokeWidth=2, color=colour).encode(y=_step(name, scale)))
    layers += [*named(SECONDS, look), *_answering(_only(base, rows, asked), _told_times(), look)]
    return framed(layers, look, "Seconds of a step against the micro-batch, on logarithmic axes: of the device and of the host", rows)


def _of_times(times: Times, replicas: int) -> Rows:
    fields = (times.batch, times.samples_per_s, times.seconds, times.low_seconds, times.high_seconds, times.device_seconds, times.host_seconds)
    rows: Rows = []
    for batch, samples, step, least, most, device, host in zip(*(values.tolist() for values in fields), strict=True):
        speeds = {"samples": samples * replicas, "low": samples * replicas * step / most, "high": samples * replicas * step / least}
        spent = {"step": step, "least": least, "most": most, "device": device, "host": host}
        rows.append({"batch": batch} | {name: short(value) for name, value in (speeds | spent).items()})
    return rows


def _hosted(rows: Rows, x: alt.X, look: Look) -> list[Any]:
    """The batches whose step is as long as the host's launches, shaded."""
    hosted = [row["batch"] for row in rows if row["host"] > row["device"]]
    if not hosted:
        return []
    at = alt.Chart(alt.Data(values=[{"batch": hosted[0], "last": hosted[-1], "label": "host-bound"}])).encode(x=x)
    text = at.mark_text(align="left", baseline="top", dx=3, dy=4, color=look.soft).encode(y=alt.YValue(0), text=alt.Text("label:N"))
    return [at.mark_rect(color=look.soft, opacity=0.12).encode(x2=alt.X2("last:Q")), text]


def _step(name: str, scale: Any) -> alt.Y:
    return alt.Y(f"{name}:Q", title="seconds of a step [s]").scale(scale).axis(format="~g", tickCount=6)


def _told_times() -> list[alt.Tooltip]:
    titles = {"samples": "samples a second", "step": "a step [s]", "device": "of the device [s]", "host": "of the host [s]"}
    found = [alt.Tooltip(f"{name}:Q", title=title, format=",.4~r") for name, title in titles.items() if name != "samples"]
    return [alt.Tooltip("batch:Q", title="micro-batch", format=",d"), alt.Tooltip("samples:Q", title=titles["samples"], format=",.4~r"), *found]


def _only(base: Any, rows: Rows, asked: Sequence[int]) -> Any:
    return base.properties(data=alt.Data(values=[row for row in rows if row["batch"] in asked]))


# -- both ----------------------------------------------------------------------------------------------------------------------------------


def _batch(batches: Sequence[int], even: bool = False) -> alt.X:
    """An axis with the powers of two as its ticks, logarithmic, or `even`, on which what grows with the batch is a straight line."""
    low, high = min(batches), max(batches)
    powers = [1 << power for power in range(high.bit_length()) if low <= 1 << power <= high]
    if even:
        scale = alt.Scale(domain=[0, high], nice=False, padding=_NARROW)
    else:
        scale = alt.Scale(type="log", base=2, nice=False, domain=[low, max(high, low + 1)], padding=_NARROW)
    axis = alt.Axis(values=powers[::-1] if even else powers, format=",d", labelOverlap="greedy", labelSeparation=6)
    return alt.X("batch:Q", title="micro-batch [samples]").scale(scale).axis(axis)


def _marked(batch: int, label: str, x: alt.X, look: Look) -> list[Any]:
    at = alt.Chart(alt.Data(values=[{"batch": batch, "label": label}])).encode(x=x)
    text = at.mark_text(baseline="bottom", dy=-3, color=look.ink).encode(y=alt.YValue(0), text=alt.Text("label:N"))
    return [at.mark_rule(strokeDash=[6, 4], color=look.ink), text]


def _answering(base: Any, numbers: list[alt.Tooltip], look: Look) -> list[Any]:
    """A line at the batch that is looked at, and around every batch a stripe that tells its numbers and can be clicked."""
    seen = alt.OpacityValue(0, condition={"test": f"datum.batch == {CHOSEN}", "value": 1})
    line = base.mark_rule(strokeWidth=2, color=look.kinds[3]).encode(opacity=seen)
    return [line, base.mark_rule(strokeWidth=2 * _NARROW, opacity=0, cursor="pointer").encode(tooltip=numbers).properties(name=HOVER)]
