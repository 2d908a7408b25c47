# SPDX-License-Identifier: Apache-2.0
"""`bsmodel predict`: the peak at one batch, and whether it fits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bsmodel.command import arguments
from bsmodel.command.asked import foot, of_other_versions, together
from bsmodel.command.documents import CardPeak, Notes, PredictDocument
from bsmodel.command.given import leave_out
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Cell, render, table, verdict
from bsmodel.command.wording import interval, title, uncounted
from bsmodel.memory import Peak, on_devices, predict
from bsmodel.studies import Recorded
from bsmodel.units import GiB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel predict`."""
    arguments.add_model(parser)
    arguments.add_recipe(parser)
    arguments.add_recording(parser)
    parser.add_argument("--batch", type=arguments.positive, required=True, metavar="N", help="micro-batch (needed)")


def run(options: argparse.Namespace) -> Answer:
    """The peak on each GPU."""
    leave_out(options, "a peak is the same whatever connects the nodes", ("network",))
    found = arguments.asked(options)
    gpus, notes = arguments.gpus_asked(options, found)
    found, notes = arguments.saved(found, options, gpus), [*notes, *of_other_versions(found)]
    tapes = [on_devices(tape, options.devices) for tape in arguments.tapes_for(found, options, gpus)]
    peaks = tuple(CardPeak(**vars(predict(tape, gpu, options.batch)), gpu=gpu.id, usable_bytes=gpu.usable_bytes) for gpu, tape in zip(gpus, tapes, strict=True))
    recorded = together(map(Recorded.of, tapes))
    document = PredictDocument(command="predict", notes=tuple(notes), workload=recorded, gpus=peaks, uncounted=recorded.uncounted)
    return Answer(document, _text(recorded, peaks, tuple(notes)), fits=any(peak.fits for peak in peaks))


def _text(recorded: Recorded, peaks: Sequence[CardPeak], notes: Notes) -> str:
    headings = ("requested", "allocated", "reserved", "with context", "usable")
    columns = (("GPU", ""), ("verdict", ""), *((heading, "right") for heading in headings), ("peak in", ""))
    whole = table(*columns, rows=[_cells(peak) for peak in peaks])
    return render(title(recorded, f", batch {peaks[0].batch}"), "", whole, "", uncounted(recorded.uncounted), *foot(recorded, notes))


def _cells(peak: CardPeak) -> list[Cell]:
    headroom_bytes = peak.usable_bytes - peak.reserved_upper_bytes
    room: Cell = verdict(peak.fits, headroom_bytes, peak.usable_bytes, before="fits, ") if peak.fits or not peak.likely_fits else "may fit"
    return [peak.gpu, room, *peak_cells(peak), f"{peak.usable_bytes / GiB:.2f} GiB", peak.moment]


def peak_cells(peak: Peak) -> list[str]:
    """GiB requested, allocated, reserved and with the CUDA context, the last two with their ends."""
    requested, allocated = (f"{size / GiB:.2f} GiB" for size in (peak.requested_bytes, peak.allocated_bytes))
    reserved = interval(peak.reserved_bytes, peak.reserved_lower_bytes, peak.reserved_upper_bytes)
    return [requested, allocated, reserved, interval(peak.device_bytes, peak.device_lower_bytes, peak.device_upper_bytes)]
