# SPDX-License-Identifier: Apache-2.0
"""Every device holds a part of each block's parameters, laid end to end in one tensor: FullyShardedDataParallel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.cuda_like.pretence import META, replaced
from bsmodel.recording.devices.sharded import DTYPES
from bsmodel.recording.devices.units import blocks
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training

WHOLE = "whole_parameters"  # of the wrapper: the model's own, by their names


@contextlib.contextmanager
def within() -> Iterator[None]:
    """Within this context storages without data are allocated where they have a size."""
    from torch.distributed.fsdp import _flat_param

    with replaced(_flat_param, "_data_ptr_allocated", lambda tensor: tensor.untyped_storage().nbytes() > 0):
        yield


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model in shards, which it brings from the host itself, block by block."""
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
    from torch.distributed.fsdp._runtime_utils import _lazy_init
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    low, summed = (DTYPES[name] if name else None for name in (parallel.param_dtype, parallel.reduce_dtype))
    options: dict[str, Any] = {"mixed_precision": MixedPrecision(param_dtype=low, reduce_dtype=summed)} if low or summed else {}
    units = blocks(model, parallel.wrap)
    for unit in units:
        if len(dtypes := {str(parameter.dtype).removeprefix("torch.") for parameter in unit.parameters()}) > 1:
            raise InvalidInputError(
                f"fsdp1 lays the parameters of a {type(unit).__name__} end to end, and they are in {' and '.join(sorted(dtypes))}; use fsdp2"
            )
    held = _without_data(model)
    whole = list(model.named_parameters())
    for _, parameter in whole:
        parameter.whole_elements = parameter.numel()  # type: ignore[attr-defined]
    wrapped = FullyShardedDataParallel(
        model,
        device_id=torch.device("cuda", 0),
        use_orig_params=True,
        auto_wrap_policy=ModuleWrapPolicy({type(block) for block in units}),
        sharding_strategy=ShardingStrategy.SHARD_GRAD_OP if parallel.reshard_after_forward is False else ShardingStrategy.FULL_SHARD,
        **options,
    )
    setattr(wrapped, WHOLE, whole)
    for buffer in wrapped.buffers():
        if buffer in held:
            recorder.values.set(buffer, held[buffer])
    _lazy_init(wrapped, wrapped)
    placement.categorize(wrapped, training, recorder)
    return wrapped


def _without_data(model: torch.nn.Module) -> dict[torch.Tensor, torch.Tensor]:
    """Leaves all that is on the host there without data, as most of it is, for what has some cannot be brought to the device in place.

    Returns what buffers held.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        for module in model.modules():
            here: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in here:
                for name, tensor in tensors.items():
                    if tensor is not None and not tensor.is_meta and tensor not in made:
                        empty = torch.empty_like(tensor, device=META)
                        made[tensor] = torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty
                    if tensor in made:
                        tensors[name] = made[tensor]
    return {empty: tensor for tensor, empty in made.items()}
