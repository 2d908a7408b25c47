# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel plan`: for each GPU memory, throughput and seconds against the batch, and the plans as the text has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bsmodel.command.page_tables import written
from bsmodel.command.plan import plan_cells
from bsmodel.command.priced import price_lines, rented, with_offers
from bsmodel.command.wording import money, split, time_cells, title
from bsmodel.hardware import Gpu
from bsmodel.memory import Peak, on_devices
from bsmodel.pages import Choice, Drawing, Section, document, head, of_page
from bsmodel.planning import Split, peaks_around
from bsmodel.studies import Recorded, Row
from bsmodel.tape import Tape
from bsmodel.timing import StepTime, step_time
from bsmodel.units import GiB, format_bytes, format_seconds

_POINTS = 72  # of a curve of seconds
_MOST_CHOICES = 14  # batches that can be looked at; of more powers of two the smallest are left out, but for the plan's own


@dataclass(frozen=True)
class Drawn:
    """What is drawn of one GPU: its row, the card as it was asked about, and the recording."""

    row: Row
    gpu: Gpu
    tape: Tape


def page(recorded: Recorded, found: Sequence[Drawn], asked: Sequence[tuple[str, str]], said: Sequence[str]) -> str:
    """The plans as one HTML page; `asked` is what was asked, by name, and `said` what the text says below its tables."""
    rows = [each.row for each in found]
    fitting = [row for row in rows if row.fits]
    parts = [Section("Plans", (), table=written("plans", "What fits on each GPU, and how the target is reached.", *plan_cells(rows)))]
    if fitting:
        caption = "Seconds, throughput and money of each plan; the knee is the smallest micro-batch with nine tenths of the best throughput."
        parts.append(Section("Time and money", tuple(price_lines(fitting)), table=written("times", caption, *time_cells(fitting))))
    parts += [*(_of_gpu(place, each) for place, each in enumerate(found)), _closed_forms(rows)]
    top = head(("What fits", [_finding(row) for row in rows]), ("What was asked", [("Model", title(recorded)), *asked]), said)
    return document(f"Plan of {recorded.name}", top, parts)


def _finding(row: Row) -> str:
    if not row.fits or row.peak is None:
        return f"{row.gpu}: {row.verdict.removeprefix(f'does not fit on {row.gpu}: ')}."
    likely = "" if row.likely_batch == row.largest_batch else f", and {row.likely_batch:,} likely do"
    found = [f"{row.gpu}: {row.largest_batch:,} samples surely fit in a micro-batch{likely}; run {split(row)}"]
    if row.timing is not None:
        found.append(f"{row.timing.samples_per_s:,.1f} samples a second")
        found += [format_seconds(3600 * row.timing.hours)] if row.timing.hours is not None else []
        found += [f"{money(row)}{f' ({rented(row)})' if with_offers([row]) else ''}"] if row.timing.price is not None else []
    return f"{', '.join(found)}."


def _closed_forms(rows: Sequence[Row]) -> Section:
    """Every polynomial of every closed form, with the moment it belongs to."""
    lines = [
        (row.gpu, format_bytes(each.fixed), format_bytes(each.per_sample), format_bytes(each.per_pair), str(moment))
        for row in rows
        if row.closed_form is not None
        for each, moment in zip(row.closed_form.envelope.polynomials, row.closed_form.moments, strict=True)
    ]
    columns = (("GPU", ""), ("fixed", "right"), ("a sample", "right"), ("a pair of samples", "right"), ("moment", ""))
    said = "Bytes that are requested at micro-batch b: the largest, over all moments, of what is fixed, plus b times what a sample takes,"
    caption = "The moments that decide at some micro-batch, each with its polynomial."
    return Section("Closed form", (said, "plus b (b - 1) / 2 times what a pair takes."), table=written("closed-form", caption, columns, lines))


# -- of a GPU ------------------------------------------------------------------------------------------------------------------------------


