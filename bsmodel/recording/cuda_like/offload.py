# SPDX-License-Identifier: Apache-2.0
"""Saved tensors that hooks take to the host: `torch.autograd.graph.save_on_cpu`, `saved_tensors_hooks` of one's own.

What hooks keep on the host is without data: nobody reads it before it is back on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from bsmodel.recording.cuda_like.pretence import META
from bsmodel.recording.cuda_like.pretence import _DeviceCalls as DeviceCalls

aten = torch.ops.aten
MADE = frozenset((aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.zeros.default))
_packing = 0


def packing() -> bool:
    """Whether a hook is packing what autograd saves."""
    return _packing > 0


def on_host(func: Any, args: Any, kwargs: Any) -> Any:
    """The host tensor that `func` makes, without data; pinned memory has no pages here."""
    with torch._C._DisableTorchDispatch():
        return func(*args, **{**kwargs, "device": META, "pin_memory": False})


def _seeing(follows: Callable[[torch.Tensor], bool]) -> AbstractContextManager[Any]:
    """Device tensors say so; twice they would say it of each other's answers."""
    active = any(isinstance(mode, DeviceCalls) for mode in torch.overrides._get_current_function_mode_stack())
    return nullcontext() if active else DeviceCalls(follows)


@contextmanager
def followed(follows: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Within this context it is known when a hook packs, and hooks see the device where autograd calls them from inside an operator."""
    push = torch._C._autograd._push_saved_tensors_default_hooks

    def both(pack: Callable[[torch.Tensor], Any], unpack: Callable[[Any], torch.Tensor]) -> None:
        def packed(tensor: torch.Tensor) -> Any:
            global _packing
            _packing += 1
            try:
                with _seeing(follows):
                    return pack(tensor)
            finally:
                _packing -= 1

        def unpacked(value: Any) -> torch.Tensor:
            with _seeing(follows):
                return unpack(value)

        push(packed, unpacked)

    torch._C._autograd._push_saved_tensors_default_hooks = both  # type: ignore[assignment]
    try:
        yield
    finally:
        torch._C._autograd._push_saved_tensors_default_hooks = push
