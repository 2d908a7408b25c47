# SPDX-License-Identifier: Apache-2.0
"""From recordings to sizes and repeatable blocks: which allocation of one step is which of another."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from bsmodel.errors import UntraceableError
from bsmodel.tape import APART, BLOCKS, Polynomial, interpolated

NOTHING = Polynomial(0, 0)
_ONCE = ("init", "first", "first_step", "open", "close", "open_step")  # blocks that are not repeated
_STEPS = ("first_step", "step", "open_step", "end")  # those that are an optimizer's


class OtherPathError(UntraceableError):
    """A step that does something else at one batch than at another."""


class NoClosedFormError(UntraceableError):
    """A size that is no polynomial in the batch."""


@dataclass(frozen=True)
class Size:
    """Bytes of an allocation: a polynomial in the batch, plus a formula of `bsmodel.tape.workspaces` over parameters that are polynomials.

    `kind` is what it is where a library's choice cannot be known, `excess` how much larger it may then be.
    """

    bytes: Polynomial
    formula: str = ""
    parameters: tuple[Polynomial, ...] = ()
    kind: str = ""
    excess: Polynomial = NOTHING

    @property
    def pairs_samples(self) -> bool:
        """Whether anything of it is no straight line in the batch."""
        return any(each.per_pair for each in (self.bytes, self.excess, *self.parameters))


Allocated = Sequence[tuple[int, Any]]  # (number, allocation)


Fit = Callable[[list[int], Sequence[int]], Polynomial | None]  # of values at batches


def exactly(values: list[int], batches: Sequence[int]) -> Polynomial | None:
    """The straight line through the first two values, or else the polynomial through three, if it is whole, grows and fits all."""
    per_sample = (values[1] - values[0]) // (batches[1] - batches[0]) if len(values) > 1 else 0
    found = Polynomial(values[0] - per_sample * batches[0], per_sample)
    if _fits(found, values, batches):
        return found
    if len(values) < 3:
        return None
    coefficients = interpolated([Fraction(value) for value in values], batches)
    found = Polynomial(*map(int, coefficients))
    whole = all(number.denominator == 1 for number in coefficients)
    return found if whole and found.is_size and _fits(found, values, batches) else None


def nearly(values: list[int], batches: Sequence[int]) -> Polynomial | None:
    """The same, or of four values and more that are rounded up to whole rows a polynomial above all of them, if by a hundredth at the most."""
    found = exactly(values, batches)
    if found is not None or len(values) < 4:
        return found
    slope = -(-(values[-1] - values[0]) // (batches[-1] - batches[0]))
    chosen = (0, len(values) // 2, -1)
    curve = map(math.ceil, interpolated([Fraction(values[index]) for index in chosen], [batches[index] for index in chosen]))
    for found in (Polynomial(0, slope), Polynomial(*curve)):
        raised = replace(found, fixed=found.fixed + max(value - found(batch) for value, batch in zip(values, batches, strict=True)))
        if raised.is_size and all(raised(batch) <= value + value // 100 for value, batch in zip(values, batches, strict=True)):
            return raised
    return None


def sizes(steps: Sequence[Allocated], batches: Sequence[int], workload: str, fit: Fit = exactly) -> dict[int, Size]:
    """Fixed, per-sample and per-pair bytes of every allocation, from the same allocations recorded at several batches.

    Three batches give the polynomial, every further one checks it; it holds for the numbers of all the steps. Of those that are straight
    lines, two batches give each and the third checks it: only where one is none (`Size.pairs_samples`) is a fourth batch needed.
    Raises `UntraceableError` naming the operation and module where the steps differ or a size is no such polynomial.
    """
    for step, batch in zip(steps[1:], batches[1:], strict=True):
        _same_path(steps[0], step, batches[0], batch, workload)
    found: dict[int, Size] = {}
    for same in zip(*steps, strict=True):
        allocation = same[0][1]
        what = f"{allocation.operator} in module {allocation.module or 'model'}"
        size = _polynomial([a.size_bytes for _, a in same], batches, what, workload, fit)
        columns = zip(*(a.parameters for _, a in same), strict=True)
        parameters = tuple(_polynomial(list(column), batches, what, workload, fit) for column in columns)
        excess = _polynomial([a.excess_bytes for _, a in same], batches, what, workload, fit)
        found.update((number, Size(size, allocation.formula, parameters, allocation.kind, excess)) for number, _ in same)
    return found


def _polynomial(values: list[int], batches: Sequence[int], what: str, workload: str, fit: Fit) -> Polynomial:
    found = fit(values, batches)
    if found is None:
        raise NoClosedFormError(
            f"{what} takes {', '.join(map(str, values))} bytes at batches {', '.join(map(str, batches))}: neither a straight line in the batch "
            f"nor a parabola that grows with it, so {workload} has no closed form"
        )
    return found


def _fits(polynomial: Polynomial, values: list[int], batches: Sequence[int]) -> bool:
    return all(polynomial(batch) == value for batch, value in zip(batches, values, strict=True))


def _token(allocation: Any) -> tuple[str, str]:
    return allocation.operator, allocation.module


def _same_path(first: Allocated, other: Allocated, low: int, high: int, workload: str) -> None:
    names = [[_token(allocation) for _, allocation in step] for step in (first, other)]
    if names[0] == names[1]:
        return
    shared = min(map(len, names))
    position = next((i for i in range(shared) if names[0][i] != names[1][i]), shared - 1)
    operator, module = names[0][position]
    raise OtherPathError(
        f"{workload} takes another path at batch {high} than at batch {low}, from {operator} in module {module or 'model'} on; "
        "make the step the same for every batch, and switch off what is decided by chance on the host (LayerDrop, say)"
    )


_OF_GRADIENTS = ("gradient", "gradient bucket")  # which a first micro-step makes and later ones find
Group = list[tuple[int, tuple[int, Any]]]  # the same allocation of several micro-steps: (batch, (number, allocation)), that of the steady one first


def grouped(steps: Sequence[Allocated], released: set[int], batches: Sequence[int]) -> list[Group] | None:
    """Allocations of micro-steps of one run, each at another batch, that are the same one, when they allocate the same in the same order.

    A group lacks a step that adds a gradient in place instead of cloning it. What one step alone allocates and never gives back (library workspaces,
    caches) is in none. Returns None where something else differs: then every step has to be recorded at every batch.
    """
    middle = len(steps) // 2
    tokens = [_token(allocation) for _, allocation in steps[middle]]
    groups: list[Group] = [[(batches[middle], pair)] for pair in steps[middle]]
    for step, batch in zip(steps, batches, strict=True):
        if step is steps[middle]:
            continue
        others = [_token(allocation) for _, allocation in step]
        for tag, low, high, start, end in difflib.SequenceMatcher(None, tokens, others, autojunk=False).get_opcodes():
            if tag == "equal":
                for offset in range(high - low):
                    groups[low + offset].append((batch, step[start + offset]))
            elif any(number in released for number, _ in step[start:end]) or any(a.category not in _OF_GRADIENTS for _, a in steps[middle][low:high]):
                return None
    if any(len(group) == 1 and group[0][1][0] in released for group in groups):
        return None
    return [group for group in groups if len(group) > 1]


def sizes_of_groups(groups: Sequence[Group], workload: str) -> dict[int, Size]:
    """Sizes of what is the same in several micro-steps of one run; raises `UntraceableError` as `sizes` does."""
    found: dict[int, Size] = {}
    for group in groups:
        ordered = sorted(group, key=lambda pair: pair[0])
        found |= sizes([[pair] for _, pair in ordered], [batch for batch, _ in ordered], workload)
    return found


class Period(NamedTuple):
    """Blocks that can be repeated, and the numbers they keep from the recording.

    `twins` are numbers that share another's, being the same variable of the loop a micro-step later; `left` is what the second step
    allocates, never releases, and has no twin for.
    """

    blocks: dict[str, tuple[int, ...]]
    kept: list[int]
    twins: dict[int, int]
    left: list[int]


def periodic(events: dict[str, list[int]], allocations: Sequence[Any]) -> Period:
    """Make the blocks of a recording repeatable, and number what they allocate from zero.

    A loop's variables (batch, loss, outputs) made in one micro-step die in the next, whichever that is; so the recorded
    micro-steps share one number for each of them, and the optimizer steps likewise.
    """
    alias: dict[int, int] = {}
    for names in (BLOCKS[1:], APART) if APART[0] in events else (BLOCKS[1:],):
        micro_steps, steps = ([name for name in names if (name in _STEPS) == chosen] for chosen in (False, True))
        _share(alias, events, micro_steps[0], (micro_steps[1],), dict(zip(micro_steps[1:], [*((name,) for name in micro_steps[2:]), ()])), allocations)
        _share(alias, events, micro_steps[0], (micro_steps[1],), {micro_steps[1]: ()}, allocations)
        _share(alias, events, steps[0], names[names.index(steps[0]) + 1 :], {steps[1]: ()}, allocations)
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
    left = [number for name in events if name not in _ONCE for number in _left_behind(events, name, ()) if number not in alias]
    return Period(blocks, list(kept), alias, left)


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
        taken = {alias[number] for number in events[heir] if number in alias}
        waiting = [number for number in carried if number not in taken]
        for number in candidates:
            same = [other for other in waiting if allocations[other].operator == allocations[number].operator]
            alike = [other for other in same if _likeness(allocations[other]) == _likeness(allocations[number])]
            if same:
                alias[number] = (alike or same)[0]
                waiting.remove(alias[number])


def _likeness(allocation: Any) -> tuple[str, int]:
    return allocation.module, allocation.size_bytes


def _left_behind(events: dict[str, list[int]], block: str, dies_in: tuple[str, ...]) -> list[int]:
    """Numbers allocated in `block` and released in one of the blocks `dies_in`, or never where none is named."""
    allocated = [event for event in events[block] if event >= 0]
    if dies_in:
        released = {~event for name in dies_in for event in events[name] if event < 0}
        return [number for number in allocated if number in released]
    released = {~event for later in events.values() for event in later if event < 0}
    return [number for number in allocated if number not in released]
