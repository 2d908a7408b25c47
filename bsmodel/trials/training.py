# SPDX-License-Identifier: Apache-2.0
"""One rung of a trial: real training, by accelerate, on whatever devices there are."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_map

from bsmodel.errors import InvalidInputError
from bsmodel.recording import loop, placement
from bsmodel.training import Training
from bsmodel.trials.data import Data
from bsmodel.trials.gradients import Squares, watched, wide
from bsmodel.trials.values import Rung, Update
from bsmodel.workloads import Workload, filled

_MIXED = {"fp16-mixed": "fp16", "bf16-mixed": "bf16"}


def accelerator(training: Training, trackers: list[str], folder: Any = None) -> Any:
    """The accelerator of a whole trial. Raises `InvalidInputError` where accelerate is not installed, or cannot train so here."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ModuleNotFoundError:
        raise InvalidInputError('a trial needs accelerate, which is not installed; pip install "bsmodel[trial]"') from None
    AcceleratorState._reset_state()
    mixed = _MIXED.get(training.precision, "no")
    try:
        return Accelerator(mixed_precision=mixed, log_with=trackers or None, project_dir=folder)
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"accelerate cannot train so here: {str(error).splitlines()[0]}") from None


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Within this context what all accelerators of a process share is this one's; what the caller's own had is there again after it."""
    try:
        from accelerate.state import AcceleratorState, GradientState
    except ModuleNotFoundError:  # which `accelerator` says
        yield
        return
    before = [(shared, dict(shared)) for shared in (AcceleratorState._shared_state, GradientState._shared_state)]
    try:
        yield
    finally:
        for shared, values in before:
            shared.clear()
            shared.update(values)


def processes() -> int:
    """How many processes train together: those that `accelerate launch` or `torchrun` has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the one of them that says what all have found."""
    return os.environ.get("RANK", "0") == "0"


def warmed_up(rung: Rung, step: int) -> float:
    """The learning rate of a step, counted from 1: the rung's own, after a linear rise over its warm-up."""
    return rung.learning_rate * min(1.0, step / rung.warmup if rung.warmup else 1.0)


def updates(
    accelerated: Any,
    workload: Workload,
    training: Training,
    rung: Rung,
    seed: int,
    data: Data,
    evaluate_every: int = 0,
    rate_at: Callable[[Rung, int], float] = warmed_up,
) -> Iterator[Update]:
    """The optimizer steps of a rung as they are made: whoever asks decides when it is enough.

    Weights depend on the seed alone, and the samples of a step on the seed and on how many came before: every batch sees the same ones in the same order.
    """
    model, optimizer = _prepared(accelerated, workload, training, seed)
    accelerated.step, accelerated.gradient_accumulation_steps = 0, rung.accumulation
    several = rung.micro_batch < rung.batch
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and several]
    shares = _shares([group["lr"] for group in optimizer.param_groups])
    seconds = 0.0
    with watched(trained) as squares:
        for step in range(1, rung.steps + 1):
            rate = rate_at(rung, step)
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            batches = [data.batch(places) for places in _places(rung, step - 1, accelerated.process_index)]
            begun = _now(accelerated.device)
            loss, micro, whole = _step(accelerated, workload, training, model, optimizer, batches, squares)
            seconds += _now(accelerated.device) - begun
            validated = None
            if data.validation is not None and evaluate_every and (step % evaluate_every == 0 or step == rung.steps):
                validated = evaluated(accelerated, workload, training, model, data)
            yield Update(step, step * rung.batch, seconds, loss, rate, micro, whole, validated)


def _prepared(accelerated: Any, workload: Workload, training: Training, seed: int) -> tuple[Any, Any]:
    """The model with the weights of a seed, and its optimizer, on the devices that train them."""
    from accelerate.utils import set_seed

    set_seed(seed)  # that of Python and numpy, too: data may be augmented by them
    with filled():
        model = placement.adapt(placement.build(workload, training)[0], workload, training)
    if training.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, optimizer = accelerated.prepare(model, placement.set_up(model, workload, training))
    return model.train(), optimizer


def _shares(rates: list[float]) -> list[float]:
    """The learning rate of each group of parameters over that of the first, which a user's own optimizer may tell apart."""
    return [rate / rates[0] if rates[0] else 1.0 for rate in rates]


def _places(rung: Rung, done: int, process: int) -> Iterator[range]:
    """Where the samples of each micro-batch of a process stand in the order: those of all processes together are the step's."""
    for micro in range(rung.accumulation):
        start = done * rung.batch + (micro * rung.devices + process) * rung.micro_batch
        yield range(start, start + rung.micro_batch)


def _step(
    accelerated: Any, workload: Workload, training: Training, model: Any, optimizer: Any, batches: list[Any], squares: Squares
) -> tuple[float, float | None, float | None]:
    """One optimizer step: its mean loss, and the squared norms of its gradients, where it has several micro-batches."""
    losses, whole, scale = [], None, 1.0
    squares.micro.clear()
    several = len(batches) * accelerated.num_processes > 1
    for batch in batches:
        with accelerated.accumulate(model):
            with accelerated.autocast():
                loss, outputs = loop.loss_of(workload, model, _on(accelerated.device, training, batch))
            outputs = outputs if training.keep_outputs else None
            losses.append(wide(loss.detach()))
            accelerated.backward(loss)
            squares.micro_step()
            if accelerated.sync_gradients:
                scale = accelerated.scaler.get_scale() if accelerated.scaler is not None else 1.0
                whole = squares.accumulated() if several else None
                if training.gradient_clipping is not None:
                    accelerated.clip_grad_norm_(model.parameters(), training.gradient_clipping)
            optimizer.step()
            optimizer.zero_grad(set_to_none=training.zero_grad == "none")
    mean = accelerated.gather(torch.stack(losses).mean().reshape(1)).mean()
    if whole is None:
        return float(mean), None, None
    micro = accelerated.gather(torch.stack(squares.micro).mean().reshape(1)).mean()
    found = float(micro) * (len(batches) / scale) ** 2, float(whole) / scale**2
    return float(mean), *(found if all(map(math.isfinite, found)) else (None, None))  # of a step that loss scaling skips there are none


@torch.no_grad()
def evaluated(accelerated: Any, workload: Workload, training: Training, model: Any, data: Data) -> float:
    """The mean loss over all samples that there are to validate with, each batch of them on one process. Raises `InvalidInputError` where there are none."""
    assert data.validation is not None
    model.eval()
    total, batches = torch.zeros(2, dtype=torch.float64), data.validation()
    while several := list(itertools.islice(batches, accelerated.num_processes)):
        turn = min(accelerated.process_index, len(several) - 1)  # models that talk in forward need as many of all processes: the last batch again, of no weight
        size, batch = several[turn]
        with accelerated.autocast():
            loss = float(loop.loss_of(workload, model, _on(accelerated.device, training, batch))[0])
        if turn == accelerated.process_index:
            total += torch.tensor([loss * size, size], dtype=torch.float64)
    model.train()
    summed = accelerated.reduce(total.to(accelerated.device if accelerated.num_processes > 1 else "cpu"), reduction="sum")
    if not summed[1]:
        raise InvalidInputError("there are no samples to validate with; give some, or none")
    return float(summed[0] / summed[1])


def _on(device: Any, training: Training, batch: Any) -> Any:
    return tree_map(lambda leaf: loop.prepared(leaf, training).to(device) if isinstance(leaf, torch.Tensor) else leaf, batch)


def _now(device: Any) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