def _of_gpu(place: int, each: Drawn) -> Section:
    from bsmodel.pages import MEMORY, memory

    row, made = each.row, each.row.split
    if made is None or row.closed_form is None or row.usable_bytes is None or row.largest_batch is None:
        return Section(row.gpu, (f"There is no chart: {row.verdict}.",))
    micro_steps, look = max(each.tape.accumulation, made.accumulation), of_page(0)
    peaks = peaks_around(on_devices(each.tape, row.devices), each.gpu, micro_steps, (made.micro_batch, row.largest_batch))
    peaks = [peak for place, peak in enumerate(reversed(peaks)) if place < _MOST_CHOICES or peak.batch == made.micro_batch][::-1]
    shaded = "Above the line it runs out of memory; the band goes up to the most that is reserved whatever the libraries choose."
    said = [f"Memory is that of a step of {'several micro-batches, with gradients kept between them' if micro_steps > 1 else 'one micro-batch'}."]
    kinds = tuple(enumerate(("requested, the closed form", *MEMORY[1:])))
    spec = memory(row.closed_form, peaks, row.usable_bytes, made.micro_batch, look)
    drawings = [Drawing(f"memory-{place}", "Memory against the micro-batch", shaded, spec, kinds)]
    times = None if row.timing is None else _Times.of(each, [peak.batch for peak in peaks])
    if times is None:
        said.append(f"There is no chart of time: {row.untimed}.")
    else:
        drawings += times.drawings(place, each)
    return Section(row.gpu, tuple(said), tuple(drawings), choices=_choices(each, peaks, times), alone=True)


@dataclass(frozen=True)
class _Times:
    """Seconds at many batches, of which `asked` can be looked at."""

    asked: tuple[int, ...]
    curve: StepTime[Any, Any]
    reached: StepTime[Any, Any]  # at those that are asked, with the micro-steps that the target takes

    @staticmethod
    def of(each: Drawn, batches: Sequence[int]) -> _Times:
        tape, largest = on_devices(each.tape, each.row.devices), each.row.largest_batch or 1
        asked = tuple(batch for batch in batches if batch <= largest)
        spread = np.geomspace(asked[0], largest, _POINTS).round().astype(np.int64)
        times = step_time(tape, each.gpu, np.unique(np.concatenate([spread, asked])))
        return _Times(asked, times, step_time(tape, each.gpu, asked, [accumulation(each.row, batch) for batch in asked]))

    def drawings(self, place: int, each: Drawn) -> list[Drawing]:
        from bsmodel.pages import SECONDS, step_seconds, throughput

        timing, split = each.row.timing, each.row.split
        assert timing is not None and split is not None, "only what has a time is drawn"
        look, kinds = of_page(0), tuple(enumerate(SECONDS))
        speed = throughput(self.curve, self.asked, timing.knee, split.replicas, look)
        spent = step_seconds(self.curve, self.asked, look)
        gains = "From the knee on, larger batches gain less than a tenth. The band is what is not known of the card and the host."
        longer = "The step takes the longer of both, and what it waits for other devices: the broad line, in its band."
        return [
            Drawing(f"throughput-{place}", "Throughput against the micro-batch", gains, speed),
            Drawing(f"seconds-{place}", "Seconds of a step", longer, spent, kinds),
        ]


def accumulation(row: Row, batch: int) -> int:
    """The micro-steps that bring this batch nearest to the target."""
    if row.target_batch is None or row.split is None or (row.recorded and row.recorded.own_step):
        return 1
    return max(1, round(row.target_batch / (batch * row.split.replicas)))


def _choices(each: Drawn, peaks: Sequence[Peak], times: _Times | None) -> tuple[Choice, ...]:
    return tuple(Choice(peak.batch, ". ".join([_memory_said(each.row, peak), *_time_said(each.row, peak.batch, times)]) + ".") for peak in peaks)


def _memory_said(row: Row, peak: Peak) -> str:
    fits = "fits" if peak.fits else "likely fits" if peak.likely_fits else "runs out of memory"
    reserved, most = f"{peak.reserved_bytes / GiB:.2f}", f"{peak.reserved_upper_bytes / GiB:.2f}"
    spread = "" if reserved == most else f" (at most {most})"
    return f"{peak.batch:,} samples: {reserved} GiB reserved{spread} of {(row.usable_bytes or 0) / GiB:.2f}, {fits}"


def _time_said(row: Row, batch: int, times: _Times | None) -> list[str]:
    made = row.split
    if times is None or made is None or batch not in times.asked:
        return []
    place, step = times.asked.index(batch), times.reached
    reached = Split(batch, int(step.accumulation[place]), made.devices, made.tensor)
    target = f" for the target of {row.target_batch:,}" if row.target_batch is not None else ""
    parts = f"{reached.micro_batch:,} × {reached.accumulation:,} × {reached.replicas:,} = {reached.effective_batch:,}"
    speed = f"{step.samples_per_s[place] * made.replicas:,.1f} samples a second"
    return [f"{parts} samples a step{target}, in {format_seconds(float(step.seconds[place]))}, {speed}"]
