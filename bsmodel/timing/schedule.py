# SPDX-License-Identifier: Apache-2.0
"""When each device computes and when it waits for the others: collectives beside kernels, in the order in which they were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import End, Gpu
from bsmodel.parallel import GPUS_PER_NODE, nodes_of
from bsmodel.tape import Collective, Tape, values
from bsmodel.timing.collectives import group_of, seconds

Array = NDArray[np.float64]
_MICRO_STEP = ("forward", "backward", "recompute")
_REDUCED = ("all-reduce", "reduce-scatter")


@dataclass(frozen=True)
class Spoken:
    """Seconds of a pass's collectives in all, and by how much they make it longer; an array over batches each."""

    seconds: Array
    exposed_seconds: Array

    def times(self, count: Any) -> Spoken:
        """Those of so many passes."""
        return Spoken(self.seconds * count, self.exposed_seconds * count)

    def __add__(self, other: Spoken) -> Spoken:
        return Spoken(self.seconds + other.seconds, self.exposed_seconds + other.exposed_seconds)


def nodes(tape: Tape, gpu: Gpu) -> int:
    """Machines that the devices stand in: as the recipe says, else as few as hold them by eights, or by as many as its network connects.

    Raises `InvalidInputError` where a machine of the network has fewer.
    """
    devices, most = _devices(tape), gpu.network.gpus_per_node if gpu.network else GPUS_PER_NODE
    found = int((tape.recipe.get("parallel") or {}).get("nodes") or nodes_of(devices, most))
    if gpu.network and most * found < devices:
        fewest = nodes_of(devices, most)
        raise InvalidInputError(f"nodes is {found}; network {gpu.network.id} connects {most} to a node, expected at least {fewest} for {devices:,} devices")
    return found


