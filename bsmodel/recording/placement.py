# SPDX-License-Identifier: Apache-2.0
"""Brings a model onto the pretended device: built without its weights, cast, adapted, moved in the order `Module.to` moves it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from bsmodel.errors import InvalidInputError, UntraceableError
from bsmodel.recording import adapters, quantized, torchao
from bsmodel.recording.allocation import owner
from bsmodel.recording.cuda_like import wrappers
from bsmodel.recording.cuda_like.pretence import META
from bsmodel.recording.recorder import Recorder
from bsmodel.training import OPTIMIZERS, Training
from bsmodel.workloads import Workload

aten = torch.ops.aten
_LARGE = 1 << 16  # elements: from here on a freshly filled tensor is a weight, not a constant the model may compute with


class WeightsNowhere(TorchFunctionMode):
    """Creates large tensors on `meta`; small constants stay real, so that models which compute with values can be built.

    What is computed of both is on `meta` too: a constructor may run its model to ask for the size of an output.
    """

    _FILLED = (torch.zeros, torch.ones, torch.randn, torch.rand, torch.full)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is None and self._without_data(func, args, kwargs):
            with torch._C._DisableTorchDispatch():  # on no device that is recorded
                return func(*args, **{**kwargs, "device": META})
        return func(*args, **kwargs)

    def _without_data(self, func: Any, args: Any, kwargs: Any) -> bool:
        return func is torch.empty or (func in self._FILLED and _elements(args) >= _LARGE)


class _BatchesNowhere(WeightsNowhere):
    """The same for batches: large floats only, since integers may be asked about."""

    def _without_data(self, func: Any, args: Any, kwargs: Any) -> bool:
        floats = kwargs.get("dtype", torch.float32).is_floating_point and func is not torch.full
        return floats and func in self._FILLED and _elements(args) >= _LARGE


class _Together(TorchDispatchMode):
    """Operators over tensors of which some have no data give results without data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if wrappers.concerned(types):
            return wrappers.left(func, types, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        if func is aten._to_copy.default and args[0].is_meta:  # of what has no data there is none elsewhere either
            return func(*args, **{**kwargs, "device": META})
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves) and func not in (aten.copy_.default, aten._to_copy.default):
            args, kwargs = tree_map(lambda leaf: leaf.to(META) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf, (args, kwargs))
        return func(*args, **(kwargs or {}))


@contextmanager
def weights_nowhere() -> Iterator[None]:
    """Within this context models are built without memory behind their weights."""
    with WeightsNowhere(), _Together():
        yield


def without_data(batch: Callable[[int], Any]) -> Callable[[int], Any]:
    """A batch function whose large tensors of floats have no memory behind them."""

    def make(size: int) -> Any:
        with _BatchesNowhere():
            return batch(size)

    return make


def _elements(args: Any) -> int:
    sizes = args[0] if args and isinstance(args[0], (tuple, list, torch.Size)) else args
    count = 1
    for size in sizes:
        count *= size if isinstance(size, int) else 1
    return count


