# SPDX-License-Identifier: Apache-2.0
"""Steps that do something for every sample apart: what a larger batch does more often, laid onto the structure of a smaller one.

Two samples have two rounds of such a loop, three have three. The rounds that a larger batch has more are twins of those that the smaller one has: what a
twin keeps beside the other adds to its size, what is given back before the other comes takes its place, and its work adds to the other's.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bsmodel.recording.allocation import Allocation
from bsmodel.tape import Row

_NOWHERE = 1 << 40  # places
_ALIGNING = frozenset(("aten.constant_pad_nd.default",))  # of masks: aten/src/ATen/native/transformers/attention.cpp, pad_bias
_BLOCK = 512  # bytes: each round's tensor takes whole ones (c10/cuda/CUDACachingAllocator.h, kMinBlockSize)
Allocated = Sequence[tuple[int, Allocation]]
Indices = dict[int, int]  # by position
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
    names = [element.name for element in other]
    gaps = _gaps([element.name for element in base], names, more)
    if gaps is None:
        return None
    owner: Indices = {}
    twin: Indices = {}
    begin = 0
    for index, start, _ in [*gaps, (len(base), len(other), len(other))]:
        owner.update(zip(range(start - (index - begin), start), range(begin, index), strict=True))
        begin = index
    for _, low, high in gaps:
        for start, end in _loops(low, high, more, names) or [(low, high)]:
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


def _gaps(base: Sequence[Hashable], other: Sequence[Hashable], more: int) -> list[tuple[int, int, int]] | None:
    """Where `other` has what `base` has not, in the fewest places: before which index of `base`, and from where to where. None where it lacks something.

    A row for each prefix of `base`: how few places there are if its last element is matched with so many further elements before it. What is
    further there is, in every place, of `more` rounds.
    """
    further = len(other) - len(base)
    if further < 0 or further % more:
        return None
    codes = {name: code for code, name in enumerate(dict.fromkeys((*base, *other)))}
    wanted, given = (np.array([codes[name] for name in names], np.int64) for names in (base, other))
    offsets = np.arange(further // more + 1) * more
    matched = np.full((len(base) + 1, len(offsets)), _NOWHERE)
    matched[0, 0] = 0
    for index in range(len(base)):
        fewest = np.minimum(matched[index], _after_a_gap(matched[index]))
        matched[index + 1] = np.where(wanted[index] == given[index + offsets], fewest, _NOWHERE)
    found = []
    column = len(offsets) - 1
    for index in range(len(base), -1, -1):
        after = _after_a_gap(matched[index])
        if min(matched[index, column], after[column]) >= _NOWHERE:
            return None
        if after[column] < matched[index, column]:
            before = int(np.flatnonzero(matched[index, :column] == after[column] - 1)[-1])
            found.append((index, int(index + offsets[before]), int(index + offsets[column])))
            column = before
    return found[::-1]


def _after_a_gap(matched: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fewest places, if another comes now."""
    return np.concatenate([[_NOWHERE], np.minimum.accumulate(matched)[:-1] + 1])


