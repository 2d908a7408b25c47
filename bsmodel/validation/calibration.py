# SPDX-License-Identifier: Apache-2.0
"""From rows to a GPU file of the user's own: what only the hardware can tell, with its provenance; errors on cases that were held out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import CALIBRATION, Gpu
from bsmodel.units import format_bytes
from bsmodel.validation import rows
from bsmodel.validation.cases import calibrates
from bsmodel.validation.environment import card


@dataclass(frozen=True)
class Calibration:
    """The row with its measured figures, the errors on held-out cases before and after, and what to say about it."""

    gpu: Gpu
    errors: dict[str, Any]
    notes: tuple[str, ...]


def calibrate(found: Sequence[rows.Row], file_name: str, base: str | None = None) -> Calibration:
    """Measured figures for the card of the rows: its context, launch time, matmul efficiency and which workspaces its convolutions take.

    The context is the median of device-level minus reserved bytes over the half of the cases that calibrates (`cases.calibrates`); the
    other half gives the errors. `base`: the GPU whose row is completed, by default the card's own in the catalogue, which stays as it is.
    A kind of cuDNN's workspaces is taken where single convolutions allocate more than half of what its planner wants.
    Raises `InvalidInputError` for rows of several cards, of none, or without anything that calibrates.
    """
    gpu, device = _card(found, base)
    steps = [item for item in rows.of_kind(found, "step") if item["measured"].get("context_bytes") and not item["measured"]["out_of_memory"]]
    used, held_out = [item for item in steps if calibrates(item["case"])], [item for item in steps if not calibrates(item["case"])]
    rates = rows.of_kind(found, "hardware")
    figures: dict[str, tuple[Any, int, str]] = {}
    if used:
        contexts = [item["measured"]["context_bytes"] for item in used]
        note = f"median of device-level minus reserved bytes; {min(contexts)} to {max(contexts)}; device-level from {used[0]['measured']['device_bytes_from']}"
        figures["context_bytes"] = (int(statistics.median(contexts)), len(used), note)
    if rates:
        figures |= _rates(gpu, rates[-1]["measured"])
    workspaces = rows.of_kind(found, "workspaces")
    if workspaces:
        taken, kinds = rows.kinds_taken(workspaces[-1]), workspaces[-1]["measured"]["kinds"]
        count = sum(sizes["probes"] for sizes in kinds.values())
        figures["workspaces"] = (taken, count, "single convolutions, bytes besides the output: more than half of what cuDNN's planner wants, or not")
    if not figures:
        raise InvalidInputError(f"{file_name!r} has nothing to calibrate with: no device-level memory and no rates; measure with bsmodel validate first")
    measured_on = max(item["environment"]["date"] for item in (*used, *rates, *workspaces))
    calibrated = _with(gpu, figures, file_name, date.fromisoformat(measured_on))
    errors = _errors(gpu, calibrated, used, held_out)
    return Calibration(calibrated, errors, (*_notes(gpu, calibrated, figures, errors, device), *_left_out(gpu, rates)))


def _card(found: Sequence[rows.Row], base: str | None) -> tuple[Gpu, str]:
    devices = {json.dumps({name: item["environment"].get(name) for name in _IDENTITY}, sort_keys=True): item["environment"] for item in found}
    known = [device for device in devices.values() if device.get("memory_bytes") and device.get("compute_capability")]
    if not known:
        raise InvalidInputError("the rows do not say on which card they were measured: measure with bsmodel validate")
    if len(known) > 1:
        names = ", ".join(sorted({f"{device['name']} {format_bytes(device['memory_bytes'])}" for device in known}))
        raise InvalidInputError(f"the rows are of several cards or drivers ({names}); calibrate with those of one")
    gpu = Gpu.named(base) if base else card(known[0])[0]
    if gpu.compute_capability != known[0]["compute_capability"]:
        raise InvalidInputError(f"{gpu.id} has compute capability {gpu.compute_capability}, the rows are of {known[0]['compute_capability']}")
    return gpu, str(known[0]["name"])


_IDENTITY = ("name", "memory_bytes", "compute_capability", "driver")


def _rates(gpu: Gpu, measured: dict[str, Any]) -> dict[str, tuple[Any, int, str]]:
    figures: dict[str, tuple[Any, int, str]] = {}
    if measured.get("launch_seconds"):
        figures["launch_seconds"] = (measured["launch_seconds"], 1, "median step of a transformer too small to keep the device busy, over its kernels")
    efficiency = {}
    for dtype, rate in measured.get("matmul_flops_per_s", {}).items():
        peak = gpu.peak_flops_per_s(dtype)
        if peak:
            efficiency[dtype] = round(rate / peak, 4)
    if efficiency:
        figures["matmul_efficiency"] = (efficiency, 1, "best of square matmuls of 2048, 4096 and 8192, over the peak of the row")
    copied = measured.get("copy_bytes_per_s")
    if copied and gpu.bandwidth_bytes_per_s and copied <= gpu.bandwidth_bytes_per_s:
        figures["bandwidth_efficiency"] = (round(copied / gpu.bandwidth_bytes_per_s, 4), 1, "copy of 256 MiB, bytes read and written over the peak")
    return figures


def _left_out(gpu: Gpu, rates: Sequence[rows.Row]) -> list[str]:
    """A note where copies are faster than the row says that the card is."""
    copied, peak = rates[-1]["measured"].get("copy_bytes_per_s") if rates else None, gpu.bandwidth_bytes_per_s
    if not (copied and peak and copied > peak):
        return []
    return [f"copies reach {copied / 1e9:,.0f} GB/s, more than the {peak / 1e9:,.0f} of the row: left out, the row is of another card"]


def _with(gpu: Gpu, figures: dict[str, tuple[Any, int, str]], file_name: str, measured_on: date) -> Gpu:
    """The row with these figures, each with a source of its own; other sources keep what they still stand for."""
    sources: list[dict[str, Any]] = []
    for source in gpu.sources:
        kept = tuple(figure for figure in source.figures if figure not in figures)
        if kept:
            sources.append({**dict(source), "figures": kept})
    for name, (_, count, note) in figures.items():
        text = f"{CALIBRATION} {file_name}, {count} row{'s' if count > 1 else ''}"
        sources.append({"figures": (name,), "source": text, "checked": measured_on, "kind": "measured", "note": note})
    return gpu.model_copy(update={**{name: value for name, (value, _, _) in figures.items()}, "sources": tuple(sources)})


def _errors(before: Gpu, after: Gpu, used: Sequence[rows.Row], held_out: Sequence[rows.Row]) -> dict[str, Any]:
    """Device-level error on the held-out cases, with the context of each row."""

    def median(gpu: Gpu) -> float | None:
        errors = [
            abs((item["predicted"]["reserved_bytes"] + gpu.context_bytes) / item["measured"]["device_bytes"] - 1) for item in held_out if item.get("predicted")
        ]
        return statistics.median(errors) if errors else None

    return {
        "calibrated_on": [item["case"] for item in used],
        "held_out": [item["case"] for item in held_out],
        "device_error_median_before": median(before),
        "device_error_median_after": median(after),
    }


def _notes(gpu: Gpu, after: Gpu, figures: dict[str, tuple[Any, int, str]], errors: dict[str, Any], device: str) -> tuple[str, ...]:
    notes = [f"{device}: {', '.join(figures)} measured; everything else as in the row of {gpu.id}"]
    if "context_bytes" in figures:
        notes.append(f"CUDA context {format_bytes(after.context_bytes)}, {format_bytes(gpu.context_bytes)} before")
    held_out, before, now = len(errors["held_out"]), errors["device_error_median_before"], errors["device_error_median_after"]
    split = f"{len(errors['calibrated_on'])} cases calibrate, {held_out} are held out (by the SHA-256 of their names)"
    notes.append(f"{split}; median device-level error on those: {before:.2%} before, {now:.2%} after" if before is not None and now is not None else split)
    if "workspaces" in figures:
        taken = after.workspaces or {}
        notes.append(f"{sum(taken.values())} of {len(taken)} kinds of convolution workspaces are taken")
    return tuple(notes)


def toml(gpu: Gpu) -> str:
    """The row as a TOML file that `Gpu.load` reads."""
    values = gpu.model_dump(exclude_none=True, exclude={"sources"}, exclude_defaults=True)
    values["context_bytes"] = gpu.context_bytes if gpu.source_of("context_bytes") in gpu.sources else None
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items() if value is not None and name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
    for source in gpu.sources:
        content = source.model_dump(exclude_none=True)
        lines += ["", "[[sources]]", *(f"{key} = {_toml(value)}" for key, value in content.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if name.isidentifier() else json.dumps(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
