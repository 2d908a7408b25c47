# SPDX-License-Identifier: Apache-2.0
"""What a verdict says: one line, and below it, where memory got worse, the modules that grew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bsmodel.memory import reserved_of
from bsmodel.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from bsmodel.gate.verdict import Change, Growth, Required, Verdict

_MOST_ROWS = 6


def line(found: Verdict) -> str:
    """The whole verdict in a line."""
    cards = found.gpu if found.devices == 1 else f"{found.devices} x {found.gpu}"
    parts = [_required(found, found.required, cards)] if found.required else []
    if found.before is not None:
        subject = "" if parts else f"{found.workload} "
        parts.append(f"{subject}at a micro-batch of {found.before.batch:,}{'' if parts else f' on {cards}'}: {', '.join(map(_change, found.changes))}")
    word = "FAILS" if not found.passes else "fits" if found.required else "holds"
    return f"{word}: {'; '.join(parts)}"


def _required(found: Verdict, required: Required, cards: str) -> str:
    verb = "trains" if required.passes else "may not train" if required.peak.likely_fits else "does not train"
    likely = f", likely {required.likely_batch:,}" if required.likely_batch != required.largest_batch else ""
    largest = f"largest {required.largest_batch:,}{'' if required.bounded else ' or more'}{likely}"
    memory = f"{reserved_of(required.peak, required.usable_bytes)} GiB"
    return f"{found.workload} {verb} at a micro-batch of {required.peak.batch:,} on {cards} ({largest}, {memory})"


def _change(change: Change) -> str:
    """`peak memory 12.63 GiB -> 14.10 GiB (+11.6%, allowed 12.76 GiB)`, or only what it is where nothing changed."""
    write = {"peak memory": format_bytes, "largest batch": lambda number: f"{number:,.0f}", "step time": format_seconds}[change.measure]
    if change.after == change.before:
        return f"{change.measure} {write(change.after)} as before"
    share = f"{change.after / change.before - 1:+.1%}" if change.before else "from none"
    allowed = f", allowed {write(change.allowed)}" if change.direction == "worse" else ""
    return f"{change.measure} {write(change.before)} -> {write(change.after)} ({share}{allowed})"


def below(found: Verdict) -> list[str]:
    """The lines below it: what grew, and notes."""
    lines = [*_grown("module", found.modules), *_grown("category", found.categories)]
    if found.before and found.after and any(change.direction == "worse" and change.measure != "step time" for change in found.changes):
        if not any(growth.bytes > 0 for growth in (*found.modules, *found.categories)):
            lines.append("  no module and no category holds more at the moment that binds: what grew is what rounding and caching add")
        before, after = found.before.moment, found.after.moment
        lines.append(f"  bytes alive at: {after}" if before == after else f"  bytes alive before at: {before}; now at: {after}")
    return [*lines, *(f"Note: {note}." for note in found.notes)]


def _grown(kind: str, growths: Sequence[Growth]) -> list[str]:
    """Rows of what grew, worst first, layers that are alike as one; then the names of what is gone."""
    more = _folded([growth for growth in growths if growth.bytes > 0], kind)
    rows = [f"  {name}: {_bytes(before, after)}" for name, before, after in more[:_MOST_ROWS]]
    if rest := more[_MOST_ROWS:]:
        rows.append(f"  {len(rest)} more: +{format_bytes(sum(after - (before or 0) for _, before, after in rest))}")
    gone = [name for name, *_ in _folded([growth for growth in growths if growth.after_bytes is None], kind)]
    shown = ", ".join(gone[:_MOST_ROWS]) + (f" and {len(gone) - _MOST_ROWS} more" if len(gone) > _MOST_ROWS else "")
    return [*rows, *([f"  gone: {shown}"] if gone else [])]


def _bytes(before: int | None, after: int) -> str:
    if before is None:
        return f"new, {format_bytes(after)}"
    return f"{format_bytes(before)} -> {format_bytes(after)} (+{format_bytes(after - before)})"


def _folded(growths: Sequence[Growth], kind: str) -> list[tuple[str, int | None, int]]:
    """Names with bytes before and now, those first that changed most; layers that are alike as one, `layers.*.mlp (12 modules)`."""
    groups: dict[Any, list[Growth]] = {}
    for growth in growths:
        groups.setdefault((growth.before_bytes is None, *(_alike(growth) if kind == "module" else (growth.name,))), []).append(growth)
    found: list[tuple[str, int | None, int]] = []
    for (new, pattern, *_), group in groups.items():
        name = f"{pattern} ({len(group)} modules)" if len(group) > 1 else group[0].name or "the step itself"
        before = None if new else sum(growth.before_bytes or 0 for growth in group)
        found.append((name, before, sum(growth.after_bytes or 0 for growth in group)))
    return sorted(found, key=lambda row: -abs(row[2] - (row[1] or 0)))


def _alike(growth: Growth) -> tuple[object, ...]:
    """What layers that are alike share: the path but for numbers within it; where a number ends it, the same bytes, too, for `features.3` may be anything."""
    *outer, last = growth.name.split(".")
    path = ["*" if part.isdecimal() else part for part in outer]
    if all(part == "*" or part.isdecimal() for part in (*path, last)):
        return (growth.name,)  # of numbers only, which say nothing once they are gone
    if last.isdecimal():
        return ".".join([*path, "*"]), growth.before_bytes, growth.after_bytes
    return (".".join([*path, last]),)
