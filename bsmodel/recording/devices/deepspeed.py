# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO where it is not installed: what its engine allocates and frees, re-enacted by its rules in operators of torch alone.

The rules are those of DeepSpeed 0.19.8, deepspeed/runtime/engine.py and deepspeed/runtime/zero; its own kernels and offloading are left out.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.parallel import Parallel
from bsmodel.recording import placement
from bsmodel.recording.devices import deepspeed_states, deepspeed_weights
from bsmodel.recording.devices.sharded import DTYPES
from bsmodel.recording.recorder import Recorder
from bsmodel.training import Training


@dataclass(frozen=True)
class Settings:
    """What its configuration says, in elements and not in bytes."""

    reduce_bucket_size: int = 500_000_000
    prefetch_bucket_size: int = 50_000_000
    param_persistence_threshold: int = 100_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    sub_group_size: int = 1_000_000_000


DEFAULTS = Settings()  # deepspeed/runtime/zero/config.py


def of_trainer(hidden: int) -> Settings:
    """What transformers puts where a configuration says "auto", from the width of the model (transformers/integrations/deepspeed.py)."""
    return replace(DEFAULTS, reduce_bucket_size=hidden * hidden, prefetch_bucket_size=int(0.9 * hidden * hidden), param_persistence_threshold=10 * hidden)


def settings_of(model: torch.nn.Module, parallel: Parallel) -> Settings:
    """The settings that a preset stands for."""
    if getattr(parallel, "preset", "torch") != "hf-auto":
        return DEFAULTS
    config: Any = getattr(model, "config", None)
    for part in (config, getattr(config, "text_config", None)):
        widths = [getattr(part, "hidden_size", None), *(getattr(part, "hidden_sizes", None) or ())]
        if known := [width for width in widths if width]:
            return of_trainer(max(known))
    raise InvalidInputError("preset hf-auto takes sizes of buckets from hidden_size of the model's configuration, which this one has not; leave preset out")


@dataclass(frozen=True)
class _Setting:
    """A model that is placed and has no optimizer yet."""

    groups: Any
    settings: Settings
    recorder: Recorder


_PLACED: weakref.WeakKeyDictionary[torch.nn.Module, _Setting] = weakref.WeakKeyDictionary()


def placed(model: torch.nn.Module, training: Training, parallel: Parallel, recorder: Recorder) -> torch.nn.Module:
    """The model in the dtype that it computes in, cast on the host, and on the device as its stage has it."""
    require_known(training)
    low = DTYPES.get(parallel.param_dtype or "", getattr(torch, training.numerics.weights))
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype is not low:
            parameter.data = parameter.data.to(low)
    settings = settings_of(model, parallel)
    if parallel.shards:
        _PLACED[model] = _Setting(deepspeed_weights.placed(model, training, parallel, settings, recorder), settings, recorder)
        return model
    placement.place(model, training, recorder)
    _PLACED[model] = _Setting(deepspeed_states.placed(model, parallel, recorder), settings, recorder)
    return model


def optimizer(model: torch.nn.Module, training: Training) -> Any:
    """The engine: the recipe's optimizer over the partitions of this rank in float32, and all that goes on round it."""
    assert training.parallel is not None
    setting, stage = _PLACED.pop(model), int(training.parallel.kind[-1])
    if stage == 3:
        return deepspeed_weights.Engine(model, setting.groups, training, setting.settings, setting.recorder)
    return deepspeed_states.Engine(setting.groups, training, setting.settings, setting.recorder, stage)


def require_known(training: Training) -> None:
    """Raises `InvalidInputError` for what a recipe asks of PyTorch's loop and DeepSpeed's engine does otherwise."""
    assert training.parallel is not None
    kind = training.parallel.kind
    if training.numerics.autocast is not None:
        raise InvalidInputError(
            f"precision {training.precision} is PyTorch's autocast, and {kind} has mixed precision of its own: give precision fp32 and param_dtype bf16"
        )
    if training.zero_grad != "none":
        raise InvalidInputError(f"{kind} frees the gradients itself, so zero_grad={training.zero_grad} is not applied; leave it out")
    if training.ema and training.parallel.shards:
        raise InvalidInputError(f"{kind} keeps no whole parameters, of which ema makes averages; use deepspeed-zero2")
