# SPDX-License-Identifier: Apache-2.0
"""Other ways to learn a batch size, each called as its own documentation says, for comparison on the same rows."""

from __future__ import annotations

import importlib
import inspect
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.training import Training
from bsmodel.workloads import Workload

Question = Callable[[Workload, Training, int], int]
_PROBES = (2, 4)  # the batches with which the search for an estimator's largest batch begins
_MOST_ASKED = 10
_FLAT = 1000  # an estimate that has not grown up to here does not know the batch
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Rival:
    """An estimator: where it comes from, what it needs, and how it is asked for the bytes at a batch."""

    name: str
    package: str  # the module to import; empty where torch has it
    source: str
    estimate: Question
    what: str
    needs_device: bool = False
    share_of_card: float = 1.0  # how much of the capacity its documentation lets a batch fill
    knows_batch: bool = True
    linear: bool = True  # whether two estimates give all others; else the largest batch takes several, at batches up to it


@dataclass(frozen=True)
class Estimate:
    """Its bytes at the batch, and the batch it recommends for the capacity; None where it knows of no batch."""

    predicted_bytes: int
    recommended_batch: int | None


def ask(rival: Rival, workload: Workload, training: Training, batch: int, capacity_bytes: int) -> Estimate:
    """What a rival says at a batch and for a capacity. Raises `InvalidInputError` where it is not installed or does not know the workload."""
    if rival.package:
        try:
            importlib.import_module(rival.package)
        except ImportError as error:
            raise InvalidInputError(f'{rival.name} cannot be imported ({error}); pip install "bsmodel[rivals]"') from None
    if workload.loss is None:
        raise InvalidInputError(f"{workload.name} has a step of its own, which {rival.name} cannot be asked about")
    predicted = rival.estimate(workload, training, batch)
    return Estimate(predicted, _recommended(rival, workload, training, capacity_bytes) if rival.knows_batch else None)


def _recommended(rival: Rival, workload: Workload, training: Training, capacity_bytes: int) -> int | None:
    """The largest batch whose estimate stays in the share of the capacity, to a hundredth; None where its bytes do not grow with the batch."""

    def estimate(batch: int) -> int:
        return rival.estimate(workload, training, batch)

    limit = rival.share_of_card * capacity_bytes
    (before, low), high = _PROBES, _LARGEST
    at_before, at_low = estimate(before), estimate(low)
    if at_low > limit:  # not even a few samples
        return next((batch for batch in range(low - 1, 0, -1) if estimate(batch) <= limit), 0)
    while at_low <= at_before:  # what does not depend on the batch still decides
        if low > _FLAT:
            return None
        before, at_before, low = low, at_low, 4 * low
        at_low = estimate(low)
    if rival.linear:
        return max(0, min(_LARGEST, low + math.floor((limit - at_low) * (low - before) / (at_low - at_before))))
    if at_low > limit:
        low, at_low, high = before, at_before, low
    slope = max(1.0, (at_low - at_before) / max(1, low - before))
    for _ in range(_MOST_ASKED):
        guess = min(high - 1, max(low + 1, low + int((limit - at_low) / slope)))
        if high - low <= max(1, low // 100) or guess <= low:
            break
        found = estimate(guess)
        slope = max((found - at_low) / (guess - low), slope / 2)  # a maximum of lines grows faster further out
        low, at_low, high = (guess, found, high) if found <= limit else (low, at_low, guess)
        if found <= limit and limit - found < slope:
            break
    return low


# -- the formula of a guide --------------------------------------------------------------------------------------------------------------


def _guide(workload: Workload, training: Training, batch: int) -> int:
    """One sample forward without gradients, its peak times the batch."""
    import torch

    from bsmodel.validation.device import require_cuda

    require_cuda()
    model: Any = workload.model().to("cuda").eval()
    inputs, keywords = _inputs(model, workload.batch(1))
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        model(*(value.to("cuda") for value in inputs), **{name: value.to("cuda") for name, value in keywords.items()})
    return batch * int(torch.cuda.max_memory_allocated())


# -- accelerate --------------------------------------------------------------------------------------------------------------------------


def _accelerate(workload: Workload, training: Training, batch: int) -> int:
    """The "Total" training column of `accelerate estimate-memory`: what Adam needs, at whatever batch."""
    accelerate: Any = importlib.import_module("accelerate")
    estimate: Any = importlib.import_module("accelerate.commands.estimate")
    utils: Any = importlib.import_module("accelerate.utils")
    with accelerate.init_empty_weights():
        model = workload.model()
    total, _ = utils.calculate_maximum_sizes(model)
    dtype = {"float16": "float16", "bfloat16": "bfloat16"}.get(training.numerics.autocast or training.numerics.weights, "float32")
    return int(max(estimate.estimate_training_usage(total, dtype).values()))


# -- torchinfo ---------------------------------------------------------------------------------------------------------------------------


def _torchinfo(workload: Workload, training: Training, batch: int) -> int:
    """`Estimated Total Size` of `torchinfo.summary`: input, outputs of layers with parameters twice, parameters."""
    import torch

    torchinfo: Any = importlib.import_module("torchinfo")
    for device in ("meta", "cpu"):  # models that read values of their inputs run on the host only
        with torch.device(device):
            model = workload.model()
        inputs, keywords = _inputs(model, workload.batch(batch))
        try:
            found = torchinfo.summary(model, input_data=keywords or list(inputs), device=device, mode="train", verbose=0)
            break
        except RuntimeError:
            if device == "cpu":
                raise
    return int(found.total_input + found.total_output_bytes + found.total_param_bytes)


# -- torch's MemTracker ------------------------------------------------------------------------------------------------------------------


def _mem_tracker(workload: Workload, training: Training, batch: int) -> int:
    """Peak of two steps under `MemTracker` and `FakeTensorMode`; on the host's operators where torch has no CUDA device."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.utils._pytree import tree_leaves, tree_map

    from bsmodel.recording import placement

    device = "cuda" if torch.cuda.is_available() else "cpu"
    autocast = training.numerics.autocast
    with torch.device("meta"):
        model: Any = placement.adapt(placement.build(workload, training)[0], workload, training)
    with FakeTensorMode():
        _fake_weights(model, device)
        optimizer = placement.make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], training)
        data = tree_map(lambda leaf: leaf.to(device), workload.batch(batch))
        tracker = MemTracker()
        tracker.track_external(model, optimizer, *tree_leaves(data))
        with tracker:
            for _ in range(2):
                with torch.autocast(device, dtype=getattr(torch, autocast or "bfloat16"), enabled=autocast is not None):
                    loss: Any = workload.loss(model, data)  # type: ignore[misc]
                loss = loss[0] if isinstance(loss, tuple) else loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                del loss
                tracker.reset_mod_stats()
    peaks = tracker.get_tracker_snapshot("peak")
    return max(int(kinds["Total"]) for kinds in peaks.values())


def _fake_weights(model: Any, device: str) -> None:
    """Parameters and buffers made anew under the fake mode, tied ones once: a copy of a fake tensor belongs to a mode of its own."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, old in (*module._parameters.items(), *module._buffers.items()):
            if old is None:
                continue
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype, device=device)
                made[id(old)] = torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
                made[-id(old)] = old  # keeps the id taken
            (module._parameters if name in module._parameters else module._buffers)[name] = made[id(old)]


