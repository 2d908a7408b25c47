# SPDX-License-Identifier: Apache-2.0
"""The peak at one batch: the tape replayed through the caching allocator until it comes to rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory.allocator import SMALL_SEGMENT, CachingAllocator, OutOfMemoryError
from bsmodel.memory.closed_form import STEPS, Footprint, footprint
from bsmodel.memory.data_parallel import sharing
from bsmodel.memory.lagging import Lagging
from bsmodel.memory.settings import Settings
from bsmodel.shown import Shown
from bsmodel.tape import Tape, micro_batches, micro_steps, require_same_kernels
from bsmodel.units import GiB, whole

BOUNDLESS = 1 << 60  # bytes of a card without a limit
MOST_STEPS = 16  # in which the allocator comes to rest, or hardly ever does


@dataclass(frozen=True)
class Peak(Shown):
    """What torch would report for a run at one batch, in bytes.

    `reserved_lower_bytes` and `reserved_upper_bytes`, `device_lower_bytes` and `device_upper_bytes` are what it may also be, where a library
    sizes workspaces by rules nobody publishes, where a device lags behind while streams lend one another memory (`fsdp1`: its limiter waits for the
    second block before), and where the CUDA context is not known. `fits`: at every one of these; `likely_fits`: at the likely ones,
    `requested_bytes` to `device_bytes`. `requested_bytes` is what tensors ask for, `device_bytes` what is reserved and the CUDA context; `moment` is the
    point of the step where the peak is.
    """

    batch: int
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    reserved_lower_bytes: int
    reserved_upper_bytes: int
    device_bytes: int
    device_lower_bytes: int
    device_upper_bytes: int
    fits: bool
    likely_fits: bool
    moment: str

    @property
    def caching_bytes(self) -> int:
        """What rounding and caching add to the closed form."""
        return self.reserved_bytes - self.requested_bytes


def reserved_of(peak: Peak, usable_bytes: int) -> str:
    """GiB reserved, likely and at most, of what can be: `6.31 to 7.12 of 7.46`."""
    likely, most = f"{peak.reserved_bytes / GiB:.2f}", f"{peak.reserved_upper_bytes / GiB:.2f}"
    return f"{likely}{'' if most == likely else f' to {most}'} of {usable_bytes / GiB:.2f}"


def predict(tape: Tape, gpu: Gpu, batch: int, accumulation: int | None = None, settings: Settings | None = None) -> Peak:
    """The peak of training at micro-batch `batch`, by replay through the caching allocator of a card of this size until it comes to rest.

    `allocated_bytes` and `reserved_bytes` are `torch.cuda.max_memory_allocated()` and `max_memory_reserved()`; `device_bytes` adds
    the CUDA context. Lower and upper ends: what is allocated without the workspaces that cannot be known, and the most that is reserved with
    all, some or none of them; `fits` holds for all of these, and with the context as large as it may be. Where a run does not fit, the
    figures are those of a card without a limit.
    Raises `InvalidInputError` for what is no batch, or one at which the step takes another path than it was recorded on, and for a tape recorded for
    kernels of another compute capability.
    """
    form, size, gpu = question(tape, gpu, batch, accumulation)
    return peak_at(form, size, gpu, replays(tape, gpu, micro_steps(tape, accumulation), settings or Settings()))


def question(tape: Tape, gpu: Gpu, batch: int, accumulation: int | None) -> tuple[Footprint, int, Gpu]:
    """The closed form on a card, the micro-batch, and the card as the step has it; raises `InvalidInputError` as `predict` does."""
    gpu = sharing(tape, gpu)
    form, size = footprint(tape, accumulation, gpu), int(micro_batches(tape, whole("batch", batch)))
    if form(size) > BOUNDLESS // 2:
        raise InvalidInputError(f"batch is {size}; expected at most {form.largest(BOUNDLESS // 2)}, which takes half an exbibyte")
    require_same_kernels(tape, gpu)
    return form, size, gpu


def peak_at(form: Footprint, batch: int, gpu: Gpu, replay: Replay) -> Peak:
    """The peak, likely and at both ends of what is known, on this card or, where it is too small, on one without a limit."""
    fits, usual = survives(batch, replay), replay(batch, "lenient", True)
    likely = usual or replay(batch, "likely", False)
    found = [run for assumed in ("upper", "lower", "mixed") if (run := replay(batch, assumed, fits)) is not None]  # some are not, where there is room
    assert likely is not None and found
    lowest = replay(batch, "lower", False)
    assert lowest is not None
    known = lowest is replay(batch, "likely", False)  # nothing is done without
    low = likely.reserved_bytes if known else min(likely.reserved_bytes, lowest.allocated_bytes)
    high = max(likely.reserved_bytes, *(run.reserved_bytes for run in found))
    return Peak(
        batch,
        form(batch),
        likely.allocated_bytes,
        likely.reserved_bytes,
        low,
        high,
        likely.reserved_bytes + gpu.context.usual_bytes,
        low + gpu.context.low_bytes,
        high + gpu.context.high_bytes,
        fits,
        usual is not None,
        str(form.binding(batch)),
    )


class _Reached(NamedTuple):
    """The peaks of one replay, whether there was room for another of its largest block then, and whether the end of the card was never felt."""

    allocated_bytes: int
    reserved_bytes: int
    roomy: bool
    undisturbed: bool


# What is assumed of the buffers that a library sizes by rules nobody publishes.
_ASSUMED: dict[str, Callable[[Tape, int, Gpu], NDArray[np.int64]]] = {
    "likely": Tape.sizes,
    "upper": Tape.upper_sizes,
    "lower": Tape.lower_sizes,
    "mixed": Tape.mixed_sizes,
    "lenient": Tape.sizes,  # and that they are done without where they do not fit, and that the CUDA context is of the usual size
}
Replay = Callable[[int, str, bool], _Reached | None]  # at a batch, what is assumed, and within the card or not; None where memory runs out


def replays(tape: Tape, gpu: Gpu, accumulation: int, settings: Settings) -> Replay:
    """Runs of the tape through the allocator of a card, each done once; all but the lenient one with a context as large as it may be.

    Small blocks wander, and may need one segment more: a run that comes close to the end of the card has to survive without that segment, too.
    If only what is left at its end counted, a little more memory would turn one that releases its cache into one that fails.
    """
    at_worst = None if tape.worst is None else replays(tape.worst, gpu, accumulation, settings)

    def trained(batch: int, assumed: str, capacity_bytes: int) -> CachingAllocator | None:
        sizes, optional = _ASSUMED[assumed](tape, batch, gpu).tolist(), tape.workspaces if assumed == "lenient" else ()
        held_to = settings if capacity_bytes < BOUNDLESS - SMALL_SEGMENT else replace(settings, per_process_memory_fraction=1.0)
        allocator = CachingAllocator(capacity_bytes, held_to, total_bytes=max(gpu.memory_bytes, capacity_bytes))
        lagging = Lagging(allocator, tape) if assumed == "upper" and tape.lent else None
        return allocator if train(allocator, tape, sizes, accumulation, optional, lagging) else None

    @functools.cache
    def replay(batch: int, assumed: str, within: bool) -> _Reached | None:
        if at_worst is not None and assumed in ("upper", "mixed"):
            return at_worst(batch, assumed, within)
        if assumed not in ("likely", "lenient") and not tape.workspaces and not (assumed == "upper" and tape.lent):
            return replay(batch, "likely", within)
        if assumed == "likely" and not within and not settings.garbage_collection_threshold:
            usual = replay(batch, "lenient", True)
            if usual is not None and usual.undisturbed:
                return usual  # the end of the card was never felt
        if assumed == "likely" and within:
            usual = replay(batch, "lenient", within)
            if usual is None or (usual.undisturbed and usual.reserved_bytes + SMALL_SEGMENT <= gpu.sure_bytes):
                return usual
        capacity_bytes = (gpu.usable_bytes if assumed == "lenient" else gpu.sure_bytes) if within else BOUNDLESS
        run = trained(batch, assumed, capacity_bytes)
        if run is None:
            return None
        spare_bytes = 0 if run.retries else run.least_spare_bytes
        if spare_bytes < SMALL_SEGMENT and trained(batch, assumed, run.most_bytes - SMALL_SEGMENT) is None:
            return None
        largest = max(_ASSUMED[assumed](tape, batch, gpu).tolist(), default=0)
        return _Reached(run.max_allocated_bytes, run.max_reserved_bytes, spare_bytes > largest, not (run.forgone or run.retries))

    return replay


def survives(batch: int, replay: Replay) -> bool:
    """Whether a batch trains on the card whatever the libraries choose.

    Smaller buffers may leave worse fragments than larger ones; that matters only where there is no room for another of the largest block.
    """
    likely, upper = replay(batch, "likely", True), replay(batch, "upper", True)
    if likely is None or upper is None:
        return False
    if likely.roomy and upper.roomy:
        return True
    return replay(batch, "lower", True) is not None and replay(batch, "mixed", True) is not None


def train(
    allocator: CachingAllocator,
    tape: Tape,
    sizes: list[int],
    accumulation: int,
    optional: Container[int],
    lagging: Lagging | None = None,
    most_steps: int = MOST_STEPS,
) -> bool:
    """Run training steps until the allocator has come to rest; whether there is memory for that, and so for all later steps.

    It has where a step asks nothing of the driver while there is room for the largest block, or where a step ends as an earlier one did:
    a batch and the one before it take turns in two places, which moves others, and at capacity fragments may pile up over some steps until
    one fails. Only large blocks are compared. A run that still releases its cache and retries after the most steps is taken for one that fails.

    `optional` are workspaces that may be done without where there is no memory for them: PyTorch then takes a plan of cuDNN's that needs
    less, and keeps to it (aten/src/ATen/native/cudnn/Conv_v8.cpp). How much less is not known, so no safe answer may count on it.
    """
    largest = max(sizes, default=0)
    layouts: list[object] = []
    asked = retries = 0
    try:
        for name, block in tape.program(most_steps, accumulation):
            if name in ("first", "micro", "open", "begin"):
                asked, retries = len(allocator.segment_events), allocator.retries
            if lagging is not None:
                lagging.run(name, sizes, optional)
            else:
                allocator.run(block, sizes, optional, tape.streams)
            if name in ("first_step", "step", "open_step", "end"):
                layouts.append(allocator.layout())
                quiet = len(allocator.segment_events) == asked and allocator.spare_bytes > largest
                if layouts[-1] in layouts[:-1] or (quiet and len(layouts) >= STEPS):
                    break
    except OutOfMemoryError:
        return False
    return allocator.retries == retries
