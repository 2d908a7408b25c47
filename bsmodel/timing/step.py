# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: a roofline over the recorded kernels, in closed form in the batch, and what the devices say to one another beside them.

Each kernel takes the larger of its arithmetic and its memory time, and a moment to start; the step takes the longer of the device's
work and the host's launches, and what it waits for other devices. Nothing here is fitted to step times:
rates and shares are measured elsewhere, in `hardware/` and the tables below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import End, Gpu, runtime
from bsmodel.shown import Charted
from bsmodel.tape import Integer, Integers, Operations, Tape, micro_batches, micro_steps, require_accumulates, require_same_kernels
from bsmodel.timing.kernels import kind_of, product_seconds
from bsmodel.timing.rates import Rates, launch_seconds, peak_flops_per_s, rate_dtype, rates_of
from bsmodel.timing.schedule import Spoken, spoken
from bsmodel.units import finite, whole, wholes


def _write(values: NDArray[Any]) -> list[Any]:
    return list(values.tolist())


def _read(values: object) -> NDArray[Any]:
    if np.isscalar(values):
        raise ValueError("expected several numbers")
    return np.asarray(values)


# In JSON arrays are lists, of lists where they have more than one axis.
_LISTS = PlainValidator(_read), PlainSerializer(_write), WithJsonSchema({"type": "array", "items": {"type": ["number", "array"]}})
ENDS: tuple[End, ...] = get_args(End)  # likely, least and most seconds, as `launch_seconds` has them
Array = Annotated[NDArray[np.float64], *_LISTS]
Counts = Annotated[NDArray[np.int64], *_LISTS]
Count = TypeVar("Count", int, Counts)
Value = TypeVar("Value", float, Array)


@dataclass(frozen=True)
class StepTime(Charted, Generic[Count, Value]):
    """Seconds of one optimizer step of `accumulation` micro-steps: numbers for one batch, arrays for several.

    `low_seconds` and `high_seconds` enclose what is not known of the card: an unmeasured matmul efficiency, throttling of power-limited
    cards, the host's time per launch, the links to other devices. What these say to one another takes `communication_seconds`, of which
    the step is `exposed_seconds` longer: where kernels wait, and where they share the multiprocessors with NCCL's.
    `launches` are the kernels of the step, `phases` the device's seconds of forward, backward,
    recompute and step. `flops` are those of forward and backward, without recomputation; at the card's peaks they would take
    `ideal_seconds`, each product at that of the arithmetic it runs in, and `mfu`, the model FLOPs utilisation, is that over `seconds`
    (Chowdhery 2022). It is at most 1: arithmetic that an algorithm saves (Winograd's) is not counted as done, and where a card was measured
    above the peak on its box, that is its peak.
    """

    batch: Count
    accumulation: Count
    seconds: Value
    low_seconds: Value
    high_seconds: Value
    device_seconds: Value
    host_seconds: Value
    communication_seconds: Value
    exposed_seconds: Value
    launches: Value
    phases: dict[str, Value]
    flops: Value
    ideal_seconds: Value
    mfu: Value
    samples_per_s: Value
    tokens_per_s: Value
    tokens_per_sample: int

    @property
    def scaling_efficiency(self) -> Value:
        """The throughput of a device over that of one that waits for no other, at the same batch; at most 1."""
        return 1 - self.exposed_seconds / self.seconds

    @property
    def bound(self) -> str:
        """What is busy for most of the step of one batch: "device", "host" or "network"."""
        busy = {"host": self.host_seconds, "device": self.device_seconds, "network": self.communication_seconds}
        return max(busy, key=lambda name: busy[name])


