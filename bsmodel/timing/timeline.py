# SPDX-License-Identifier: Apache-2.0
"""A predicted optimizer step event by event: what the host launches, what the device computes, and what goes over each link, by the rules of `step_time`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.shown import Shown
from bsmodel.tape import KEEPS, Collective, Integer, Tape
from bsmodel.timing.chrome import DEVICE, HOST, LINK, trace_events
from bsmodel.timing.rates import launch_seconds
from bsmodel.timing.schedule import Pass, Schedule, passes
from bsmodel.timing.step import At, Work, asked, at
from bsmodel.units import whole

Array = NDArray[np.float64]
MOST_EVENTS = 1_000_000  # of which a viewer makes something, in a gigabyte


@dataclass(frozen=True, slots=True)
class Event:
    """What one track does from `start_seconds` on, for `seconds`: a kernel, its launches by the host, or a collective.

    `track` is "host launches", "compute stream", or "communication" and the group of ranks whose link it is. `name` is the operator or the kind of
    collective; a collective has no module. `micro_step` counts from 1 and is None in the optimizer step after them. `bytes` are what a kernel reads and
    writes, or what each rank has of a collective; `flops` what a kernel's matrix product takes, a multiply-add as two.
    """

    track: str
    name: str
    module: str
    phase: str
    micro_step: int | None
    start_seconds: float
    seconds: float
    bytes: float = 0.0
    flops: float = 0.0

    @property
    def end_seconds(self) -> float:
        """When it is over."""
        return self.start_seconds + self.seconds


@dataclass(frozen=True)
class Timeline(Shown):
    """One optimizer step of `accumulation` micro-steps of `batch` samples, likely as long as `step_time` says: its events in order of their start."""

    name: str
    gpu: str
    batch: int
    accumulation: int
    seconds: float
    events: tuple[Event, ...]

    def __repr__(self) -> str:  # its events would fill pages
        return f"Timeline({self.name!r}, {self.gpu}, batch {self.batch} x {self.accumulation}, {self.seconds:.4g} s, {len(self.events)} events)"

    @property
    def tracks(self) -> tuple[str, ...]:
        """Those that have events: the host's, the device's, and one for each link."""
        found = {event.track for event in self.events}
        return tuple(track for track in (HOST, DEVICE, *sorted(found - {HOST, DEVICE})) if track in found)

    def chrome_trace(self) -> dict[str, Any]:
        """The document that chrome://tracing and ui.perfetto.dev open: Google's Trace Event Format, microseconds from the begin of the step."""
        return trace_events(self)


def timeline(tape: Tape, gpu: Gpu, batch: Integer, accumulation: Integer | None = None) -> Timeline:
    """When each kernel of one optimizer step likely runs, at micro-batch `batch` with `accumulation` micro-steps (default: the recipe's).

    Kernels run one after the other as they were recorded, as far from one another as the host launches them where it is the slower one. Host launches
    have no gaps and wait for nothing. A collective begins when the kernels that it comes after are done and its group's link is free; beside it kernels
    take longer by `Gpu.busy_share` of its time, and it is drawn as long as they do. What keeps or adds up gradients comes at the end of its micro-step.
    Raises `InvalidInputError` as `step_time` does, and for a step of more than a million events.
    """
    step = step_of(tape, gpu, batch, accumulation)
    require_drawable(step.accumulation, step.count())
    seconds, events = step.drawn()
    return Timeline(tape.name, gpu.id, step.batch, step.accumulation, seconds, tuple(sorted(events, key=lambda event: event.start_seconds)))


def step_of(tape: Tape, gpu: Gpu, batch: Integer, accumulation: Integer | None) -> Step:
    """What an optimizer step is drawn from; raises `InvalidInputError` as `step_time` does."""
    size, repeats = asked(tape, gpu, whole("batch", batch), None if accumulation is None else whole("accumulation", accumulation))
    work = Work(tape.operations.distinct[0], tape.operations.counts)
    found = at("likely", work, tape, gpu, size, repeats)
    return Step(tape, gpu, int(size), int(repeats), found, passes(tape, gpu, found.rows * found.slower, size, "likely"))


