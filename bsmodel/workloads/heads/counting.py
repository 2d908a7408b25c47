# SPDX-License-Identifier: Apache-2.0
"""How many tokens of text the features of an image or of sound stand in for, asked of the model itself before it has weights."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.workloads.faults import said


class _Found(BaseException):
    """Not an error: the features have come, and the model need not go on. No `except Exception` of a model's stops it."""

    def __init__(self, features: Any) -> None:
        parts = features if isinstance(features, (list, tuple)) else [features]
        self.features = (sum(math.prod(part.shape[:-1]) for part in parts), parts[0].size(-1))


def tokens_of(model: Any, batch: Mapping[str, Any], kind: str) -> int:
    """How many tokens the images ("image") or sounds ("audio") of a batch become: the rows of their features, each as long as an embedding.

    model: of transformers, its parameters on the `meta` device. It is run until it holds the features against the tokens that stand for them
    (`get_placeholder_mask`), or has made them (`get_image_features`, `get_audio_features`). Integers keep their values: sizes are told by them.
    Raises `InvalidInputError` for a model that gets there not at all, or not without values of features, and for one whose features are no
    embeddings.
    """
    import torch

    for module in model.modules():
        held, made = getattr(module, "get_placeholder_mask", None), getattr(module, f"get_{kind}_features", None)
        if held is not None and any("features" in name for name in inspect.signature(held).parameters):
            module.get_placeholder_mask = functools.partial(_held, held)
        elif made is not None:
            setattr(module, f"get_{kind}_features", functools.partial(_made, made))
    name, asked = type(model).__name__, f"how many tokens {'an image' if kind == 'image' else 'sound'} becomes cannot be asked of"
    try:
        with torch.no_grad(), _integers_are_known():
            model.eval()(**batch)
    except _Found as found:
        width = model.get_input_embeddings().weight.size(-1)
        if found.features[-1] != width:
            raise InvalidInputError(f"{name}: features of {kind} have {found.features[-1]} values, embeddings of tokens {width}; expected as many") from None
        return math.prod(found.features[:-1])
    except Exception as error:
        raise InvalidInputError(f"{asked} {name}: {said(error)}") from None
    raise InvalidInputError(f"{asked} {name}, which holds none against tokens")


def _held(original: Any, *args: Any, **kwargs: Any) -> None:
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    raise _Found(next(value for name, value in given.items() if "features" in name and value is not None))


def _made(original: Any, *args: Any, **kwargs: Any) -> None:
    found = original(*args, **kwargs)
    raise _Found(getattr(found, "pooler_output", found))


@contextlib.contextmanager
def _integers_are_known() -> Iterator[None]:
    """`meta` tensors meet tensors of the host: integers stay there, and what is made of features has a shape only."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    host, meta = torch.device("cpu"), torch.device("meta")

    class Made(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func in (torch.tensor, torch.as_tensor):  # which no dispatcher sees
                kwargs.pop("device", None)
            return func(*args, **kwargs)

    class Met(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            features = any(isinstance(value, torch.Tensor) and value.device == meta for value in tree_leaves((args, kwargs)))
            if "device" in kwargs and kwargs["device"] is not None:
                kwargs["device"] = meta if features else host
            if features:
                if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
                    args = (args[0], _positions(args[1]), *args[2:])
                args, kwargs = tree_map_only(torch.Tensor, _shape, (args, kwargs))
            return func(*args, **kwargs)

    with Made(), Met():
        yield


def _shape(tensor: Any) -> Any:
    """A tensor as its shape, on `meta`; a number stays one."""
    import torch

    return tensor if tensor.dim() == 0 or tensor.device.type == "meta" else torch.empty_like(tensor, device="meta")


def _positions(indices: Any) -> list[Any]:
    """Masks of the host as the positions that they select, which have a number."""
    found: list[Any] = []
    for index in indices:
        known = index is not None and str(index.dtype) == "torch.bool" and index.device.type == "cpu"
        found += index.nonzero(as_tuple=True) if known else [index]
    return found
