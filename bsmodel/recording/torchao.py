# SPDX-License-Identifier: Apache-2.0
"""Weights in formats of torchao, frozen under adapters, and its linear layers that multiply in float8."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.recording.quantized import linear_layers
from bsmodel.training import Training
from bsmodel.workloads import silence

_SIDE = 16  # elements, of which tensor cores take whole multiples in float8 (aten/src/ATen/native/cuda/ScaledBlas.cpp)
# A weight in a format, as the configurations of torchao's `quantize_` make it by default; those would set torch's own options, too.
_MADE: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "nf4-torchao": lambda library, weight: library.to_nf4(weight),
    "int8-torchao": lambda library, weight: library.Int8Tensor.from_hp(weight, library.PerRow()),
    "float8-torchao": lambda library, weight: library.Float8Tensor.from_hp(weight),
}


def quantized(model: torch.nn.Module, weights: str) -> torch.nn.Module:
    """The model with the weights of its linear layers, but for its head, in a format. Raises `InvalidInputError` where nothing is linear."""
    library = _torchao("torchao.quantization")
    layers = linear_layers(model)
    if not layers:
        raise InvalidInputError(f"weights {weights}: {type(model).__name__} has no linear layers")
    for name, layer in layers.items():
        try:
            made = _MADE[weights](library, layer.weight.detach())
        except AssertionError as error:
            raise InvalidInputError(f"weights {weights} do not fit {name}, of {tuple(layer.weight.shape)}: {str(error).splitlines()[0]}") from None
        layer.weight = torch.nn.Parameter(made, requires_grad=False)
    return model


def in_float8(model: torch.nn.Module, training: Training) -> torch.nn.Module:
    """The model with linear layers that multiply in float8, but for its head and those with a side that is no multiple of 16.

    As `convert_to_float8_training` does it, which would also change torch's compiler. Raises `InvalidInputError` where there are none.
    """
    library = _torchao("torchao.float8")
    config = library.Float8LinearConfig.from_recipe_name(training.float8)
    layer = _torchao("torchao.float8.float8_linear").Float8Linear
    swap = _torchao("torchao.float8.float8_linear_utils").swap_linear_layers
    wanted = {id(found) for found in linear_layers(model).values() if found.in_features % _SIDE == found.out_features % _SIDE == 0}
    if not wanted:
        raise InvalidInputError(f"float8 {training.float8}: {type(model).__name__} has no linear layers with sides that are multiples of {_SIDE}")
    swapped: torch.nn.Module = swap(model, lambda found: layer.from_float(found, config=config), module_filter_fn=lambda found, _: id(found) in wanted)
    return swapped.train()


def in_float8_of(model: torch.nn.Module) -> tuple[int, int]:
    """How many linear layers multiply in float8, and how many there are."""
    linear = [type(module).__name__ for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return linear.count("Float8Linear"), len(linear)


def _torchao(name: str) -> Any:
    silence()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidInputError(f'float8 and weights of torchao need torchao: pip install "bsmodel[torchao]" ({error})') from None
