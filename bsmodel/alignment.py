# SPDX-License-Identifier: Apache-2.0
"""From recordings to lines and repeatable blocks: which allocation of one step is which of another."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from bsmodel.errors import UntraceableError

Line = tuple[int, int]
Allocated = Sequence[tuple[int, Any]]  # (number, allocation)


def lines(first: Allocated, others: Sequence[Allocated], batches: Sequence[int], workload: str) -> dict[int, Line]:
    """Fixed and per-sample bytes of every allocation of `first`, from the same step recorded at the other batches.

    Two batches give the line `fixed + per_sample * b`, every further one checks it.
    Raises `UntraceableError` naming the operation and module where the steps differ or the sizes are no line.
    """
    found: dict[int, Line] = {}
    for other, batch in zip(others, batches[1:], strict=True):
        _same_path(first, other, batches[0], batch, workload)
    for position, (number, allocation) in enumerate(first):
        sizes = [allocation.size_bytes, *(other[position][1].size_bytes for other in others)]
        per_sample, rest = divmod(sizes[1] - sizes[0], batches[1] - batches[0])
        fixed = sizes[0] - per_sample * batches[0]
        if rest or any(fixed + per_sample * batch != size for batch, size in zip(batches, sizes, strict=True)):
            raise UntraceableError(
                f"{allocation.operator} in module {allocation.module or 'model'} takes {', '.join(map(str, sizes))} bytes at batches "
                f"{', '.join(map(str, batches))}: not a straight line in the batch, so {workload} has no closed form"
            )
        found[number] = (fixed, per_sample)
    return found


def _same_path(first: Allocated, other: Allocated, low: int, high: int, workload: str) -> None:
    names = [[(allocation.operator, allocation.module) for _, allocation in step] for step in (first, other)]
    if names[0] == names[1]:
        return
    shared = min(map(len, names))
    position = next((i for i in range(shared) if names[0][i] != names[1][i]), shared - 1)
    operator, module = names[0][position]
    raise UntraceableError(
        f"{workload} takes another path at batch {high} than at batch {low}, from {operator} in module {module or 'model'} on; "
        "make the step the same for every batch"
    )


def spread(known: dict[int, Line], steady: Allocated, others: Sequence[Allocated], released: set[int]) -> dict[int, Line] | None:
    """Extend the lines of the steady step to the steps before and after it, which allocate the same in the same order.

    What only one of them allocates and never gives back (library workspaces, caches) is fixed. Returns None where something else
    differs: then every step has to be recorded at every batch.
    """
    spread_lines = dict(known)
    tokens = [(a.operator, a.module, a.size_bytes) for _, a in steady]
    for other in others:
        matches = difflib.SequenceMatcher(None, tokens, [(a.operator, a.module, a.size_bytes) for _, a in other], autojunk=False)
        matched: set[int] = set()
        for tag, low, high, start, end in matches.get_opcodes():
            if tag == "equal":
                for offset in range(high - low):
                    spread_lines[other[start + offset][0]] = known[steady[low + offset][0]]
                    matched.add(start + offset)
            elif any(other[position][0] in released for position in range(start, end)):
                return None
    return spread_lines


def periodic(events: dict[str, list[int]], allocations: Sequence[Any]) -> tuple[dict[str, tuple[int, ...]], list[int]]:
    """Make the blocks of a recording repeatable, and number what they allocate from zero.

    A loop's variables (batch, loss, outputs) made in one micro-step die in the next, whichever that is; so the three recorded
    micro-steps share one number for each of them, and the two optimizer steps likewise. Returns the blocks and the kept numbers.
    """
    alias: dict[int, int] = {}
    _share(alias, events, "first", ("micro",), {"micro": ("accumulate",), "accumulate": ()}, allocations)
    _share(alias, events, "first_step", ("micro", "accumulate", "step"), {"step": ()}, allocations)
    kept: dict[int, int] = {}
    blocks: dict[str, tuple[int, ...]] = {}
    for name, block in events.items():
        renumbered = []
        for event in block:
            number = event if event >= 0 else ~event
            number = alias.get(number, number)
            index = kept.setdefault(number, len(kept))
            renumbered.append(index if event >= 0 else ~index)
        blocks[name] = tuple(renumbered)
    return blocks, list(kept)


def _share(
    alias: dict[int, int],
    events: dict[str, list[int]],
    origin: str,
    dies_in: tuple[str, ...],
    heirs: dict[str, tuple[str, ...]],
    allocations: Sequence[Any],
) -> None:
    """Give what each heir block leaves behind the numbers of what `origin` leaves behind."""
    carried = _left_behind(events, origin, dies_in)
    for heir, heir_dies_in in heirs.items():
        candidates = _left_behind(events, heir, heir_dies_in)
        waiting = list(carried)
        for number in candidates:
            twin = next((c for c in waiting if allocations[c].operator == allocations[number].operator), None)
            if twin is not None:
                waiting.remove(twin)
                alias[number] = twin


def _left_behind(events: dict[str, list[int]], block: str, dies_in: tuple[str, ...]) -> list[int]:
    """Numbers allocated in `block` and released in one of the blocks `dies_in`, or never where none is named."""
    allocated = [event for event in events[block] if event >= 0]
    if dies_in:
        released = {~event for name in dies_in for event in events[name] if event < 0}
        return [number for number in allocated if number in released]
    released = {~event for later in events.values() for event in later if event < 0}
    return [number for number in allocated if number not in released]