# -- torch-kitsune -----------------------------------------------------------------------------------------------------------------------


def _kitsune(workload: Workload, training: Training, batch: int) -> int:
    """`predict_hf_memory` for a transformers model (by a folder with its configuration), `predict_memory` for any other."""
    import torch

    predict: Any = importlib.import_module("kitsune.predict")
    optimizer = {"sgd-momentum": "sgd_momentum", "sgd": "sgd"}.get(training.optimizer_name, training.optimizer_name.partition("-")[0])
    dtype = training.numerics.autocast or training.numerics.weights
    asked = {"batch_size": batch, "dtype": dtype, "optimizer": optimizer, "training": True}
    with torch.device("meta"):
        model = workload.model()
    sample = workload.batch(1)
    if hasattr(getattr(model, "config", None), "model_type"):
        tokens = sample.get("input_ids") if isinstance(sample, dict) else None
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            found = predict.predict_hf_memory(folder, seq_len=None if tokens is None else tokens.size(1), **asked)
    else:
        inputs, keywords = _inputs(model, sample)
        if len(inputs) + len(keywords) != 1:
            raise InvalidInputError("torch-kitsune takes models of one input")
        found = predict.predict_memory(model, input_shape=tuple([*inputs, *keywords.values()][0].shape[1:]), **asked)
    return int(found.total_bytes)


def _inputs(model: Any, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model's forward takes of a batch, by position and by name; labels are the loss's."""
    if not isinstance(batch, dict):
        leaves = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        return leaves[:-1] if len(leaves) > 1 else leaves, {}
    named = {name: value for name, value in batch.items() if name != "labels"}
    accepted = inspect.signature(model.forward).parameters
    if all(name in accepted for name in named):
        return (), named
    return tuple(named.values()), {}


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival("guide", "", "the first step of the guide: forward without gradients, 80 % of the card", _guide, "forward x batch", True, share_of_card=0.8),
        Rival(
            "accelerate",
            "accelerate",
            "https://huggingface.co/docs/accelerate/usage_guides/model_size_estimator",
            _accelerate,
            "weights and Adam",
            knows_batch=False,
        ),
        Rival("torchinfo", "torchinfo", "https://github.com/TylerYep/torchinfo", _torchinfo, "estimated total size"),
        Rival(
            "MemTracker",
            "",
            "https://github.com/pytorch/pytorch/blob/main/torch/distributed/_tools/mem_tracker.py",
            _mem_tracker,
            "peak of two steps on fake tensors",
            linear=False,
        ),
        Rival("torch-kitsune", "kitsune.predict", "https://github.com/jeeth-kataria/Kitsune_optimization", _kitsune, "static, plus 15 %"),
    )
}
