# SPDX-License-Identifier: Apache-2.0
"""What data parallelism adds to a device's memory: the buckets in which DistributedDataParallel sums gradients.

Source: torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp and c10d/comm.hpp, read at 2.11; their defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory.closed_form import REDUCER
from bsmodel.tape import WEIGHTS, Collective, Polynomial, Tape
from bsmodel.units import MiB

BUCKET = "gradient bucket"
FIRST_BUCKET, FURTHER_BUCKETS = MiB, 25 * MiB  # kDefaultFirstBucketBytes, kDefaultBucketBytesCap
BROADCAST = 250 * MiB  # DistributedDataParallel.broadcast_bucket_size


def on_devices(tape: Tape, devices: int) -> Tape:
    """The step on one of several devices: as it was recorded for them, or else `data_parallel`; raises `InvalidInputError` for one of another number."""
    if tape.devices not in (1, devices):
        raise InvalidInputError(f"devices is {devices}; the recording is of one of {tape.devices}")
    if devices == 1 and buckets_bytes(tape):
        raise InvalidInputError("devices is 1; the recording has gradient buckets for several: expected at least 2")
    if devices == 1 or tape.devices > 1:
        return tape
    shared = data_parallel(tape)
    return replace(shared, collectives=tuple(each._replace(ranks=devices) for each in shared.collectives))


def devices_of(tape: Tape) -> int:
    """How many devices a tape is of: as it was recorded, or as many as sum its gradients."""
    return max([tape.devices, *(each.ranks for each in tape.collectives)])


def data_parallel(tape: Tape) -> Tape:
    """The same step on each of several devices, its gradients summed by `DistributedDataParallel` as it comes; 1 GPU or 1000, the memory is the same.

    At construction, parameters and buffers are sent round in flat copies of 250 MiB, and one bucket takes all gradients: 4 bytes for each trained
    float32 parameter. After the first step it gives way to buckets of 1 MiB (the first) and 25 MiB in the order in which gradients became
    ready, each closed by the tensor that reaches its size; they live as long as the model, beside the gradients. A tape that has buckets is
    returned as it is. A step of the workload's own is taken to use the same.
    """
    if buckets_bytes(tape):
        return tape
    ready = _gradients(tape)
    gradients = [size for size, _ in ready]
    rebuilt = _filled(gradients, FIRST_BUCKET, FURTHER_BUCKETS)
    held = [number for number in tape.blocks["init"] if number >= 0 and tape.categories[number] in (*WEIGHTS, "buffer")]
    copies = _filled([int(tape.fixed_bytes[number]) for number in held], BROADCAST, BROADCAST)
    orders = [4 * (len(gradients) + 1), 4 * len(rebuilt)]  # int32: the order of gradients and the sizes of buckets, agreed upon before they are rebuilt
    added = [*copies, *orders, sum(gradients), *rebuilt]
    words = ["temporary"] * (len(copies) + len(orders)) + [BUCKET] * (1 + len(rebuilt))
    numbers = iter(range(len(tape.categories), len(tape.categories) + len(added)))
    sent, agreed, (whole,) = ([next(numbers) for _ in some] for some in (copies, orders, (0,)))
    start = (*_two_at_a_time(sent), whole)
    rebuilding = (*agreed, *(~number for number in agreed), ~whole, *numbers)
    same = len(added)
    return replace(
        tape,
        fixed_bytes=np.concatenate([tape.fixed_bytes, np.array(added, np.int64)]),
        per_sample_bytes=np.concatenate([tape.per_sample_bytes, np.zeros(same, np.int64)]),
        per_pair_bytes=np.concatenate([tape.per_pair_bytes, np.zeros(same, np.int64)]),
        operators=tape.operators + (REDUCER,) * same,
        modules=tape.modules + ("",) * same,
        phases=tape.phases + ("forward",) * same,
        categories=(*tape.categories, *words),
        blocks={**tape.blocks, "init": tape.blocks["init"] + start, "first_step": tape.blocks["first_step"] + rebuilding},
        collectives=_summed(tape, ready, rebuilt),
        worst=tape.worst and data_parallel(tape.worst),
    )


def sharing(tape: Tape, gpu: Gpu) -> Gpu:
    """The card on which the step runs: where others take part, NCCL has buffers for them."""
    several = tape.devices > 1 or buckets_bytes(tape) > 0
    return gpu.model_copy(update={"shared": True}) if several and not gpu.shared else gpu


def buckets_bytes(tape: Tape) -> int:
    """Bytes of a tape's gradient buckets; 0 for one device."""
    return sum(int(tape.fixed_bytes[number]) for number in tape.blocks["init"] if number >= 0 and tape.categories[number] == BUCKET)