def build(workload: Workload, training: Training) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """Call the user's factory in the dtype the recipe asks for; under `weights_nowhere` no memory is behind its weights.

    A model of one dtype is cast, one of several stays as it is; a remark says so, and where weights are not as they were published.
    """
    wanted = training.stored(workload.weights)
    dtype = getattr(torch, wanted)
    with default_dtype(dtype):
        model = workload.model()
    if not isinstance(model, torch.nn.Module):
        raise InvalidInputError(f"model() returned {type(model).__name__}; expected a torch.nn.Module")
    built = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters() if parameter.is_floating_point()}
    if len(built) > 1:
        remark = f"parameters stay as the model was built, in {' and '.join(sorted(built))}; precision {training.precision} would have them in {wanted}"
        return model.train(), (remark,)
    if built and built != {wanted}:
        return model.to(dtype).train(), (f"parameters, {built.pop()} as the model was built, are cast to {wanted} for precision {training.precision}",)
    if workload.weights not in (None, wanted):
        by = f"precision {training.precision}" if training.weights is None else f"weights {training.weights}"
        return model.train(), (f"the weights are in {wanted}, by {by}, not in {workload.weights}, as they are published",)
    if wanted != training.numerics.weights and training.weights is None:
        return model.train(), (f"the weights under the adapters are in {wanted}, as they are published; weights fp32 would have them in float32",)
    return model.train(), ()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within this context tensors of floats are in this dtype where none is asked for."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def adapt(model: torch.nn.Module, workload: Workload, training: Training) -> torch.nn.Module:
    """Freeze, quantize, add adapters and switch checkpointing on, as the recipe says."""
    if training.checkpointing:
        _checkpoint(model)
    for prefix in training.frozen:
        matching = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
        if not matching:
            names = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
            raise InvalidInputError(f"no parameter starts with {prefix!r}; the model's begin with: {', '.join(names)}")
        for parameter in matching:
            parameter.requires_grad_(False)
    stored = getattr(torch, training.stored(workload.weights))
    if training.packs("bitsandbytes"):
        model = quantized.quantized(model, training, stored)
    if training.weights is not None and training.packs("torchao"):
        model = torchao.quantized(model, training.weights)
    if training.float8 is not None:
        model = torchao.in_float8(model, training)
    if training.adapts:
        with default_dtype(torch.float32 if training.packs("bitsandbytes") else stored):  # to which peft brings new adapters where weights have data
            model = adapters.adapted(model, training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidInputError("nothing is trained: every parameter is frozen")
    return model


def _checkpoint(model: Any) -> None:
    if hasattr(model, "gradient_checkpointing_enable"):
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its name in transformers since 5.23
        try:
            return enable({"use_reentrant": False})
        except ValueError:
            pass
        except TypeError:  # transformers before 4.35
            return model.gradient_checkpointing_enable()
    elif hasattr(model, "enable_gradient_checkpointing"):
        return model.enable_gradient_checkpointing()
    elif hasattr(model, "set_grad_checkpointing"):
        return model.set_grad_checkpointing(True)
    blocks = repeated_blocks(model)
    if not blocks:
        raise InvalidInputError(f"{type(model).__name__} has no checkpointing switch and no repeated blocks to checkpoint one by one")
    for block in blocks:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def repeated_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Children of the outermost lists of at least two blocks, none inside another."""
    blocks: list[torch.nn.Module] = []
    for child in model.children():
        grandchildren = list(child.children())
        if isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential)) and len(grandchildren) > 1 and any(list(g.children()) for g in grandchildren):
            blocks += grandchildren
        else:
            blocks += repeated_blocks(child)
    return blocks


def place(model: torch.nn.Module, training: Training, recorder: Recorder) -> None:
    """Move parameters and buffers to the device in the order of `Module._apply`: children first; tied tensors once."""
    moved: dict[int, torch.Tensor] = {}
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # what the factory left on meta is not on the device yet
        _place(model, training.channels_last, recorder, moved)
    categorize(model, training, recorder)


def categorize(model: torch.nn.Module, training: Training, recorder: Recorder) -> None:
    """Say of what is on the device which of it are parameters and buffers, and whose."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            for part in wrappers.parts(tensor):
                recorder.categorize(part, _category(tensor, training), owner(name))


def _category(tensor: torch.Tensor, training: Training) -> str:
    if not isinstance(tensor, torch.nn.Parameter):
        return "buffer"
    if quantized.is_packed(tensor):
        return "packed weight"
    return "adapter" if training.adapts and tensor.requires_grad else "parameter"


def _place(module: torch.nn.Module, channels_last: bool, recorder: Recorder, moved: dict[int, torch.Tensor]) -> None:
    for child in module.children():
        _place(child, channels_last, recorder, moved)
    for name, parameter in module._parameters.items():
        if parameter is None or recorder.holds(parameter):
            continue
        if id(parameter) not in moved:
            moved[id(parameter)] = _moved_parameter(parameter, channels_last, recorder)
            moved[id(moved[id(parameter)])] = moved[id(parameter)]
            moved[-id(parameter)] = parameter  # keeps the id taken
        module._parameters[name] = moved[id(parameter)]  # type: ignore[assignment]
    for name, buffer in module._buffers.items():
        if buffer is None or recorder.holds(buffer):
            continue
        if id(buffer) not in moved:
            moved[id(buffer)] = _moved(buffer, channels_last, recorder)
            moved[id(moved[id(buffer)])] = moved[id(buffer)]
            moved[-id(buffer)] = buffer
            if buffer.device.type == "cpu":
                recorder.values.set(moved[id(buffer)], buffer)
        module._buffers[name] = moved[id(buffer)]


def _moved_parameter(parameter: torch.nn.Parameter, channels_last: bool, recorder: Recorder) -> torch.nn.Parameter:
    if wrappers.is_wrapper(parameter):
        return wrappers.moved(parameter, lambda tensor: recorder.to_device(tensor, "to"))
    device_tensor = _moved(parameter.detach(), channels_last, recorder)
    return quantized.moved(parameter, device_tensor, lambda tensor: recorder.to_device(tensor, "to", "packed weight"))


def _moved(tensor: torch.Tensor, channels_last: bool, recorder: Recorder) -> torch.Tensor:
    if channels_last and tensor.dim() == 4:
        tensor = torch.empty_like(tensor, device=META, memory_format=torch.channels_last)
    return recorder.to_device(tensor, "to")


def set_up(model: torch.nn.Module, workload: Workload, training: Training) -> Any:
    """What steps are given beside the model on the device: what the workload's own setup makes, else the recipe's optimizer of what is trained."""
    if workload.setup is not None:
        return workload.setup(model)
    return make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], training)


def make_optimizer(parameters: Sequence[torch.Tensor], training: Training) -> Any:
    """The optimizer of the recipe over the parameters that are trained."""
    if not isinstance(training.optimizer, str):
        optimizer = training.optimizer(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UntraceableError(f"optimizer={training.optimizer_name} gives {type(optimizer).__name__}; expected a torch.optim.Optimizer")
        return optimizer
    made, arguments = optimizer_class(training.optimizer)
    return made(parameters, **arguments)


def optimizer_class(name: str) -> tuple[Any, dict[str, float | bool]]:
    """The class of an optimizer that has a name, and what it is called with."""
    rule = OPTIMIZERS[name]
    module, _, kind = rule.path.partition(":")
    return getattr(importlib.import_module(module), kind), rule.arguments
