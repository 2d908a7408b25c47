# SPDX-License-Identifier: Apache-2.0
"""What to bear in mind with a plan, each in a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from bsmodel.hardware import Gpu, between_nodes
from bsmodel.memory import buckets_bytes
from bsmodel.planning.splits import Split
from bsmodel.tape import Tape
from bsmodel.timing import nodes
from bsmodel.units import format_bytes

EVENLY = "devices are taken to share the work evenly; what they say to one another is timed by NCCL's own model over the links of each card"
LARGE_BATCH = 16_384  # above it layer-wise rates (LARS, LAMB) are the usual advice: You 2017, arXiv 1708.03888; You 2019, arXiv 1904.00962
TRADE_OFF = "small batches: noisier gradients, often better generalisation; large batches: smoother, fewer steps, may end in sharper minima"


def advice(tape: Tape, gpu: Gpu, chosen: Split, rate: float | None) -> tuple[str, ...]:
    """The sentences that apply to a split of this step at a learning rate."""
    return (TRADE_OFF, *_of_the_rate(tape, chosen, rate), *_of_the_split(tape, gpu, chosen))


def trains_in_part(tape: Tape) -> str:
    """Why a rate known to train the whole model says nothing of this recipe, or nothing."""
    if tape.recipe.get("lora_rank") or tape.recipe.get("adapter"):
        return "adapters usually take a larger one"
    return "other layers are frozen here" if tape.recipe.get("frozen") else ""


def _of_the_rate(tape: Tape, chosen: Split, rate: float | None) -> Iterator[str]:
    if rate is None and tape.base_lr is not None and (why := trains_in_part(tape)):
        yield f"no learning rate is proposed: the published one is for training the whole model, {why}; give one that works with --base-lr"
    if chosen.effective_batch > LARGE_BATCH:
        better = {"sgd": "consider lars, and ", "layerwise": ""}.get(tape.optimizer_family, "consider lamb, and ")
        yield f"above {LARGE_BATCH} samples a step {better}tune the learning rate: no scaling rule is safe there"


def _of_the_split(tape: Tape, gpu: Gpu, chosen: Split) -> Iterator[str]:
    if chosen.devices > 1:
        if buckets_bytes(tape):
            yield f"{format_bytes(buckets_bytes(tape))} of gradient buckets a device are counted, as DistributedDataParallel has them"
        low, usual, high = map(format_bytes, gpu.communicator)
        yield f"NCCL takes {usual} ({low} to {high}) of each device beside what PyTorch reserves, and has room for it"
        yield _carried(tape, gpu)
    if chosen.accumulation > 1 and any("batch_norm" in operator for operator in tape.operators):
        yield "batch norm sees the micro-batch, not the effective batch; other layers do not notice accumulation"


def _carried(tape: Tape, gpu: Gpu) -> str:
    """Over what devices talk, and how far that is known."""
    said = f"devices share the work evenly, and what they say to one another goes over the {gpu.interconnect or 'unknown link'} of {gpu.id}"
    number = nodes(tape, gpu)
    if number == 1:
        return said
    if gpu.network is not None:
        return f"{said}, between {number:,} nodes over {gpu.network.name}"
    band = between_nodes(None, gpu.id)
    rates = f"{band.slow / 1e9:,.3g} to {band.fast / 1e9:,.3g} GB/s"
    return f"{said}, between {number:,} nodes over any network that it is rented with ({rates} a node), give --network for one"
