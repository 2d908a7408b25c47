# SPDX-License-Identifier: Apache-2.0
"""Steps that do something for every sample apart: what a larger batch does more often, laid onto the structure of a smaller one.

Two samples have two rounds of such a loop, three have three. The rounds that a larger batch has more are twins of those that the smaller one has: what a
twin keeps beside the other adds to its size, what is given back before the other comes takes its place, and its work adds to the other's.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bsmodel.recording.recorder import Allocation
from bsmodel.tape import Row

_BLOCK = 512  # bytes: each round's tensor takes whole ones (c10/cuda/CUDACachingAllocator.h, kMinBlockSize)
Allocated = Sequence[tuple[int, Allocation]]
Life = tuple[int, int]  # the events between which an allocation is there


class Element(NamedTuple):
    """What happens at one position of a step: what it is, and how many bytes are in it."""

    name: Hashable
    size: float


class Standing(NamedTuple):
    """Which positions of a step stand for an element of another: its own, and those of further rounds, each with its like a round before."""

    own: int
    more: list[tuple[int, int]]


def laid_onto(base: Sequence[Element], other: Sequence[Element], more: int) -> list[Standing] | None:
    """For each element of `base` the positions in `other` that stand for it: its own, and those of `more` further rounds where it is part of a loop.

    None where `other` is no such repetition of `base`.
    """
    owner: dict[int, int] = {}
    twin: dict[int, int] = {}
    inserted: list[tuple[int, int]] = []
    names = [[element.name for element in side] for side in (base, other)]
    for tag, low, high, start, end in difflib.SequenceMatcher(None, names[0], names[1], autojunk=False).get_opcodes():
        if tag == "equal":
            owner.update(zip(range(start, end), range(low, high), strict=True))
        elif tag == "insert" and (end - start) % more == 0:
            inserted.append((start, end))
        else:
            return None
    for start, end in inserted:
        placed = _placed(start, end, (end - start) // more, base, other, owner)
        if placed is None:
            return None
        for position in placed[1]:
            owner.pop(position, None)
        owner.update(placed[0])
        twin.update(placed[1])
    found = [Standing(-1, []) for _ in base]
    for position, index in sorted(owner.items()):
        if position in twin:
            found[index].more.append((position, twin[position]))
        else:
            found[index] = found[index]._replace(own=position)
    return found


Indices = dict[int, int]  # by position


def _placed(start: int, end: int, period: int, base: Sequence[Element], other: Sequence[Element], owner: Indices) -> tuple[Indices, Indices] | None:
    """Whom the elements of further rounds stand for, and which are like them a round before; None where for nobody.

    They may be there or, among elements of the same names, a little before or after. Where there is a choice, elements do not shrink as the batch
    grows, and those of one round are as large as those of another.
    """
    length = end - start
    before = next(k for k in itertools.count() if start - 1 - k not in owner or other[start - 1 - k].name != other[end - 1 - k].name)
    after = next(k for k in itertools.count() if end + k not in owner or other[start + k].name != other[end + k].name)
    positions = [*range(start - before, start), *range(end, end + after)]
    indices = [owner[position] for position in positions]

    def shrinking(offset: int) -> list[bool]:
        return [other[start - before + offset + i].size < base[index].size for i, index in enumerate(indices)]

    left, right = ([0, *itertools.accumulate(flags)] for flags in (shrinking(0), shrinking(length)))
    cost = [left[place] + right[-1] - right[place] for place in range(len(indices) + 1)]
    for same in (True, False):
        for place in sorted(range(len(cost)), key=lambda place: (cost[place], abs(place - before))):
            moved = {start - before + i + (0 if i < place else length): index for i, index in enumerate(indices)}
            belong, first = {**owner, **moved}, start - before + place
            given = _twins(first, first + length, period, other, belong, same)
            if given is not None:
                for position, like in sorted(given.items()):
                    belong[position] = _first(belong[like], period, base)
                return {position: belong[position] for position in (*moved, *given)}, given
    return None


def _twins(start: int, end: int, period: int, other: Sequence[Element], owner: Indices, same: bool) -> Indices | None:
    """Which element is like an inserted one: that of its name a round before or after, or else the nearest within two rounds."""
    distances = sorted(range(1, 2 * period + 1), key=lambda distance: (distance != period, distance))
    given: dict[int, int] = {}
    for position in range(start, end):
        for like in (position + sign * distance for distance in distances for sign in (-1, 1)):
            known = like in given if start <= like < end else like in owner
            if known and other[like].name == other[position].name and (not same or other[like].size == other[position].size):
                given[position] = like
                break
        else:
            return None
    return given


def _first(index: int, period: int, base: Sequence[Element]) -> int:
    """Of elements that are alike from round to round the first: all that a larger batch has more is counted with it."""
    while (before := next((i for i in range(index - 1, max(-1, index - period - 1), -1) if base[i] == base[index]), None)) is not None:
        index = before
    return index


def structured(steps: Sequence[Allocated], events: Sequence[Sequence[int]], batches: Sequence[int]) -> list[Allocated] | None:
    """The allocations of every step in the structure of the first, which has the smallest batch; None where that is none of theirs."""
    elements = [[Element((a.operator, a.module), a.size_bytes) for _, a in step] for step in steps]
    found: list[Allocated] = [steps[0]]
    for step, parts, moments, batch in zip(steps[1:], elements[1:], events[1:], batches[1:], strict=True):
        standing = laid_onto(elements[0], parts, batch - batches[0])
        together = None if standing is None else _gathered(steps[0], step, standing, _lives(moments))
        if together is None:
            return None
        found.append(together)
    return found


def _gathered(base: Allocated, other: Allocated, standing: list[Standing], lives: dict[int, Life]) -> Allocated | None:
    """The allocations of `other` in the structure and with the numbers of `base`; None where a loop keeps buffers that are no plain tensors.

    `lives` are those of `other`'s allocations, by number.
    """
    found = []
    for (number, _), (own, more) in zip(base, standing, strict=True):
        first = other[own][1]
        beside = [other[position][1] for position, like in more if _together(lives[other[like][0]], lives[other[position][0]])]
        if any(copy.formula or copy.kind for copy in beside):
            return None
        same = all(copy.size_bytes == first.size_bytes for copy in beside)
        kept = sum(-(-copy.size_bytes // _BLOCK) * _BLOCK if same else copy.size_bytes for copy in beside)
        largest = max([first.size_bytes, *(other[position][1].size_bytes for position, _ in more)])
        found.append((number, replace(first, size_bytes=first.size_bytes + kept if beside else largest)))
    return found


def _together(one: Life, other: Life) -> bool:
    """Whether both are there for most of the time of the shorter one: a loop's variable is there for a moment while the next round makes its own."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return 2 * shared > min(one[1] - one[0], other[1] - other[0])


def _lives(events: Sequence[int]) -> dict[int, Life]:
    """From which event to which each allocation is there, by its number."""
    found: dict[int, Life] = {}
    for position, event in enumerate(events):
        number = event if event >= 0 else ~event
        found[number] = (position, len(events)) if event >= 0 else (found[number][0], position)
    return found


def works(base: Sequence[Row], other: Sequence[Row], more: int) -> list[Row] | None:
    """The rows of `other` in the structure of `base`: what is computed and moved in every round, together."""
    standing = laid_onto([_element(row) for row in base], [_element(row) for row in other], more)
    return None if standing is None else [_sum([other[own], *(other[position] for position, _ in more)]) for own, more in standing]


def _element(row: Row) -> Element:
    return Element((row.operator, row.module, row.phase, row.kind), row.numbers[4])


def _sum(rows: list[Row]) -> Row:
    """One row for several: products of one shape are groups of them."""
    groups, *shape = rows[0].numbers[:4]
    totals = [sum(column) for column in zip(*(row.numbers[4:] for row in rows), strict=True)]
    return replace(rows[0], numbers=(sum(row.numbers[0] for row in rows) if groups else groups, *shape, *totals))
