# SPDX-License-Identifier: Apache-2.0
"""From a tape to the closed form, its breakdown, the peak at one batch and the largest batch that fits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsmodel.allocator import SMALL_SEGMENT, CachingAllocator, OutOfMemoryError
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.lines import Envelope, Line, upper_envelope
from bsmodel.settings import Settings
from bsmodel.tape import Tape
from bsmodel.units import format_bytes

CATEGORIES = ("parameter", "buffer", "gradient", "optimizer state", "batch", "saved", "temporary", "workspace")
_STEPS = 3  # the optimizer's state exists from the second step on: the third repeats it, in bytes requested
_MOST_STEPS = 16  # in which the allocator comes to rest, or hardly ever does


@dataclass(frozen=True)
class Moment:
    """A point of the training step: just after one allocation."""

    block: str
    phase: str
    module: str
    operator: str

    def __str__(self) -> str:
        if self.block == "init":
            return "loading the model"
        if self.phase == "step":
            return "optimizer step"
        return f"{self.phase}, at {self.module or 'the loss'}"


@dataclass(frozen=True)
class Footprint:
    """The closed form of requested bytes, `M(b) = max_t (f_t + s_t b)`, each line with the moment it belongs to."""

    envelope: Envelope
    moments: tuple[Moment, ...]

    def __call__(self, batch: ArrayLike) -> Any:
        """`M(b)` in bytes, for one batch or an array of batches."""
        return self.envelope(batch)

    def largest(self, capacity_bytes: ArrayLike) -> Any:
        """The largest batch with `M(b) <= capacity`: one expression, `min_t floor((capacity - f_t) / s_t)`."""
        return self.envelope.largest(capacity_bytes)

    def binding(self, batch: int) -> Moment:
        """The moment that decides at this batch."""
        return self.moments[self.envelope.binding(batch)]

    def __str__(self) -> str:
        terms = [f"{format_bytes(line.fixed)} + {format_bytes(line.per_sample)} b" for line in self.envelope.lines]
        return f"M(b) = max({', '.join(terms)})"


@dataclass(frozen=True)
class _Timeline:
    """Every allocation of a run in order: which moment it is, and the line of all that is alive just after it."""

    blocks: tuple[str, ...]
    numbers: NDArray[np.int64]
    fixed: NDArray[np.int64]
    per_sample: NDArray[np.int64]


def _timeline(tape: Tape, accumulation: int | None) -> _Timeline:
    program = list(tape.program(_STEPS, accumulation))
    events = np.concatenate([np.asarray(block, np.int64) for _, block in program])
    names = [name for name, block in program for _ in block]
    numbers = np.where(events >= 0, events, ~events)
    sign = np.where(events >= 0, 1, -1)
    fixed, per_sample = np.cumsum(sign * tape.fixed_bytes[numbers]), np.cumsum(sign * tape.per_sample_bytes[numbers])
    births = np.flatnonzero(events >= 0)
    return _Timeline(tuple(names[i] for i in births), numbers[births], fixed[births], per_sample[births])


def _moment(tape: Tape, timeline: _Timeline, position: int) -> Moment:
    number = int(timeline.numbers[position])
    return Moment(timeline.blocks[position], tape.phases[number], tape.modules[number], tape.operators[number])


def footprint(tape: Tape, accumulation: int | None = None) -> Footprint:
    """The closed form of the peak: `M(b) = max_t (f_t + s_t b)` over all moments t of three training steps.

    `f_t` and `s_t` are the fixed and per-sample bytes alive at moment t. Only lines that are highest at some b >= 1 are kept.
    Counts bytes as requested; rounding, caching and the few kernel buffers that are no line in b come on top, see `predict`.
    Valid when every allocation is a straight line in the micro-batch, which `trace` has checked. `accumulation`: micro-steps per
    optimizer step, the recipe's own by default.
    """
    timeline = _timeline(tape, accumulation)
    kept = upper_envelope(timeline.fixed, timeline.per_sample)
    lines = tuple(Line(int(timeline.fixed[i]), int(timeline.per_sample[i])) for i in kept)
    return Footprint(Envelope(lines), tuple(_moment(tape, timeline, i) for i in kept))


@dataclass(frozen=True)
class Share:
    """Bytes of one category in one module at the binding moment."""

    category: str
    module: str
    bytes: int


def breakdown(tape: Tape, batch: int, accumulation: int | None = None) -> tuple[Share, ...]:
    """Who holds the bytes of `M(b)`: all that is alive at the binding moment, by category and module. Sums to `M(b)` exactly."""
    timeline = _timeline(tape, accumulation)
    position = int(np.argmax(timeline.fixed + timeline.per_sample * batch))
    sizes = tape.fixed_bytes + tape.per_sample_bytes * batch
    shares: dict[tuple[str, str], int] = {}
    births = 0
    alive: dict[int, int] = {}
    for event in (event for _, block in tape.program(_STEPS, accumulation) for event in block):
        number = event if event >= 0 else ~event
        alive[number] = alive.get(number, 0) + (1 if event >= 0 else -1)
        births += event >= 0
        if births > position:
            break
    for number, count in alive.items():
        if count and sizes[number]:
            key = (tape.categories[number], tape.modules[number])
            shares[key] = shares.get(key, 0) + count * int(sizes[number])
    rows = [Share(category, module, size) for (category, module), size in shares.items()]
    return tuple(sorted(rows, key=lambda row: (CATEGORIES.index(row.category), -row.bytes, row.module)))


@dataclass(frozen=True)
class Peak:
    """What torch would report for a run at one batch, in bytes."""

    batch: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    reserved_upper_bytes: int
    device_bytes: int
    fits: bool
    moment: str

    @property
    def caching_bytes(self) -> int:
        """What rounding and caching add to the closed form."""
        return self.reserved_bytes - self.requested_bytes


def predict(tape: Tape, gpu: Gpu, batch: int, accumulation: int | None = None, settings: Settings | None = None) -> Peak:
    """The peak of training at micro-batch `batch`, by replay through the caching allocator of a card of this size until it comes to rest.

    `allocated_bytes` and `reserved_bytes` are `torch.cuda.max_memory_allocated()` and `max_memory_reserved()`; `device_bytes` adds
    the CUDA context. `reserved_upper_bytes` is the upper end where a library's workspaces cannot be known (cuDNN's in the contiguous
    layout), else the same; `fits` holds for both ends. Where the run does not fit, the figures are those of a card without a limit.
    Raises `InvalidInputError` for a batch below 1 or a tape recorded for kernels of another compute capability.
    """
    if batch < 1:
        raise InvalidInputError(f"batch is {batch}; expected at least 1")
    require_same_kernels(tape, gpu)
    return _peak(footprint(tape, accumulation), batch, gpu, _replays(tape, gpu, accumulation, settings or Settings()))


def _peak(form: Footprint, batch: int, gpu: Gpu, replay: _Replay) -> Peak:
    """The peak, likely and at the upper end of what is known, on this card or, where it is too small, on one without a limit."""
    fits = _survives(batch, gpu, replay)
    likely, upper = replay(batch, "likely", fits), replay(batch, "upper", fits)
    assert likely is not None and upper is not None
    return Peak(
        batch,
        int(form(batch)),
        likely.allocated_bytes,
        likely.reserved_bytes,
        max(likely.reserved_bytes, upper.reserved_bytes),
        likely.reserved_bytes + gpu.context_bytes,
        fits,
        str(form.binding(batch)),
    )


def kernels(gpu: Gpu) -> tuple[int, int]:
    """The compute capability that stands for the kernels PyTorch picks on `gpu`; GPUs that give the same can share a tape.

    Ampere and Ada cards (8.x) pick alike but for attention heads wider than 192, where 8.6 is the narrower one; Volta and Turing alike.
    Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """
    return {7: (7, 5), 8: (8, 6)}.get(gpu.capability[0], gpu.capability)


def require_same_kernels(tape: Tape, gpu: Gpu) -> None:
    """Raises `InvalidInputError` where the tape was recorded for kernels that this GPU does not run."""
    if tape.gpu.capability[0] != gpu.capability[0]:
        raise InvalidInputError(
            f"the tape was recorded for compute capability {tape.gpu.compute_capability}, {gpu.id} has {gpu.compute_capability}: trace again with this GPU"
        )


class _Reached(NamedTuple):
    """The peaks of one replay, the largest block in it, and whether nothing was done without."""

    allocated_bytes: int
    reserved_bytes: int
    largest_bytes: int
    complete: bool


# What is assumed of the buffers that a library sizes by rules nobody publishes.
_ASSUMED: dict[str, Callable[[Tape, int, Gpu], NDArray[np.int64]]] = {
    "likely": Tape.sizes,
    "upper": Tape.upper_sizes,
    "lower": Tape.lower_sizes,
    "mixed": Tape.mixed_sizes,
    "lenient": Tape.sizes,  # and that they are done without where they do not fit
}
_Replay = Callable[[int, str, bool], _Reached | None]  # at a batch, what is assumed, and within the card or not; None where memory runs out


def _replays(tape: Tape, gpu: Gpu, accumulation: int | None, settings: Settings) -> _Replay:
    """Runs of the tape through the allocator of a card, each done once."""
    boundless = gpu.model_copy(update={"memory_bytes": 1 << 60})

    @functools.cache
    def replay(batch: int, assumed: str, within: bool) -> _Reached | None:
        if assumed != "likely" and not tape.excess:
            return replay(batch, "likely", within)
        if assumed == "likely" and tape.excess and within:
            found = replay(batch, "lenient", within)
            if found is None or found.complete:
                return found
        sizes = _ASSUMED[assumed](tape, batch, gpu).tolist()
        card = gpu if within else boundless
        allocator = CachingAllocator(card.usable_bytes, settings, total_bytes=card.memory_bytes)
        survives = _train(allocator, tape, sizes, accumulation, tape.excess if assumed == "lenient" else ())
        if not survives:
            return None
        return _Reached(allocator.max_allocated_bytes, allocator.max_reserved_bytes, max(sizes, default=0), not allocator.forgone)

    return replay


def _survives(batch: int, gpu: Gpu, replay: _Replay) -> bool:
    """Whether a batch trains on the card whatever the libraries choose.

    Smaller buffers may leave worse fragments than larger ones; that matters only where there is no room for another of the largest block.
    """
    likely, upper = replay(batch, "likely", True), replay(batch, "upper", True)
    if likely is None or upper is None:
        return False
    if max(reached.reserved_bytes + reached.largest_bytes for reached in (likely, upper)) < gpu.usable_bytes:
        return True
    return replay(batch, "lower", True) is not None and replay(batch, "mixed", True) is not None


def _train(allocator: CachingAllocator, tape: Tape, sizes: list[int], accumulation: int | None, optional: Container[int]) -> bool:
    """Run training steps until the allocator has come to rest; whether there is memory for that, and so for all later steps.

    It has where a step asks nothing of the driver while there is room for the largest block, or where a step ends as an earlier one did:
    a batch and the one before it take turns in two places, which moves others, and at capacity fragments may pile up over some steps until
    one fails. Only large blocks are compared; for small ones there must be room for one more segment. A run that still releases its cache
    and retries after the most steps is taken for one that fails.

    `optional` are workspaces that may be done without where there is no memory for them: PyTorch then takes a plan of cuDNN's that needs
    less, and keeps to it (aten/src/ATen/native/cudnn/Conv_v8.cpp). How much less is not known, so no safe answer may count on it.
    """
    largest = max(sizes, default=0)
    layouts: list[object] = []
    asked = retries = 0
    try:
        for name, block in tape.program(_MOST_STEPS, accumulation):
            if name in ("micro", "first"):
                asked, retries = len(allocator.segment_events), allocator.retries
            allocator.run(block, sizes, optional)
            if name in ("step", "first_step"):
                layouts.append(allocator.layout())
                quiet = len(allocator.segment_events) == asked and allocator.spare_bytes > largest
                if layouts[-1] in layouts[:-1] or (quiet and len(layouts) >= _STEPS):
                    break
    except OutOfMemoryError:
        return False
    return allocator.retries == retries and allocator.spare_bytes >= SMALL_SEGMENT


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch on one GPU, and why it is no larger: `batch` is safe, `likely_batch` what probably runs too."""

    tape: Tape
    gpu: Gpu
    accumulation: int
    settings: Settings
    batch: int
    likely_batch: int
    binding: str
    headroom_bytes: int
    verdict: str
    peak: Peak | None


