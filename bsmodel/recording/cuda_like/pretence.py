# SPDX-License-Identifier: Apache-2.0
"""A process in which a CUDA device seems to be present, as far as Python code can see.

Device tensors are `meta` tensors: C++ sees `meta`, Python sees `cuda:0`. Whatever a program creates on, or moves to, a CUDA device
lands there; everything on the host is real and really runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import DefaultDeviceType

from bsmodel.hardware import Gpu
from bsmodel.recording.cuda_like import autocast, engine, machine, operators, triton, wrappers

CUDA = torch.device("cuda", 0)
META = torch.device("meta")


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within this context `owner` has this under the name, whether it had anything or not."""
    had, original = hasattr(owner, name), getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original) if had else delattr(owner, name)


def is_device(device: Any) -> bool:
    """Whether `device` means the pretended GPU: `cuda`, `cuda:0`, 0 or the device behind it."""
    if isinstance(device, bool) or device is None:
        return False
    if isinstance(device, int):
        return True
    return str(device).startswith(("cuda", "meta"))


HOST = torch.device("cpu")
# What Python sees of a tensor on the device, and of one that is not.
_SEEN: dict[Any, tuple[Any, Any]] = {
    torch.Tensor.device.__get__: (CUDA, HOST),
    torch.Tensor.is_cuda.__get__: (True, False),  # type: ignore[attr-defined]
    torch.Tensor.is_meta.__get__: (False, False),  # type: ignore[attr-defined]
    torch.Tensor.get_device: (0, -1),
}


def _listed(index: Any) -> Any:
    """A list of numbers as the host tensor it stands for: torch would make it on `meta`, where it has no values to ask for."""
    return torch.tensor(index) if isinstance(index, list) and index and all(isinstance(item, int) for item in index) else index


def _read(values: Any) -> Any:
    """Lists of numbers whose scalars on the device have been read, as CUDA reads them to make a tensor of the list."""
    if isinstance(values, (list, tuple)):
        return [_read(value) for value in values]
    return values.item() if isinstance(values, torch.Tensor) and values.is_meta and not values.dim() else values


class _DeviceCalls(TorchFunctionMode):
    """Sends what a program says about `cuda` devices to `meta`, where device tensors live.

    `follows` tells them from `meta` tensors on the host, which have no data because the model was built without.
    """

    def __init__(self, follows: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.follows = follows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen = _SEEN.get(func)
        if seen is not None:
            return seen[0] if (args[0].is_meta or wrappers.is_wrapper(args[0])) and self.follows(args[0]) else seen[1]
        if func in _MOVES and args[0].is_meta and not self.follows(args[0]):
            return _from_host(func, args[0], [*args[1:], *(kwargs or {}).values()])
        if func is torch.Tensor.__format__ and args[0].is_meta and not args[0].dim():  # of a scalar its value is written
            return format(args[0].item(), *args[1:])
        if func is torch.Tensor.cuda:
            return args[0].to(META)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.type and len(args) > 1 and (dtype := machine.dtype_of(args[1])) is not None:
            return args[0].to(META, dtype)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], (list, tuple)):
            args = (args[0], tuple(map(_listed, args[1])) if isinstance(args[1], tuple) else _listed(args[1]))
        if func is torch.Tensor.to and len(args) > 1 and not isinstance(args[1], (torch.dtype, torch.Tensor)) and is_device(args[1]):
            args = (args[0], META, *args[2:])
        if not kwargs:
            return func(*args)
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if is_device(kwargs.get("device")):
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                args = (_read(args[0]), *args[1:])
                return func(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(META)
            kwargs = {**kwargs, "device": META}
        return func(*args, **kwargs)


_MOVES = (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu)


def _from_host(func: Any, tensor: torch.Tensor, options: list[Any]) -> torch.Tensor:
    """A host tensor without data where `to`, `cuda` or `cpu` brings it: a new tensor on the device, or what it was, of another dtype perhaps."""
    dtype = next((option for option in options if isinstance(option, torch.dtype)), tensor.dtype)
    onto = func is torch.Tensor.cuda
    for option in options:
        if isinstance(option, torch.Tensor):
            onto, dtype = onto or option.is_meta, option.dtype
        elif isinstance(option, (str, torch.device)) or type(option) is int:
            onto = onto or is_device(option)
    return torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=META) if onto else tensor.to(dtype)


class _Generator(torch.Generator):
    """A generator of random numbers, of which nobody sees any: one for the device is one for the host."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu" if is_device(device) else device)  # type: ignore[call-arg]


@contextmanager
def resizing(tell: Callable[[torch.UntypedStorage, int], None]) -> Iterator[None]:
    """Within this context somebody is told of storages that change their size where they are, as those of sharded parameters do."""
    resize = torch.UntypedStorage.resize_

    def told(storage: torch.UntypedStorage, size: int) -> Any:
        tell(storage, size)
        return resize(storage, size)

    with replaced(torch.UntypedStorage, "resize_", told):
        yield


def lending(tell: Callable[[torch.Tensor, Any], None]) -> Any:
    """Within this context somebody is told of tensors that another stream uses, too, whose memory is free when both are done."""
    return replaced(torch.Tensor, "record_stream", lambda tensor, stream: tell(tensor, stream))


@contextmanager
def pretend_cuda(gpu: Gpu, follows: Callable[[torch.Tensor], bool], note: Callable[[str], object] = str) -> Iterator[None]:
    """Within this context Python code sees one CUDA device, this card; `follows` tells which `meta` tensors are on it.

    `note` is told what of a program is not counted; by default nobody is.

    Nothing is changed for good: every patched name of torch is restored on the way out. Not for several threads at once.
    """
    operators.register_all()
    operators.set_capability(gpu.capability)
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        autocast.clear_cast_weights()
        clear()

    with ExitStack() as stack:
        for attribute, answer in machine.answers(gpu).items():
            stack.enter_context(replaced(torch.cuda, attribute, answer))
        stack.enter_context(replaced(torch.accelerator, "current_stream", lambda device=None: torch.cuda.current_stream(device)))
        stack.enter_context(replaced(torch._C, "_cuda_getCurrentRawStream", lambda device: 0))  # of a torch built for CUDA
        for kernels, attribute, answer in triton.launches(note):
            stack.enter_context(replaced(kernels, attribute, answer))
        stack.enter_context(replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(replaced(torch, "clear_autocast_cache", clear_both))
        stack.enter_context(replaced(torch, "Generator", _Generator))
        calls = _DeviceCalls(follows)
        stack.enter_context(replaced(torch.autograd, "_engine_run_backward", engine.Numbers(_engine_run_backward, calls)))
        stack.enter_context(machine.MAIN)
        stack.enter_context(replaced(DefaultDeviceType, "_default_device_type", "cuda"))
        stack.enter_context(calls)
        stack.enter_context(autocast.dispatching())
        yield