def per_node(tape: Tape, gpu: Gpu) -> int:
    """How many of the devices stand in a node; raises `InvalidInputError` as `nodes` does."""
    return -(-_devices(tape) // nodes(tape, gpu))


def _devices(tape: Tape) -> int:
    return max([tape.devices, *(each.ranks * each.stride for each in tape.collectives)])


def spoken(tape: Tape, gpu: Gpu, rows: Array, batch: NDArray[np.int64], micro_steps: NDArray[np.int64], end: End) -> Spoken:
    """What a whole optimizer step of `micro_steps` says, where distinct kernels take so many seconds each: an array of (batches..., kernels).

    Where not every micro-step sums its gradients, all but the last leave that out.
    """
    if not tape.collectives:
        nothing = np.zeros(np.broadcast_shapes(batch.shape, micro_steps.shape))
        return Spoken(nothing, nothing)
    alone, together, step = passes(tape, gpu, rows, batch, end)
    last = together.spoken(gpu.busy_share)
    further = last if alone is together else alone.spoken(gpu.busy_share)
    return last + further.times(micro_steps - 1) + step.spoken(gpu.busy_share)


@dataclass(frozen=True)
class Schedule:
    """When what of a pass is done, in seconds from its begin, where nobody slows a kernel: an array over batches each."""

    reached: dict[int, Array]  # by place: when the kernels up to it are done
    resumed: dict[int, Array]  # by place: when what the next kernel waits for is done, too
    begun: list[Array]  # of each collective
    done: list[Array]


@dataclass(frozen=True)
class Pass:
    """One pass through some of the kernels: which, the collectives that these wait for or that go on beside them, and how many seconds each takes.

    `computing[p]` are seconds of the kernels from the place before up to p.
    """

    kernels: NDArray[np.bool_]
    said: Sequence[Collective]
    lasting: Sequence[Array]
    computing: dict[int, Array]
    nothing: Array

    def schedule(self) -> Schedule:
        """When each place is reached and each collective goes on."""
        return scheduled(self.said, self.lasting, self.computing, self.nothing)

    def spoken(self, busy_share: float) -> Spoken:
        """What it says, where collectives take such a share of the multiprocessors from the kernels beside them."""
        total, alone = sum(self.lasting, self.nothing), waited(self.said, self.lasting, self.computing, self.nothing)
        return Spoken(total, alone + busy_share * (total - alone))


def passes(tape: Tape, gpu: Gpu, rows: Array, batch: NDArray[np.int64], end: End) -> tuple[Pass, Pass, Pass]:
    """A micro-step that others follow, the last one of an optimizer step, and what comes after it, where distinct kernels take so many seconds each."""
    within = [each for each in tape.collectives if each.phase != "step"]
    after = [each for each in tape.collectives if each.phase == "step"]
    kernels = tape.operations.where(*_MICRO_STEP), tape.operations.where("step")
    alone = together = _pass(tape, gpu, rows, within, kernels[0], batch, end)
    if not (tape.recipe.get("parallel") or {}).get("sync_each_micro_step", True):
        alone = _pass(tape, gpu, rows, [each for each in within if not _sums_gradients(each)], kernels[0], batch, end)
    return alone, together, _pass(tape, gpu, rows, after, kernels[1], batch, end)


def _sums_gradients(said: Collective) -> bool:
    """Whether it is of gradients, which are as large whatever the batch."""
    return said.phase == "backward" and said.kind in _REDUCED and not said.size.per_sample


def _pass(tape: Tape, gpu: Gpu, rows: Array, said: Sequence[Collective], chosen: NDArray[np.bool_], batch: NDArray[np.int64], end: End) -> Pass:
    places = sorted({0, int(chosen.sum()), *(place for each in said for place in (each.after, each.before))})
    lasting = _durations(said, gpu, per_node(tape, gpu), batch, end)
    between = _between(tape, rows, chosen, places)
    return Pass(chosen, said, lasting, dict(zip(places[1:], between, strict=True)), np.zeros(batch.shape))


def waited(said: Sequence[Collective], lasting: Sequence[Array], computing: dict[int, Array], nothing: Array) -> Array:
    """Seconds for which kernels wait: `computing[p]` are those of kernels from the place before up to p."""
    over = [*scheduled(said, lasting, computing, nothing).resumed.values()][-1]
    return np.asarray(np.clip(over - sum(computing.values(), nothing), 0, sum(lasting, nothing)))  # but for the rounding of sums


def scheduled(said: Sequence[Collective], lasting: Sequence[Array], computing: dict[int, Array], nothing: Array) -> Schedule:
    """When kernels and collectives of a pass go on: `computing[p]` are seconds of kernels from the place before up to p.

    Each group of ranks has one link, over which collectives go one after the other as they were begun, none before the kernels that it
    comes `after` are done; the kernels that come after its `before` wait until it is.
    """
    begun: list[Array] = []
    done: list[Array] = []
    free: dict[tuple[int, int], Array] = {}  # when a group's link is
    reached = {0: nothing}
    resumed: dict[int, Array] = {}
    now = nothing

    def finished(number: int) -> Array:
        while len(done) <= number:
            each = said[len(done)]
            begun.append(np.maximum(reached[min(each.after, max(reached))], free.get((each.ranks, each.stride), nothing)))
            free[each.ranks, each.stride] = begun[-1] + lasting[len(done)]
            done.append(free[each.ranks, each.stride])
        return done[number]

    waiting: dict[int, list[int]] = {}
    for number, each in enumerate(said):
        waiting.setdefault(each.before, []).append(number)
    for place in (0, *computing):
        now = now + computing.get(place, nothing)
        reached[place] = now
        for number in waiting.get(place, ()):
            now = np.maximum(now, finished(number))
        resumed[place] = now
    return Schedule(reached, resumed, begun, done)


def _durations(said: Sequence[Collective], gpu: Gpu, together: int, batch: NDArray[np.int64], end: End) -> list[Array]:
    """Seconds of each collective at each batch; those of one kind and group are asked for at once."""
    found: list[Array] = [np.zeros(batch.shape)] * len(said)
    alike: dict[tuple[str, int, int], list[int]] = {}
    for number, each in enumerate(said):
        alike.setdefault((each.kind, each.ranks, each.stride), []).append(number)
    for (kind, ranks, stride), numbers in alike.items():
        coefficients = np.array([astuple(said[number].size) for number in numbers], np.int64).T
        sizes = np.moveaxis(values(coefficients, batch).astype(np.float64), -1, 0)
        for number, lasting in zip(numbers, seconds(kind, sizes, group_of(ranks, stride, together), gpu, end), strict=True):
            found[number] = lasting
    return found


def _between(tape: Tape, rows: Array, chosen: NDArray[np.bool_], places: Sequence[int]) -> list[Array]:
    """Seconds of the chosen kernels from place to place."""
    own = tape.operations.distinct[1][chosen]
    counts = np.zeros((rows.shape[-1], max(len(places) - 1, 0)))
    piece = np.searchsorted(places, np.arange(len(own)), side="right") - 1
    if len(places) > 1:
        np.add.at(counts, (own, np.minimum(piece, len(places) - 2)), 1.0)
    return list(np.moveaxis(rows @ counts, -1, 0))
