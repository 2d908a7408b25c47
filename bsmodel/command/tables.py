# SPDX-License-Identifier: Apache-2.0
"""Values in, tables for a terminal out; no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, Footprint, Peak, Share
from bsmodel.planning import Plan, power_of_two_at_most
from bsmodel.tape import Line, ModuleRow, OperatorRow, Tape
from bsmodel.units import GiB, format_bytes

WIDTH = 140


def render(*parts: RenderableType) -> str:
    """Plain text of tables and lines, without colour, 140 columns wide."""
    console = Console(width=WIDTH, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def _table(*columns: tuple[str, str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def title(tape: Tape, target: str = "") -> str:
    """One line that says what was recorded."""
    recipe = [tape.precision, tape.optimizer]
    recipe += [name.replace("_", " ") for name in ("checkpointing", "channels_last", "ema", "keep_outputs") if tape.recipe.get(name)]
    if tape.recipe.get("lora_rank"):
        recipe.append(f"LoRA rank {tape.recipe['lora_rank']}")
    return f"{tape.name}: {tape.parameter_count / 1e6:,.1f} M parameters, {', '.join(recipe)}{target}"


def closed_forms(forms: Sequence[tuple[str, Footprint]]) -> Group:
    """The formula for each group of GPUs, and the moment each of its lines belongs to."""
    parts: list[RenderableType] = []
    for label, form in forms:
        parts.append(Text(f"Closed form, bytes requested at micro-batch b ({label}):"))
        parts.append(Text(f"  {form}"))
        for line, moment in zip(form.envelope.lines, form.moments, strict=True):
            parts.append(Text(f"    {format_bytes(line.fixed):>11} + {format_bytes(line.per_sample):>11} b   {moment}"))
    return Group(*parts)


def uncounted(tapes: Iterable[Tape]) -> Text:
    """What the recording could not count, or that there is nothing."""
    names = sorted({name for tape in tapes for name in tape.uncounted})
    return Text("Not counted: " + ("; ".join(names) if names else "nothing the recording saw"))


def _short(moment: str) -> str:
    """A moment in one table cell: of a long module path only the end."""
    words, separator, module = moment.partition(", at ")
    return moment if len(module) <= 24 else f"{words}{separator}…{module[-24:].partition('.')[2]}"


def plan_table(plans: Sequence[Plan | Fit]) -> Table:
    """One row per GPU: the largest micro-batch, what binds it, its memory, and the split for the target."""
    rows = []
    for item in plans:
        if isinstance(item, Fit):
            rows.append([item.gpu.id, str(item.batch), "-", _short(item.binding), "-", "-", "-"])
            continue
        fit, split = item.fit, item.split
        assert fit.peak is not None
        rows.append(
            [
                fit.gpu.id,
                str(fit.batch) if fit.likely_batch == fit.batch else f"{fit.batch} (likely {fit.likely_batch})",
                str(power_of_two_at_most(fit.batch)),
                _short(fit.binding),
                f"{fit.peak.reserved_bytes / GiB:.2f} of {fit.gpu.usable_bytes / GiB:.2f} GiB",
                f"{split.micro_batch} x {split.accumulation} x {split.devices} = {split.effective_batch}{'' if item.exact else ' (nearest)'}",
                f"{item.learning_rate:.3g}" if item.learning_rate is not None else "-",
            ]
        )
    columns = (
        ("GPU", ""),
        ("largest", "right"),
        ("2^k", "right"),
        ("bound by", ""),
        ("reserved of usable", "right"),
        ("micro x accumulation x devices", ""),
        ("learning rate", "right"),
    )
    return _table(*columns, rows=rows)


def plan_text(tapes: Sequence[Tape], plans: Sequence[Plan | Fit], forms: Sequence[tuple[str, Footprint]]) -> str:
    """What `bsmodel plan` prints."""
    parts: list[RenderableType] = [Text(title(tapes[0])), Text(""), plan_table(plans), Text("")]
    for item in plans:
        if isinstance(item, Fit):
            parts += [Text(item.verdict), Text("")]
    first = next((item for item in plans if isinstance(item, Plan)), None)
    if first is not None:
        parts += [time_table([item for item in plans if isinstance(item, Plan)]), Text(""), *_schedule(first)]
        parts += [*(Text(f"Note: {advice}.") for advice in first.advice), Text("")]
    return render(*parts, closed_forms(forms), Text(""), uncounted(tapes))


def format_seconds(seconds: float) -> str:
    """A time in the unit that suits it: 12.3 ms, 4.56 s, 7.8 h."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def time_table(plans: Sequence[Plan]) -> RenderableType:
    """One row per GPU: step time, throughput and utilisation of the plan, the knee, hours and money."""
    rows = []
    for plan in plans:
        timing, gpu = plan.timing, plan.fit.gpu.id
        if timing is None:
            rows.append([gpu, f"unknown: {plan.untimed}", *["-"] * 7])
            continue
        step = timing.step
        interval = "" if step.high_seconds <= 1.001 * step.low_seconds else f" ({format_seconds(step.low_seconds)} to {format_seconds(step.high_seconds)})"
        tokens = f" ({timing.samples_per_s * step.tokens_per_sample:,.0f} tokens)" if step.tokens_per_sample > 1 else ""
        fewest = "" if plan.fewest == plan.split else f"; {plan.fewest.micro_batch} x {plan.fewest.accumulation} is slower"
        rows.append(
            [
                gpu,
                f"{format_seconds(step.seconds)}{interval}",
                f"{timing.samples_per_s:,.1f}{tokens}",
                f"{step.mfu:.0%}",
                "host" if step.host_seconds >= step.device_seconds else "device",
                f"{timing.knee} / {timing.fastest_batch}{fewest}",
                _amount(timing.hours_per_epoch),
                _amount(timing.hours),
                _money(timing.cost_usd, timing.price.usd_per_hour if timing.price else None),
            ]
        )
    columns = (
        ("GPU", ""),
        ("step", ""),
        ("samples per s", "right"),
        ("MFU", "right"),
        ("bound by", ""),
        ("knee / fastest batch", "right"),
        ("h per epoch", "right"),
        ("h in all", "right"),
        ("cost", "right"),
    )
    prices = sorted({f"{p.fit.gpu.id}: {p.timing.price.source}" for p in plans if p.timing and p.timing.price})
    note = [Text("")] if prices else []
    return Group(_table(*columns, rows=rows), *note, *(Text(f"Price of {price}.") for price in prices))