def _loops(start: int, end: int, more: int, names: Sequence[Hashable]) -> list[tuple[int, int]] | None:
    """What is inserted between two positions, by the loops it is of: one, or several that follow each other, each with `more` further rounds."""
    if start == end:
        return []
    for period in range((end - start) // more, 0, -1):
        middle = start + more * period
        if _goes_on(start, middle, period, names) and (others := _loops(middle, end, more, names)) is not None:
            return [(start, middle), *others]
    return None


def _goes_on(start: int, end: int, period: int, names: Sequence[Hashable]) -> bool:
    """Whether these are rounds of a loop that has another round, before them, after them or on both sides."""
    if names[start : end - period] != names[start + period : end]:
        return False
    low, high = start, end - period
    while low > 0 and names[low - 1] == names[low - 1 + period]:
        low -= 1
    while high + period < len(names) and names[high] == names[high + period]:
        high += 1
    return high - low >= end - start


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
                least = belong.get(_begins(start, period, other), belong.get(end, 0))
                for position, like in given.items():  # each after what it is like
                    belong[position] = _first(belong[like], period, base, least)
                return {position: belong[position] for position in (*moved, *given)}, given
    return None


def _twins(start: int, end: int, period: int, other: Sequence[Element], owner: Indices, same: bool) -> Indices | None:
    """Which element is like an inserted one: that of its name a round before, or after, or else the nearest within two rounds."""
    given: dict[int, int] = {}

    def like(position: int, distances: Iterable[int]) -> None:
        for candidate in (position + distance for distance in distances):
            known = candidate in given if start <= candidate < end else candidate in owner
            if known and other[candidate].name == other[position].name and (not same or other[candidate].size == other[position].size):
                given[position] = candidate
                return

    for position in range(start, end):
        like(position, (-period,))
    for position in range(end - 1, start - 1, -1):
        if position not in given:
            like(position, (period,))
    for position in range(start, end):
        if position not in given:
            like(position, (sign * distance for distance in range(1, 2 * period + 1) for sign in (-1, 1)))
    return given if len(given) == end - start else None


def _begins(start: int, period: int, other: Sequence[Element]) -> int:
    """Where the rounds before this one begin."""
    while start > 0 and other[start - 1].name == other[start - 1 + period].name:
        start -= 1
    return start


def _first(index: int, period: int, base: Sequence[Element], least: int) -> int:
    """Of elements that are alike from round to round the first, of the loop that begins at `least`: all that a larger batch has more is counted with it."""
    while index - period >= least and base[index - period] == base[index]:
        index -= period
    return index


def _standings(steps: Sequence[Sequence[Element]], batches: Sequence[int], by_size: bool) -> list[list[Standing]] | None:
    """What of every further step stands for the elements of the first; `by_size` tells those apart by their sizes that are repeated in one size."""
    if by_size:
        repeated = _repeated(steps, batches)
        steps = [[element._replace(name=element) if element in repeated else element for element in step] for step in steps]
    found = []
    for step, batch in zip(steps[1:], batches[1:], strict=True):
        standing = laid_onto(steps[0], step, batch - batches[0])
        if standing is None:
            return None
        found.append(standing)
    return found


def _repeated(steps: Sequence[Sequence[Element]], batches: Sequence[int]) -> Collection[Element]:
    """What is there as many times more as there are more samples, in one size: loops that follow each other may differ in nothing else."""
    counts = [Counter(step) for step in steps]
    return {
        element
        for element, count in counts[0].items()
        if (more := counts[1][element] - count) > 0
        and all(each[element] - count == more * (batch - batches[0]) // (batches[1] - batches[0]) for each, batch in zip(counts, batches, strict=True))
    }


def same_kinds(one: Iterable[Allocation], other: Iterable[Allocation]) -> bool:
    """Whether the same is done at two batches, however often; rows may be padded at one of them only."""
    kinds = [{(allocation.operator, allocation.module) for allocation in step} for step in (one, other)]
    return all(operator in _ALIGNING for operator, _ in kinds[0] ^ kinds[1])


def structured(steps: Sequence[Allocated], events: Sequence[Sequence[int]], batches: Sequence[int], by_size: bool) -> list[Allocated] | None:
    """The allocations of every step in the structure of the first, which has the smallest batch; None where that is none of theirs."""
    elements = [[Element((a.operator, a.module), a.size_bytes) for _, a in step] for step in steps]
    standings = _standings(elements, batches, by_size)
    if standings is None:
        return None
    kept = _kept(steps[-1], standings[-1], _lives(events[-1]))
    found = [_gathered(steps[0], step, standing, kept) for step, standing in zip(steps[1:], standings, strict=True)]
    return None if None in found else [steps[0], *(step for step in found if step is not None)]


def _kept(step: Allocated, standings: list[Standing], lives: dict[int, Life]) -> list[bool]:
    """Of each element whether what further rounds make of it is kept beside the round's before, in most rounds: after the last there is little to see.

    `lives` are those of the step's allocations, by number.
    """
    numbers = [number for number, _ in step]
    beside = [[_together(lives[numbers[like]], lives[numbers[position]]) for position, like in standing.more] for standing in standings]
    return [2 * sum(rounds) >= len(rounds) for rounds in beside]


def _gathered(base: Allocated, other: Allocated, standings: list[Standing], kept: list[bool]) -> Allocated | None:
    """The allocations of `other` in the structure and with the numbers of `base`; None where a loop keeps buffers that are no plain tensors."""
    found = []
    for (number, _), (own, more), stays in zip(base, standings, kept, strict=True):
        first = other[own][1]
        beside = [other[position][1] for position, _ in more] if stays else []
        if any(copy.formula or copy.kind for copy in beside):
            return None
        same = all(copy.size_bytes == first.size_bytes for copy in beside)
        together = sum(-(-copy.size_bytes // _BLOCK) * _BLOCK if same else copy.size_bytes for copy in beside)
        largest = max([first.size_bytes, *(other[position][1].size_bytes for position, _ in more)])
        found.append((number, replace(first, size_bytes=first.size_bytes + together if beside else largest)))
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


def works(steps: Sequence[list[Row]], batches: Sequence[int], by_size: bool) -> list[list[Row]] | None:
    """The rows of every step in the structure of the first: what is computed and moved in every round, together."""
    elements = [[Element((row.operator, row.module, row.phase, row.kind), row.numbers[4]) for row in step] for step in steps]
    standings = _standings(elements, batches, by_size)
    if standings is None:
        return None
    further = zip(steps[1:], standings, strict=True)
    return [steps[0], *([_sum([rows[own], *(rows[position] for position, _ in more)]) for own, more in standing] for rows, standing in further)]


def _sum(rows: list[Row]) -> Row:
    """One row for several: products of one shape are groups of them."""
    groups, *shape = rows[0].numbers[:4]
    totals = [sum(column) for column in zip(*(row.numbers[4:] for row in rows), strict=True)]
    return replace(rows[0], numbers=(sum(row.numbers[0] for row in rows) if groups else groups, *shape, *totals))