def fit(tape: Tape, gpu: Gpu, accumulation: int | None = None, settings: Settings | None = None) -> Fit:
    """The largest micro-batch that trains on this GPU without end: its replay comes to rest, release-and-retry included.

    The closed form bounds it from above, `b <= largest(capacity)`; replays decide below that. `batch` survives whatever
    cuDNN chooses, `likely_batch` with what it probably does, the workspaces that do not fit left out. `batch` is 0 where nothing fits, and
    the verdict then says how much is missing.
    """
    require_same_kernels(tape, gpu)
    settings = settings or Settings()
    accumulation = tape.accumulation if accumulation is None else accumulation
    form = footprint(tape, accumulation)
    bound = min(int(form.largest(gpu.usable_bytes)), 1 << 20)
    replay = _replays(tape, gpu, accumulation, settings)
    likely = _largest(lambda candidate: replay(candidate, "lenient", True) is not None, bound)
    batch = _largest(lambda candidate: _survives(candidate, gpu, replay), likely)
    peak = _peak(form, max(batch, 1), gpu, replay)
    if batch == 0:
        missing = peak.reserved_bytes - gpu.usable_bytes
        verdict = (
            f"does not fit on {gpu.id}: one sample needs {format_bytes(peak.reserved_bytes)} of {format_bytes(gpu.usable_bytes)}, "
            f"{format_bytes(missing)} too much, at the {peak.moment}; {remedy(tape, gpu)}"
        )
        return Fit(tape, gpu, accumulation, settings, 0, likely, peak.moment, -missing, verdict, None)
    binding = str(form.binding(batch))
    headroom = gpu.usable_bytes - peak.reserved_upper_bytes
    return Fit(tape, gpu, accumulation, settings, batch, likely, binding, headroom, f"fits up to {batch}, bound by {binding}", peak)