@overload
def step_time(tape: Tape, gpu: Gpu, batch: Integer, accumulation: Integer | None = None) -> StepTime[int, float]: ...
@overload
def step_time(tape: Tape, gpu: Gpu, batch: Integers, accumulation: Integer | Integers | None = None) -> StepTime[Counts, Array]: ...
@overload
def step_time(tape: Tape, gpu: Gpu, batch: Integer, accumulation: Integers) -> StepTime[Counts, Array]: ...
def step_time(
    tape: Tape, gpu: Gpu, batch: Integer | Integers, accumulation: Integer | Integers | None = None
) -> StepTime[int, float] | StepTime[Counts, Array]:
    """Time of one optimizer step at micro-batch `batch`, with `accumulation` micro-steps (default: the recipe's). Both may be several,
    broadcast as numpy does it; then all answers are.

        t_kernel = max(arithmetic, bytes / bandwidth) + kernel_seconds
        t_step   = max(sum of t_kernel, launches x launch_seconds) + exposed

    The arithmetic of a product is that of whole tiles in whole waves, `ceil(tiles / SMs) SMs a b 2(k + fill) / (peak efficiency share)`, over
    the best tile a x b.
    Raises `InvalidInputError` for what is no batch or no number of micro-steps, a batch at which the step takes another path than recorded, a card
    without a bandwidth, a peak rate or, among several, a link, or a tape of another compute capability.
    """
    batches, repeats = asked(tape, gpu, batch, accumulation)
    try:
        shape = np.broadcast_shapes(batches.shape, repeats.shape)
    except ValueError:
        raise InvalidInputError(f"batch and accumulation are of shapes {batches.shape} and {repeats.shape}, which do not broadcast") from None
    found = _step_times(tape, gpu, batches, repeats)
    if np.isscalar(batch) and (accumulation is None or np.isscalar(accumulation)):
        return StepTime(int(batches), int(repeats), **_each(float, found), tokens_per_sample=tape.tokens_per_sample)
    several = _each(lambda values: np.broadcast_to(values, shape), {"batch": batches, "accumulation": repeats, **found})
    return StepTime(**several, tokens_per_sample=tape.tokens_per_sample)


def asked(tape: Tape, gpu: Gpu, batch: Any, accumulation: Any) -> tuple[Counts, Counts]:
    """Micro-batches and numbers of micro-steps; raises `InvalidInputError` for what is none, or a tape of other kernels than this card's."""
    batches = micro_batches(tape, batch)
    require_same_kernels(tape, gpu)
    repeats = wholes("accumulation", micro_steps(tape) if accumulation is None else accumulation)
    require_accumulates(tape, int(repeats.max(initial=1)))
    return batches, repeats


def _each(convert: Callable[[Any], Any], found: dict[str, Any]) -> dict[str, Any]:
    """Every measure converted, and those of every phase."""
    return {name: _each(convert, values) if isinstance(values, dict) else convert(values) for name, values in found.items()}


def _step_times(tape: Tape, gpu: Gpu, batches: Counts, micro_steps: Counts) -> dict[str, Any]:
    """The fields of `StepTime` that are measures of time and work, as arrays."""
    work = Work(tape.operations.distinct[0], tape.operations.counts)
    found = [at(end, work, tape, gpu, batches, micro_steps) for end in ENDS]
    likely = found[0]
    seconds, low_seconds, high_seconds = (np.maximum(each.device, each.host) + each.spoken.exposed_seconds for each in found)
    flops, ideal_seconds = work.useful(gpu, rates_of(gpu, tape.precision, "likely"), batches)
    with np.errstate(divide="ignore", invalid="ignore"):  # a step without a kernel takes no time, and has no rates
        samples_per_s, mfu = batches * micro_steps / seconds, micro_steps * ideal_seconds / seconds
    return {
        "seconds": seconds,
        "low_seconds": low_seconds,
        "high_seconds": high_seconds,
        "device_seconds": likely.device,
        "host_seconds": likely.host,
        "communication_seconds": likely.spoken.seconds,
        "exposed_seconds": likely.spoken.exposed_seconds,
        "launches": likely.launches,
        "phases": likely.phases,
        "flops": micro_steps * flops,
        "ideal_seconds": micro_steps * ideal_seconds,
        "mfu": mfu,
        "samples_per_s": samples_per_s,
        "tokens_per_s": samples_per_s * tape.tokens_per_sample,
    }


@dataclass(frozen=True)
class At:
    """A step at one end of what is not known: `rows` are device seconds of each distinct kernel, `slower` how many times as far apart kernels are as
    these in an optimizer step of one micro-step, since the host launches no faster."""

    rows: Array
    slower: Array
    launches: Array
    phases: dict[str, Array]
    device: Array
    host: Array
    spoken: Spoken


def at(end: End, work: Work, tape: Tape, gpu: Gpu, batches: Counts, micro_steps: Counts) -> At:
    """Where the host is slower than the device, kernels are as far from one another as it launches them."""
    rows, launched = work.seconds(gpu, rates_of(gpu, tape.precision, end), batches), work.launches(batches)
    phases, launches = _whole_step(work.by_phase(rows), micro_steps), _sum(_whole_step(launched, micro_steps))
    one = _sum(_whole_step(work.by_phase(rows), np.ones_like(batches)))
    hosted = _sum(_whole_step(launched, np.ones_like(batches))) * launch_seconds(gpu)[ENDS.index(end)]
    with np.errstate(divide="ignore", invalid="ignore"):  # a step without a kernel is as long as its launches
        slower = np.where(one > 0, np.maximum(1, hosted / one), 1.0)
    device, host = _sum(phases), launches * launch_seconds(gpu)[ENDS.index(end)]
    return At(rows, slower, launches, phases, device, host, spoken(tape, gpu, rows * slower[..., None], batches, micro_steps, end))


