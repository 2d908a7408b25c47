# SPDX-License-Identifier: Apache-2.0
"""A workload around a bare `nn.Module`: the shape of its input is given, the loss is asked for or suits its output."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.workloads.batches import zeros
from bsmodel.workloads.own import attribute
from bsmodel.workloads.workload import Workload

if TYPE_CHECKING:
    import torch

LOSSES = ("cross-entropy", "mse", "bce", "mean")
_BATCH = ("n", "b", "-1", "batch")  # what is written for a number of samples
_Shape = tuple[int, ...]


def bare_module(name: str, shape: str, loss: str | None = None) -> Workload:
    """A workload around the `nn.Module` (class, factory or instance) at `module:attribute` or `path.py:attribute`.

    `shape` is one sample's, e.g. `3x224x224` (float32) or `128:long` (token ids below 2), with the batch before it or without: `Nx3x224x224`;
    a leading 1 is the batch where the module takes the rest and not the whole, and a remark says so. `loss` is one of `LOSSES`, by default
    `suitable(...)`; a remark names it. Targets are zeros beside the outputs, which live as long as the batch does.
    Raises `InvalidInputError` for a shape that cannot be read or an attribute that gives no module, `UnknownNameError` for another loss.
    """
    import torch

    sample, kind = _read(shape)
    if ":" not in name:
        raise InvalidInputError(f"--input is for a module of your own, given as path.py:attribute; {name!r} is not")
    if loss is not None and loss not in LOSSES:
        raise UnknownNameError("loss", loss, LOSSES)
    found, remarks, taken = attribute(name), list[str](), [sample]
    if isinstance(found, Workload):
        raise InvalidInputError(f"{name} is a Workload, which makes its own batches; leave out --input")

    def build() -> Any:
        module = found if isinstance(found, torch.nn.Module) else found()
        if not isinstance(module, torch.nn.Module):
            raise InvalidInputError(f"{name} gives {type(module).__name__}; expected a torch.nn.Module")
        if _has_batch(module, sample, kind):
            taken[0] = sample[1:]
            _say(remarks, f"the leading 1 of --input {shape} is taken for the batch: the module takes samples of {_text(sample[1:])}, not {_text(sample)}")
        return module

    def make(size: int) -> Any:
        return {"input": zeros(size, *taken[0], dtype=kind)}

    def compute(model: Any, batch: Any) -> Any:
        outputs = model(batch["input"])
        value, sentence = _loss(name, loss, model, batch, outputs)
        _say(remarks, sentence)
        return value, outputs

    return Workload(build, make, compute, name=name.rpartition(":")[2], remarks=remarks)


def _say(remarks: list[str], sentence: str) -> None:
    if sentence not in remarks:
        remarks.append(sentence)


def _text(shape: _Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


def _read(text: str) -> tuple[_Shape, str]:
    """One sample's sizes and dtype."""
    sizes, _, kind = text.partition(":")
    words = re.split("[xX,]", re.sub(r"\s", "", sizes))
    if len(words) > 1 and words[0].lower() in _BATCH:
        words = words[1:]
    if not all(re.fullmatch("0*[1-9][0-9]{0,15}", word) for word in words) or kind not in ("", "float", "long"):
        raise InvalidInputError(f"--input {text!r} cannot be read; expected sizes of one sample such as 3x224x224, or 128:long for token ids")
    return tuple(map(int, words)), "long" if kind == "long" else "float32"


def _has_batch(module: torch.nn.Module, sample: _Shape, kind: str) -> bool:
    """Whether a leading 1 is the batch: the module fails on samples of this shape, and takes those without it."""
    return len(sample) > 1 and sample[0] == 1 and not _takes(module, (2, *sample), kind) and _takes(module, (2, *sample[1:]), kind)


def _takes(module: torch.nn.Module, shape: _Shape, kind: str) -> bool:
    """Whether a copy of the module, without data, runs on such an input; what it keeps of that run does not reach the module."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with contextlib.suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        copies: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            copies[id(tensor)] = torch.nn.Parameter(empty, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else empty
        copy.deepcopy(module, copies)(torch.zeros(shape, dtype=getattr(torch, kind), device="cpu"))
        return True
    return False


# -- losses --------------------------------------------------------------------------------------------------------------------------------


def suitable(inputs: torch.Tensor, outputs: torch.Tensor) -> str:
    """The loss that outputs of this shape are usually trained with.

    Integer inputs and an output of more dimensions: cross entropy over the tokens. (b, C): cross entropy over C classes. (b) or (b, 1): mean
    squared error. The inputs' shape: mean squared error. (b, C, ...) with the inputs' sizes behind the channels: cross entropy for each
    pixel, binary where C is 1. Else the mean of the output, as of a single number, which is a loss already.
    """
    shape, given = tuple(outputs.shape), tuple(inputs.shape)
    if not outputs.is_floating_point() or not shape:
        return "mean"
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return "mse"
    if len(shape) == 2 or (not inputs.is_floating_point() and shape[:-1] == given):
        return "cross-entropy"
    if shape == given:
        return "mse"
    if len(shape) > 2 and shape[2:] == given[2:] and inputs.is_floating_point():
        return "cross-entropy" if shape[1] > 1 else "bce"
    return "mean"


def _loss(name: str, asked: str | None, model: torch.nn.Module, batch: dict[str, Any], outputs: Any) -> tuple[Any, str]:
    """The loss that is asked for, or suits the first tensor of the outputs, and the sentence that names it."""
    import torch

    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise InvalidInputError(f"{name} gives {type(outputs).__name__} without a tensor in it; expected outputs to compute a loss from")
    chosen = asked or suitable(batch["input"], tensors[0])
    value, against = _computed(chosen, model, batch, tensors[0])
    of = "" if len(tensors) == 1 else f", the first of {len(tensors)}"
    why = "" if asked else "; chosen for this output, --loss asks for another"
    return value, f"loss: {chosen}{against}, of outputs of {_text(tuple(tensors[0].shape[1:]))} a sample{of}{why}"


def _computed(loss: str, model: torch.nn.Module, batch: dict[str, Any], outputs: torch.Tensor) -> tuple[Any, str]:
    """The loss and what it compares with; its targets stay in the batch."""
    import torch

    functions: dict[str, Callable[..., Any]] = {"mse": torch.nn.functional.mse_loss, "bce": torch.nn.functional.binary_cross_entropy_with_logits}
    if loss == "mean":
        return outputs.float().mean(), ""
    if loss in functions:  # as a loop moves them: numbers in the type of the weights
        dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), outputs.dtype)
        batch["targets"] = torch.zeros_like(outputs, dtype=dtype)
        return functions[loss](outputs, batch["targets"]), " against targets of the output's shape"
    if outputs.dim() < 2:
        raise InvalidInputError(f"--loss cross-entropy needs classes; the module gives {_text(tuple(outputs.shape[1:]))} a sample: take mse, bce or mean")
    given, each = tuple(batch["input"].shape), " at each position" if outputs.dim() > 2 else ""
    pixels = batch["input"].is_floating_point() and tuple(outputs.shape[2:]) == given[2:]
    if outputs.dim() > 2 and not pixels and tuple(outputs.shape[:-1]) == given[: outputs.dim() - 1]:  # a row of classes for each position
        outputs = outputs.flatten(0, -2)
    batch["targets"] = torch.zeros(outputs.size(0), *outputs.shape[2:], dtype=torch.long, device=outputs.device)
    return torch.nn.functional.cross_entropy(outputs, batch["targets"]), f" over {outputs.size(1)} classes{each}"