def _largest(survives: Callable[[int], bool], bound: int) -> int:
    """The largest batch up to `bound` that survives: down in growing steps to one that does, then by bisection."""
    if bound == 0 or survives(bound):
        return bound
    low, high, step = 0, bound, max(1, bound // 32)
    while low == 0 and high > 1:
        candidate = max(1, high - step)
        step *= 2
        if survives(candidate):
            low = candidate
        else:
            high = candidate
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if survives(middle) else (low, middle)
    return low


# Recipe changes that shrink the fixed cost: what to write, and bytes per trained parameter of weights, gradients and state after it.
_REMEDIES: tuple[tuple[str, Callable[[float, float, float], float]], ...] = (
    ("optimizer=adamw-8bit", lambda p, t, w: w * p + w * t + 2.1 * t),
    ("precision=bf16", lambda p, t, w: 2 * p + 2 * t + 4 * t),
    ("precision=bf16 optimizer=adamw-8bit", lambda p, t, w: 2 * p + 2 * t + 2.1 * t),
    ("precision=bf16 optimizer=sgd", lambda p, t, w: 2 * p + 2 * t),
    ("precision=bf16 lora_rank=16", lambda p, t, w: 2 * p + 0.03 * p),
)


def remedy(tape: Tape, gpu: Gpu) -> str:
    """The mildest recipe change whose weights, gradients and optimizer state leave a tenth of the card for activations."""
    weight = 2 if tape.precision in ("fp16", "bf16") else 4
    for change, state_bytes in _REMEDIES:
        if "bf16" in change and not gpu.supports_bf16:
            change = change.replace("bf16", "fp16")
        if state_bytes(tape.parameter_count, tape.trained_parameter_count, weight) < 0.9 * gpu.usable_bytes and not tape.recipe.get("lora_rank"):
            saved = "" if tape.recipe.get("checkpointing") else " checkpointing=True"
            return f"try {change}{saved}"
    return "no change of recipe makes it fit on one such card; take one with more memory"