def compare_text(tape: Tape, plans: Sequence[Plan], reasons: dict[str, str]) -> str:
    """What `bsmodel compare` prints: GPUs by what the run costs, and the ones that cannot run it with the reason."""
    by_time = sorted((p for p in plans if p.timing), key=lambda p: -p.timing.samples_per_s if p.timing else 0.0)
    places = {plan.fit.gpu.id: place for place, plan in enumerate(by_time, 1)}
    rows = []
    for rank, plan in enumerate(plans, 1):
        timing, split = plan.timing, plan.split
        cells = [str(rank), plan.fit.gpu.id, f"{split.micro_batch} x {split.accumulation} x {split.devices} = {split.effective_batch}"]
        if timing is None:
            rows.append([*cells, f"unknown: {plan.untimed}", *["-"] * 6])
            continue
        per_million = timing.price.usd_per_hour * split.devices / timing.samples_per_s * 1e6 / 3600 if timing.price else None
        cells += [format_seconds(timing.step.seconds), f"{timing.samples_per_s:,.1f}", f"{timing.step.mfu:.0%}", str(places[plan.fit.gpu.id])]
        cells += [_amount(timing.hours), _amount(per_million)]
        rows.append([*cells, _money(timing.cost_usd, timing.price.usd_per_hour if timing.price else None)])
    right = ("step", "samples per s", "MFU", "by time", "hours", "USD per million", "cost")
    columns = (("by cost", "right"), ("GPU", ""), ("micro x accumulation x devices", ""), *((heading, "right") for heading in right))
    priced = sorted({p.timing.price.source for p in plans if p.timing and p.timing.price})
    parts: list[RenderableType] = [Text(title(tape)), Text(""), _table(*columns, rows=rows), Text("")]
    parts += [Text(f"Prices, on demand and per card: {'; '.join(priced)}."), Text("")] if priced else []
    return render(*parts, *(Text(f"{name} {reason.removeprefix(f'does not fit on {name}: ')}") for name, reason in reasons.items()))


