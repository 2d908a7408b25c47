# SPDX-License-Identifier: Apache-2.0
"""Weights in 4 or 8 bits: bitsandbytes' own modules in the place of linear layers, their weights packed without data."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch

from bsmodel.errors import InvalidInputError
from bsmodel.recording import packed as by_rule
from bsmodel.recording.cuda_like import wrappers
from bsmodel.training import WEIGHTS, Training
from bsmodel.workloads import silence


def quantized(model: torch.nn.Module, training: Training, dtype: torch.dtype) -> torch.nn.Module:
    """The model, of this dtype, with its linear layers in the format of the recipe, but for its head, as transformers has them (quantizer_bnb_4bit.py).

    What stays is in float32 where the recipe upcasts (`prepare_model_for_kbit_training` of peft). Raises `InvalidInputError` where nothing is linear.
    """
    bnb = _bitsandbytes(training)
    if bnb is None:
        count = by_rule.replaced(model, linear_layers(model), dtype, _computed_in(training), training.double_quant)
    else:
        count = _replaced(bnb, model, training, dtype)
    if not count:
        raise InvalidInputError(f"weights {training.weights}: {type(model).__name__} has no linear layers")
    setattr(model, "is_loaded_in_8bit" if training.weights == "int8" else "is_loaded_in_4bit", True)
    if training.upcast:
        importlib.import_module("peft").prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def _replaced(bnb: Any, model: torch.nn.Module, training: Training, dtype: torch.dtype) -> int:
    """Puts bitsandbytes' layers in the place of a model's linear ones, their weights packed; how many these are."""
    replace = importlib.import_module("transformers.integrations.bitsandbytes").replace_with_bnb_linear
    formats = {bnb.nn.Linear4bit: packed, bnb.nn.Linear8bitLt: _rounded}
    replace(model, modules_to_not_convert=_kept(model), quantization_config=_config(training))
    layers = [module for module in model.modules() if type(module) in formats]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(dtype)
        formats[type(layer)](bnb, layer)
    return len(layers)


def by_rules(training: Training) -> bool:
    """Whether weights in four bits are recorded by their layout, bitsandbytes not being installed."""
    return training.packs("bitsandbytes") and _bitsandbytes(training) is None


def _bitsandbytes(training: Training) -> Any:
    """The library; None for weights in four bits where it is not installed."""
    silence()
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        if training.weights == "int8":
            raise InvalidInputError(f'weights int8 need bitsandbytes: pip install "bsmodel[models]" ({error}); nf4 does without') from None
        return None


def _config(training: Training) -> Any:
    config = importlib.import_module("transformers").BitsAndBytesConfig
    if training.weights == "int8":
        return config(load_in_8bit=True)
    double, compute = training.double_quant, _computed_in(training)
    return config(load_in_4bit=True, bnb_4bit_quant_type=training.weights, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=compute)


def _computed_in(training: Training) -> torch.dtype:
    """What products with weights in four bits are computed in."""
    asked = WEIGHTS[training.compute_dtype] if training.compute_dtype else None
    found: torch.dtype = getattr(torch, asked or training.half or training.numerics.weights)
    return found


def _kept(model: torch.nn.Module) -> list[str]:
    """What transformers does not quantize: a head, and what shares its weights; of other models nothing."""
    if not hasattr(model, "get_output_embeddings"):
        return []
    found: list[str] = importlib.import_module("transformers.quantizers.base").get_keys_to_not_convert(model)
    return found


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers by name, without a head and what is in it."""
    whole = tuple(f"{name}." for name in _kept(model))
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and not f"{name}.".startswith(whole)}


def packed(bnb: Any, layer: Any) -> None:
    """Quantizes the weight of a `Linear4bit` without data."""
    weight = layer.weight
    data, state = bnb.functional.quantize_4bit(
        weight.data, blocksize=weight.blocksize, compress_statistics=weight.compress_statistics, quant_type=weight.quant_type
    )
    bnb.functional.name2qmap.clear()  # where one without data is kept for all that follow
    layer.quant_state = state
    layer.weight = bnb.nn.Params4bit(data, False, state, weight.blocksize, weight.compress_statistics, weight.quant_type, module=layer, bnb_quantized=True)


def _rounded(bnb: Any, layer: Any) -> None:
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(layer.weight.data.to(torch.float16))
    layer.weight = bnb.nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)


def elements(parameter: torch.Tensor) -> int:
    """Numbers in a parameter, of one that is packed those that were, of one of which a part is here those of all."""
    if (whole := getattr(parameter, "whole_elements", None)) is not None:
        return int(whole)
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether a parameter is quantized."""
    frozen = wrappers.is_wrapper(parameter) and not parameter.requires_grad
    return frozen or "CB" in vars(parameter) or getattr(parameter, "quant_state", None) is not None


def moved(parameter: torch.nn.Parameter, data: torch.Tensor, move: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Parameter:
    """A parameter with this data on the device, of the class that it had, and with what its class keeps beside it."""
    if type(parameter) is torch.nn.Parameter:
        return torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
    found: Any = torch.Tensor._make_subclass(type(parameter), data, parameter.requires_grad)
    vars(found).update(vars(parameter))
    if "CB" in vars(parameter):
        found.CB, found.SCB = data, move(vars(parameter)["SCB"])
    if (state := getattr(parameter, "quant_state", None)) is not None:
        for part, name in ((state, "absmax"), (state, "code"), (state, "offset"), (state.state2, "absmax"), (state.state2, "code")):
            if getattr(part, name, None) is not None:
                setattr(part, name, move(getattr(part, name)))
    return found