def require_drawable(accumulation: int, count: int) -> None:
    """Raises `InvalidInputError` for a step of too many events."""
    if count > MOST_EVENTS:
        raise InvalidInputError(
            f"a step of {accumulation:,} micro-steps has {count:,} events, of which at most {MOST_EVENTS:,} are drawn; ask for fewer micro-steps"
        )


@dataclass(frozen=True)
class _Drawn:
    """A pass from its begin on: which kernels of the tape run from when to when, what is said from when to when, and when it is over, in seconds."""

    kernels: NDArray[np.int64]
    starts: Array
    ends: Array
    said: Sequence[Collective]
    begun: Array
    done: Array
    over: float

    def then(self, kernels: NDArray[np.int64], own: Array, apart: float) -> _Drawn:
        """With further kernels after all else, which take `own` seconds each and are `apart` times as far from one another."""
        ends = self.over + np.cumsum(own) * apart
        starts = np.concatenate([[self.over], ends[:-1]])[: len(own)] + (apart - 1) * own
        numbers, starts = np.concatenate([self.kernels, kernels]), np.concatenate([self.starts, np.minimum(starts, ends)])
        return replace(self, kernels=numbers, starts=starts, ends=np.concatenate([self.ends, ends]), over=float(ends[-1]) if len(ends) else self.over)


@dataclass(frozen=True)
class Step:
    """What an optimizer step is drawn from: `passes` are a micro-step that others follow, the last one, and what comes after it."""

    tape: Tape
    gpu: Gpu
    batch: int
    accumulation: int
    found: At
    passes: tuple[Pass, Pass, Pass]

    def count(self) -> int:
        """How many events it has."""
        alone, together, step = self.passes
        first, further = (int(self.tape.operations.where(phase).sum()) for phase in KEEPS)
        kernels = self.accumulation * int(alone.kernels.sum()) + first + (self.accumulation - 1) * further + int(step.kernels.sum())
        return 2 * kernels + (self.accumulation - 1) * len(alone.said) + len(together.said) + len(step.said)

    def drawn(self) -> tuple[float, list[Event]]:
        """How long it is, and all its events, track by track of each pass."""
        now, launched, events = 0.0, 0.0, list[Event]()
        for micro_step, each in self.parts():
            events += self._computed(each, micro_step, now)
            events += self._said(each, micro_step, now)
            launches = self._launches[each.kernels]
            events += self._launched(each, micro_step, launched + np.cumsum(launches) - launches, launches)
            now, launched = now + each.over, launched + float(launches.sum())
        return now, events

    def done(self) -> Iterator[tuple[Array, float]]:
        """Of every micro-step, and of what comes after them: the seconds after which none, one, two and so on of its kernels that keep no gradients are done,
        and how many it takes."""
        for micro_step, each in self.parts():
            count = int(self.passes[2 if micro_step is None else 0].kernels.sum())
            yield np.concatenate([[0.0], each.ends[:count]]), each.over

    def parts(self) -> Iterator[tuple[int | None, _Drawn]]:
        """Every micro-step by its number, and what comes after them."""
        own, apart = self._own, self._apart
        alone, together, step = (drawn(each, own, float(self.found.slower), apart, self.gpu.busy_share) for each in self.passes)
        kept, added = (np.flatnonzero(self.tape.operations.where(phase)) for phase in KEEPS)
        further = alone.then(added, own[added], apart)
        for number in range(1, self.accumulation + 1):
            if 1 < number < self.accumulation:
                yield number, further
            else:
                rows = kept if number == 1 else added
                yield number, (together if number == self.accumulation else alone).then(rows, own[rows], apart)
        yield None, step

    @property
    def _apart(self) -> float:
        """How many times as far apart kernels are as they take, in a step of so many micro-steps."""
        return max(1.0, float(self.found.host / self.found.device)) if self.found.device else 1.0

    @cached_property
    def _own(self) -> Array:
        """Device seconds of every kernel."""
        return self.found.rows[self.tape.operations.distinct[1]]

    @cached_property
    def _launches(self) -> Array:
        """Host seconds that every kernel takes to launch."""
        return self.tape.operations.column("launches", self.batch) * launch_seconds(self.gpu)[0]

    @cached_property
    def _moved(self) -> Array:
        return self.tape.operations.column("moved_bytes", self.batch)

    @cached_property
    def _flops(self) -> Array:
        groups, m, n, k = (self.tape.operations.column(name, self.batch) for name in ("groups", "m", "n", "k"))
        return 2 * groups * m * n * k

    def _computed(self, each: _Drawn, micro_step: int | None, now: float) -> Iterator[Event]:
        lasting = each.ends - each.starts
        for row, start, seconds in zip(each.kernels.tolist(), (now + each.starts).tolist(), lasting.tolist(), strict=True):
            yield Event(DEVICE, *self._words(row), micro_step, start, seconds, float(self._moved[row]), float(self._flops[row]))

    def _launched(self, each: _Drawn, micro_step: int | None, starts: Array, lasting: Array) -> Iterator[Event]:
        for row, start, seconds in zip(each.kernels.tolist(), starts.tolist(), lasting.tolist(), strict=True):
            yield Event(HOST, *self._words(row), micro_step, start, seconds)

    def _said(self, each: _Drawn, micro_step: int | None, now: float) -> Iterator[Event]:
        lasting = each.done - each.begun
        for said, start, seconds in zip(each.said, (now + each.begun).tolist(), lasting.tolist(), strict=True):
            yield Event(_link(said), said.kind, "", said.phase, micro_step, start, seconds, float(said.size(self.batch)))

    def _words(self, row: int) -> tuple[str, str, str]:
        operations = self.tape.operations
        return operations.operators[row], operations.modules[row], operations.phases[row]