def _amount(value: float | None) -> str:
    """Two decimals, or two digits where that would say nothing."""
    return "-" if value is None else f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _money(cost_usd: float | None, usd_per_hour: float | None) -> str:
    if cost_usd is not None:
        return f"{_amount(cost_usd)} USD"
    return f"{usd_per_hour:.2f} USD/h" if usd_per_hour is not None else "-"


def _schedule(plan: Plan) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if plan.learning_rate is not None:
        parts.append(Text(f"Learning rate by the {plan.learning_rate_rule} rule for the effective batch."))
    if plan.steps_per_epoch is not None:
        total = f", {plan.total_steps:,} in all" if plan.total_steps is not None else ""
        parts.append(Text(f"Steps on {plan.fit.gpu.id}: {plan.steps_per_epoch:,} per epoch{total}; warm up over the first {plan.warmup_steps:,}."))
    return parts


def predict_text(tape: Tape, peaks: Sequence[tuple[Gpu, Peak]]) -> str:
    """What `bsmodel predict` prints."""
    rows = [
        [
            gpu.id,
            "fits" if peak.fits else "OUT OF MEMORY",
            *(f"{value / GiB:.2f} GiB" for value in (peak.requested_bytes, peak.allocated_bytes, peak.reserved_bytes, peak.device_bytes)),
            f"{gpu.usable_bytes / GiB:.2f} GiB",
            peak.moment,
        ]
        for gpu, peak in peaks
    ]
    headings = ("requested", "allocated", "reserved", "with context", "usable")
    columns = (("GPU", ""), ("verdict", ""), *((heading, "right") for heading in headings), ("peak in", ""))
    return render(Text(title(tape, f", batch {peaks[0][1].batch}")), Text(""), _table(*columns, rows=rows), Text(""), uncounted([tape]))


def explain_text(tape: Tape, batch: int, moment: str, shares: Sequence[Share], forms: RenderableType, most: int = 30) -> str:
    """What `bsmodel explain` prints: bytes at the binding moment by category, then by module."""
    total = sum(share.bytes for share in shares)
    by_category, by_module = totals(shares, "category"), totals(shares, "module")
    rows = [[name, format_bytes(size), f"{size:,}", f"{size / total:.1%}"] for name, size in by_category]
    rows.append(["total", format_bytes(total), f"{total:,}", "100.0%"])
    modules = [[name or "(the step itself)", format_bytes(size), f"{size / total:.1%}"] for name, size in by_module[:most]]
    if len(by_module) > most:
        rest = sum(size for _, size in by_module[most:])
        modules.append([f"{len(by_module) - most} more", format_bytes(rest), f"{rest / total:.1%}"])
    return render(
        Text(title(tape, f", batch {batch}")),
        Text(f"Binding moment: {moment}"),
        Text(""),
        _table(("category", ""), ("size", "right"), ("bytes", "right"), ("share", "right"), rows=rows),
        Text(""),
        _table(("module", ""), ("size", "right"), ("share", "right"), rows=modules),
        Text(""),
        forms,
        Text(""),
        uncounted([tape]),
    )