def _summed(tape: Tape, ready: Sequence[tuple[int, str]], buckets: Sequence[int]) -> tuple[Collective, ...]:
    """Buffers, which every forward pass sends round, and an all-reduce for each bucket, when backward is through with the modules of all gradients in it."""
    kernels = enumerate(zip(tape.operations.modules, tape.operations.phases, strict=True), 1)
    last = {module: number for number, (module, phase) in kernels if phase == "backward"}
    held = sum(int(tape.fixed_bytes[number]) for number in tape.blocks["init"] if number >= 0 and tape.categories[number] == "buffer")
    end = len([phase for phase in tape.operations.phases if phase in ("forward", "backward", "recompute")])
    found = [Collective("broadcast", Polynomial(held, 0), "forward", 0, 0, 2, 1)] if held else []
    through = filled = 0
    waiting = iter(buckets)
    bucket = next(waiting, 0)
    for size, module in ready:
        through, filled = max(through, last.get(module, 0)), filled + size
        if filled >= bucket:
            found.append(Collective("all-reduce", Polynomial(filled, 0), "backward", through, end, 2, 1))
            filled, bucket = 0, next(waiting, 0)
    return tuple(found)


def _gradients(tape: Tape) -> list[tuple[int, str]]:
    """Bytes of every gradient and its module, in the order in which they become ready.

    One is ready with the last tensor of its size that its module allocates in backward: what a shared weight gets from its first use is added to it.
    Where a step lets go of them unseen, they are as large as the parameters.
    """
    last: dict[tuple[str, int], int] = {}
    for position, number in enumerate(tape.blocks["first"]):
        if number >= 0 and tape.phases[number] == "backward" and not (tape.per_sample_bytes[number] or tape.per_pair_bytes[number]):
            last[tape.modules[number], int(tape.fixed_bytes[number])] = position
    found = [number for number in tape.blocks["first"] if number >= 0 and tape.categories[number] == "gradient"]
    if found:
        ready = sorted((last.get((tape.modules[number], int(tape.fixed_bytes[number])), 0), order) for order, number in enumerate(found))
        numbers = [found[order] for _, order in ready]
    elif tape.trained_parameter_count == tape.parameter_count:
        numbers = [number for number in reversed(tape.blocks["init"]) if number >= 0 and tape.categories[number] == "parameter"]
    else:
        return [(tape.trained_parameter_count * (2 if tape.precision in ("fp16", "bf16") else 4), "")]
    return [(int(tape.fixed_bytes[number]), tape.modules[number]) for number in numbers]


def _filled(sizes: Iterable[int], first_bytes: int, further_bytes: int) -> list[int]:
    """Bytes of the buckets that take these tensors in order, each closed by the one that reaches its limit: compute_bucket_assignment_by_size."""
    buckets, open_bytes, limit = list[int](), 0, first_bytes
    for size in sizes:
        open_bytes += size
        if open_bytes >= limit:
            buckets.append(open_bytes)
            open_bytes, limit = 0, further_bytes
    return [*buckets, open_bytes] if open_bytes else buckets


def _two_at_a_time(numbers: Sequence[int]) -> Iterable[int]:
    """Allocated in order, and each released once the next is under way: broadcast_coalesced."""
    for position, number in enumerate(numbers):
        yield number
        if position:
            yield ~numbers[position - 1]
    yield from (~number for number in numbers[-1:])