def _link(said: Collective) -> str:
    """The track of a group of ranks."""
    return f"{LINK}, {said.ranks} ranks" + (f" {said.stride} apart" if said.stride > 1 else "")


def drawn(each: Pass, own: Array, slower: float, apart: float, busy_share: float) -> _Drawn:
    """A pass whose schedule has kernels `slower` times as far apart as their `own` seconds, drawn with them `apart` times as far and slowed by what is said.

    What the schedule has kernels compute takes `apart / slower` times as long, and `busy_share` more for each collective that goes on meanwhile.
    """
    plan = each.schedule()
    kernels = np.flatnonzero(each.kernels)
    starts, ends = _slots(plan, own[kernels] * slower)
    begun, done, reached, resumed = (
        np.array([float(when) for when in several]) for several in (plan.begun, plan.done, plan.reached.values(), plan.resumed.values())
    )
    knots = np.unique(np.concatenate([begun, done, reached, resumed]))
    waits, beside = _going_on(reached, resumed, knots), _going_on(begun, done, knots)
    rates = np.where(waits > 0, 1 - busy_share, apart / slower) + busy_share * beside  # while kernels wait, the first of those said slows none
    clock = np.concatenate([[0.0], np.cumsum(np.diff(knots) * rates)])
    starts, ends, begun, done = (np.interp(when, knots, clock) for when in (starts, ends, begun, done))
    starts = np.minimum(starts + (apart - 1) * own[kernels], ends)
    return _Drawn(kernels, starts, ends, each.said, begun, done, float(clock[-1]))


def _slots(plan: Schedule, lasting: Array) -> tuple[Array, Array]:
    """When kernels start and end by a schedule, one after the other between its places."""
    starts, ends = np.zeros_like(lasting), np.zeros_like(lasting)
    for first, last in itertools.pairwise(plan.reached):
        until = np.minimum(plan.resumed[first] + np.cumsum(lasting[first:last]), plan.reached[last])
        until[-1:] = plan.reached[last]  # but for the rounding of sums
        ends[first:last] = until
        starts[first:last] = np.concatenate([[plan.resumed[first]], until])[: len(until)]
    return starts, ends


def _going_on(begun: Array, done: Array, knots: Array) -> NDArray[np.int64]:
    """Between each two knots, how many of these go on."""
    middle = (knots[1:] + knots[:-1]) / 2
    return np.searchsorted(np.sort(begun), middle) - np.searchsorted(np.sort(done), middle)