def modules_text(tape: Tape, batch: int, rows: Sequence[ModuleRow], depth: int) -> str:
    """What `bsmodel explain --by module` prints: the tree of modules down to `depth`."""
    shown = [row for row in rows if row.depth <= depth]
    cells = [
        [
            "  " * row.depth + (row.module.rpartition(".")[2] or tape.name),
            f"{row.parameters / 1e6:,.3f} M",
            f"{row.flops / 1e9:,.3f} G",
            f"{row.activations / 1e6:,.3f} M",
            format_bytes(row.saved_bytes),
        ]
        for row in shown
    ]
    headings = ("parameters", "forward FLOPs", "activations", "saved for backward")
    missing = "; ".join(tape.uncounted_operators) or "none"
    return render(
        Text(title(tape, f", batch {batch}")),
        Text(""),
        _table(("module", ""), *((heading, "right") for heading in headings), rows=cells),
        Text(""),
        Text("FLOPs and activations as fvcore counts them, a multiply-add as two; activations are outputs of matmuls and convolutions."),
        Text(f"Operators without a formula: {missing}."),
    )


def operators_text(tape: Tape, batch: int, rows: Sequence[OperatorRow]) -> str:
    """What `bsmodel explain --by operator` prints."""
    cells = [
        [
            row.operator,
            f"{row.calls:,}",
            "-" if row.flops is None else f"{row.flops / 1e9:,.3f} G",
            "-" if row.activations is None else f"{row.activations / 1e6:,.3f} M",
            format_bytes(row.moved_bytes),
        ]
        for row in rows
    ]
    headings = ("calls", "forward FLOPs", "activations", "read and written")
    return render(
        Text(title(tape, f", batch {batch}")),
        Text(""),
        _table(("operator", ""), *((heading, "right") for heading in headings), rows=cells),
        Text(""),
        Text("FLOPs and activations as fvcore counts them, a multiply-add as two; - where it has no formula."),
    )


def forms_compared(tape: Tape, form: Footprint, line: Line, peak: Peak) -> Group:
    """The counted closed form beside the traced one, each against the replay at this batch."""
    rows = []
    for name, formula, size in (
        ("counted", f"M(b) = {format_bytes(line.fixed)} + {format_bytes(line.per_sample)} b", int(line.fixed + line.per_sample * peak.batch)),
        ("traced", str(form), int(form(peak.batch))),
    ):
        rows.append([name, format_bytes(size), f"{size / peak.allocated_bytes - 1:+.2%}", formula])
    return Group(_table(("closed form", ""), ("at this batch", "right"), ("against the replay", "right"), ("", ""), rows=rows))


def totals(shares: Sequence[Share], key: str) -> list[tuple[str, int]]:
    """Bytes by one field of the shares, largest first."""
    sums: dict[str, int] = {}
    for share in shares:
        name = getattr(share, key)
        sums[name] = sums.get(name, 0) + share.bytes
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))


def gpus_text(gpus: Sequence[Gpu]) -> str:
    """What `bsmodel gpus` prints."""
    rows = [
        [
            gpu.id,
            gpu.name,
            f"{gpu.memory_bytes / GiB:.2f} GiB",
            f"{gpu.usable_bytes / GiB:.2f} GiB",
            gpu.compute_capability,
            f"{gpu.bandwidth_bytes_per_s / 1e9:,.0f} GB/s" if gpu.bandwidth_bytes_per_s else "-",
            f"{gpu.fp16_dense_flops_per_s / 1e12:,.0f}" if gpu.fp16_dense_flops_per_s else "-",
            f"{gpu.price_usd_per_hour:.2f} ({source.checked})" if gpu.price_usd_per_hour and (source := gpu.source_of("price_usd_per_hour")) else "-",
        ]
        for gpu in gpus
    ]
    columns = (
        ("id", ""),
        ("name", ""),
        ("memory", "right"),
        ("usable", "right"),
        ("capability", "right"),
        ("bandwidth", "right"),
        ("fp16 TFLOP/s", "right"),
        ("USD per hour (checked)", "right"),
    )
    return render(_table(*columns, rows=rows))
