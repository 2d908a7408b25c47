# SPDX-License-Identifier: Apache-2.0
"""One rank of several: the code that splits the work, PyTorch's own where it can, over a process group that answers at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.devices import deepspeed, flat, layers, replicated, sharded
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training
from bsmodel.workloads import Workload

RANK = 0  # the one that answers are of
# Where each kind is wrapped: a module with `placed`, as below, and where it has something to say of these, `within`, `optimizer`, `settle`, `apart`
# and `whole_gradients`.
_ROOMS: dict[str, ModuleType] = {
    **{"ddp": replicated, "zero1": replicated, "fsdp1": flat, "fsdp2": sharded, "hsdp": sharded, "tp": layers},
    **dict.fromkeys(("deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3"), deepspeed),
}


@contextlib.contextmanager
def group(parallel: Parallel | None) -> Iterator[None]:
    """Within this context there is a process group of so many devices, none where the recipe is for one."""
    if parallel is None:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise InvalidInputError("a process group is initialized in this process; record in one without")
    hook = sys.excepthook  # torch puts its own there, which says of which rank an error is
    dist.init_process_group("fake", rank=RANK, world_size=parallel.devices, store=FakeStore())
    try:
        with getattr(_ROOMS[parallel.kind], "within", contextlib.nullcontext)(), layers.unasked():
            yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def placed(model: torch.nn.Module, training: Training, recorder: Recorder) -> torch.nn.Module:
    """The model on the device, wrapped as its parallelism asks for."""
    if training.parallel is None:
        placement.place(model, training, recorder)
        return model
    wrapped: torch.nn.Module = _ROOMS[training.parallel.kind].placed(model, training, training.parallel, recorder)
    return wrapped


def set_up(model: torch.nn.Module, workload: Workload, training: Training) -> Any:
    """What steps are given beside the model: the optimizer, or what its kind of parallelism has instead."""
    if training.parallel is not None and hasattr(room := _ROOMS[training.parallel.kind], "optimizer"):
        found = room.optimizer(model, training)
        if found is not None:
            return found
    return placement.set_up(model, workload, training)


def settle(model: torch.nn.Module, training: Training, recorder: Recorder) -> None:
    """What happens once, when the second forward pass begins."""
    if training.parallel is not None and hasattr(room := _ROOMS[training.parallel.kind], "settle"):
        room.settle(model, recorder)


@contextlib.contextmanager
def apart(model: torch.nn.Module, training: Training) -> Iterator[None]:
    """Within this context a micro-step keeps its gradients, as all but the last of an optimizer step may do, and does not sum them over the devices."""
    assert training.parallel is not None
    with getattr(_ROOMS[training.parallel.kind], "apart", no_sync)(model):
        yield


def no_sync(model: Any) -> contextlib.AbstractContextManager[None]:
    """A wrapper's own way to do that."""
    found: contextlib.AbstractContextManager[None] = model.no_sync()
    return found


def whole_gradients(model: torch.nn.Module, training: Training) -> Iterable[tuple[str, torch.Tensor]]:
    """Gradients that wait to be summed and are no parameter's own yet, with the modules that they are of."""
    if training.parallel is not None and hasattr(room := _ROOMS[training.parallel.kind], "whole_gradients"):
        yield from room.whole_gradients(model)


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The user's model inside of a wrapper that is a module of its own."""
    found: torch.nn.Module = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    return found


def parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """All parameters of the user's model by their names, those too in whose place a wrapper has left something else."""
    found: list[tuple[str, torch.nn.Parameter]] = getattr(model, flat.WHOLE, None) or list(bare(model).named_parameters())
    return found