def _sum(phases: dict[str, Array]) -> Array:
    return np.asarray(sum(phases.values()))


def curve(tape: Tape, gpu: Gpu, largest: int, accumulation: int | None = None) -> StepTime[Counts, Array]:
    """Step times at up to 512 micro-batches from 1 to `largest`, evenly spread."""
    largest = whole("largest", largest)
    return step_time(tape, gpu, np.unique(np.linspace(1, largest, min(largest, 512)).astype(np.int64)), accumulation)


def knee(times: StepTime[Counts, Array], share: float = 0.9) -> int:
    """The smallest micro-batch of a curve with `share` of its best throughput; larger ones cost memory and gain little."""
    if finite("share", share, above=0) > 1:
        raise InvalidInputError(f"share is {share}; expected a number above 0 and at most 1")
    return int(times.batch[np.argmax(times.samples_per_s >= share * np.max(times.samples_per_s))])


@dataclass(frozen=True)
class Work:
    """The distinct kernels of a tape, and how often each phase runs each of them."""

    operations: Operations
    counts: dict[str, Array]

    def seconds(self, gpu: Gpu, rates: Rates, batch: ArrayLike) -> Array:
        """Device seconds of each of the distinct kernels."""
        kinds, dtypes = self.operations.kinds, self.operations.dtypes
        whole = rates.bytes_per_s * np.array([kind_of(kind).bandwidth_share for kind in kinds])
        blocks = np.maximum(1, self.operations.column("groups", batch)) * np.array([kind_of(kind).block_bytes_per_s for kind in kinds])
        times = self.operations.column("moved_bytes", batch) / np.minimum(whole, blocks)
        products = np.flatnonzero(self.operations.products)
        wanted = np.array([rate_dtype(kinds[i], dtypes[i], rates) for i in products])
        for dtype in set(wanted):
            rows = products[wanted == dtype]
            columns = [self.operations.column(name, batch, rows) for name in ("groups", "m", "n", "k")]
            arithmetic = product_seconds(columns, [kind_of(kinds[i]) for i in rows], gpu, rates, dtype)
            times[..., rows] = np.maximum(times[..., rows], arithmetic)
        return np.asarray(times + runtime().kernel_seconds * self.operations.column("launches", batch))

    def launches(self, batch: ArrayLike) -> dict[str, Array]:
        """Kernels launched in one pass through each phase."""
        return self.by_phase(self.operations.column("launches", batch))

    def by_phase(self, values: Array) -> dict[str, Array]:
        """Sums over one pass through each phase."""
        sums = values @ np.stack(list(self.counts.values()), axis=1)
        return {phase: sums[..., position] for position, phase in enumerate(self.counts)}

    def useful(self, gpu: Gpu, rates: Rates, batch: ArrayLike) -> tuple[Array, Array]:
        """FLOPs of the products of forward and backward, and the seconds of those that are really done at the peak rates."""
        groups, m, n, k = (self.operations.column(name, batch) for name in ("groups", "m", "n", "k"))
        flops = 2 * groups * m * n * k * (self.counts["forward"] + self.counts["backward"])
        words = zip(self.operations.kinds, self.operations.dtypes, self.operations.products, strict=True)
        peaks = np.array([_peak(gpu, rate_dtype(kind, dtype, rates), rates) * kind_of(kind).saves if rows else 1.0 for kind, dtype, rows in words])
        return flops.sum(-1), (flops / peaks).sum(-1)


def _peak(gpu: Gpu, dtype: str, rates: Rates) -> float:
    """The peak rate of a card, or the one that was measured where that is higher."""
    return max(peak_flops_per_s(gpu, dtype), rates.matmul_flops_per_s[dtype])


def _whole_step(passes: dict[str, Array], micro_steps: NDArray[np.int64]) -> dict[str, Array]:
    """One optimizer step from one pass through each phase: all micro-steps but the first add their gradients to those that are there."""
    return {
        "forward": micro_steps * passes["forward"],
        "backward": micro_steps * passes["backward"] + passes["gradient"] + (micro_steps - 1) * passes["accumulation"],
        "recompute": micro_steps * passes["recompute"],
        "step": passes["step"],
    }
