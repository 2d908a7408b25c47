# SPDX-License-Identifier: Apache-2.0
"""Lines and cells that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bsmodel.command.priced import price_lines, rented, with_offers
from bsmodel.command.terminal import Cell, Part, ellipsis, styled, table, verdict, width
from bsmodel.memory import Footprint
from bsmodel.studies import Recorded, Row
from bsmodel.timing import StepTime
from bsmodel.units import GiB, format_bytes, format_seconds

_ADAPTERS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "ia3": "IA3"}
_NARROW = 110  # columns, below which module paths are cut to their end


def title(recorded: Recorded, target: str = "") -> str:
    """One line that says what was recorded."""
    recipe = [recorded.precision, recorded.optimizer]
    recipe += [name.replace("_", " ") for name in ("checkpointing", "channels_last", "ema", "keep_outputs") if recorded.recipe.get(name)]
    if float8 := recorded.recipe.get("float8"):
        recipe.append(f"float8 {float8.replace('_', ' ')}")
    if weights := recorded.recipe.get("weights"):
        recipe.append(f"weights in {weights}{' twice' if recorded.recipe.get('double_quant') else ''}")
    if (adapter := recorded.recipe.get("adapter")) or recorded.recipe.get("lora_rank"):
        rank = f" rank {recorded.recipe['lora_rank']}" if recorded.recipe.get("lora_rank") else ""
        recipe.append(f"{_ADAPTERS.get(adapter or 'lora', adapter)}{rank}")
    if parallel := recorded.recipe.get("parallel"):
        parts = f", layers over {parallel['tensor']} of them" if 1 < parallel.get("tensor", 1) < parallel["devices"] else ""
        recipe.append(f"{parallel['kind']} over {parallel['devices']:,} devices{parts}")
    if recorded.own_step:
        recipe.append("a step of its own")
    return f"{recorded.name}: {recorded.parameters / 1e6:,.1f} M parameters, {', '.join(recipe)}{target}"


def closed_form(label: str, form: Footprint) -> list[Part]:
    """The formula for a group of GPUs, and the moment each of its polynomials belongs to."""
    from rich.padding import Padding
    from rich.table import Table

    lines = Table.grid(padding=(0, 3, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for each, moment in zip(form.envelope.polynomials, form.moments, strict=True):
        where = short(str(moment)) if width() < _NARROW else str(moment)
        squared = f" + {format_bytes(each.per_pair):>11} b(b-1)/2" if each.per_pair else ""
        lines.add_row(f"    {format_bytes(each.fixed):>11} + {format_bytes(each.per_sample):>11} b{squared}", styled(where))
    return [f"Closed form, bytes requested at micro-batch b ({label}):", Padding(styled(str(form)), (0, 0, 0, 2)), lines]


def uncounted(names: Iterable[str]) -> str:
    """What the recording could not count, or that there is nothing."""
    return "Not counted: " + ("; ".join(sorted(set(names))) or "nothing the recording saw")


def missing(rows: Iterable[Row]) -> tuple[str, ...]:
    """What the recordings of these rows could not count."""
    return tuple(sorted({name for row in rows if row.recorded for name in row.recorded.uncounted}))


def short(moment: str) -> str:
    """A moment in one table cell: of a long module path only the end."""
    words, separator, module = moment.partition(", at ")
    return moment if len(module) <= 24 else f"{words}{separator}{ellipsis()}{module[-24:].partition('.')[2]}"


def interval(likely_bytes: int, low_bytes: int, high_bytes: int) -> str:
    """`7.31 GiB (6.90 to 8.12)`, or without the ends where they are the same."""
    likely, low, high = (f"{size / GiB:.2f}" for size in (likely_bytes, low_bytes, high_bytes))
    return f"{likely} GiB" + ("" if low == likely == high else f" ({low} to {high})")


def split(row: Row) -> str:
    """`micro x accumulation x devices = effective`; of the devices `/ N` share each micro-batch."""
    near = "" if row.exact else " (nearest)"
    devices = f"{row.devices}/{row.tensor}" if row.tensor > 1 else row.devices
    return f"{row.micro_batch} x {row.accumulation} x {devices} = {row.effective_batch}{near}" if row.split else "-"


def amount(value: float | None) -> str:
    """Two decimals, or two digits where that would say nothing."""
    return "-" if value is None else f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def no_plan(row: Row) -> Cell:
    """Why a card has no plan, in a word or two: not one sample fits, or no number of them makes the target."""
    return "target out of reach" if row.largest_batch else verdict(False, 0, 0)


def money(row: Row) -> str:
    """What the run costs, or an hour of all its cards."""
    timing = row.timing
    if timing is None or timing.price is None:
        return "-"
    return f"{timing.price.usd_per_hour * timing.rented:.2f} USD/h" if timing.cost_usd is None else f"{amount(timing.cost_usd)} USD"


def waiting(step: StepTime[int, float]) -> str:
    """The share of a step in which a device waits for the others."""
    return f"{step.exposed_seconds / step.seconds:.0%}" if step.seconds else "-"


def time_table(rows: Sequence[Row]) -> list[Part]:
    """One line per GPU: step time, throughput and utilisation of the plan, the knee, hours and money."""
    columns, lines = time_cells(rows)
    prices = price_lines(rows)
    return [table(*columns, rows=lines), *([""] if prices else []), *prices]


def time_cells(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """The columns of `time_table`, and its lines."""
    several = any(row.devices > 1 for row in rows)
    last = ("bound by", "knee / fastest batch", "h per epoch", "h in all", "cost")
    headings = ("samples per s", "MFU", *(["waiting"] if several else []), *last)
    columns = [("GPU", ""), ("step", ""), *((heading, "" if heading == "bound by" else "right") for heading in headings)]
    columns += [("rented", "")] if with_offers(rows) else []
    return columns, [[*_time_cells(row, several), rented(row)][: len(columns)] for row in rows]


def _time_cells(row: Row, several: bool) -> list[str]:
    timing = row.timing
    if timing is None:
        return [row.gpu, f"unknown: {row.untimed}", *["-"] * (8 if several else 7)]
    step = timing.step
    interval = "" if step.high_seconds <= 1.001 * step.low_seconds else f" ({format_seconds(step.low_seconds)} to {format_seconds(step.high_seconds)})"
    tokens = f" ({timing.tokens_per_s:,.0f} tokens)" if step.tokens_per_sample > 1 else ""
    fewest = "" if row.fewest in (None, row.split) else f"; {row.fewest.micro_batch} x {row.fewest.accumulation} is slower"
    return [
        row.gpu,
        f"{format_seconds(step.seconds)}{interval}",
        f"{timing.samples_per_s:,.1f}{tokens}",
        f"{timing.mfu:.0%}",
        *([waiting(step)] if several else []),
        step.bound,
        f"{timing.knee} / {timing.fastest_batch}{fewest}",
        amount(timing.hours_per_epoch),
        amount(timing.hours),
        money(row),
    ]
