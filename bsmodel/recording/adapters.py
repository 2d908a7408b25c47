# SPDX-License-Identifier: Apache-2.0
"""Adapters that are trained in the place of a model's weights: by peft, as its users make them."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.training import ADAPTERS, Training
from bsmodel.workloads import silence

ALL_LINEAR, ATTENTION = "all-linear", "attention"
_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_EXPRESSION = re.compile(r"[*+?()\[\]{}|^$\\]")  # what no name of a module has in it


def adapted(model: torch.nn.Module, training: Training) -> torch.nn.Module:
    """The model with the adapters of the recipe, all else frozen; `InvalidInputError` where there is nothing that they could adapt."""
    peft = _peft()
    kind = ADAPTERS[training.adapter or "lora"]
    if training.checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # type: ignore[operator]
    fields: dict[str, Any] = dict(kind.arguments)
    if kind.config == "LoraConfig":
        alpha = {} if training.lora_alpha is None else {"lora_alpha": training.lora_alpha}
        fields |= {"r": training.lora_rank, "lora_dropout": training.lora_dropout, **alpha}
    if kind.config == "PromptTuningConfig":
        fields |= {"task_type": "CAUSAL_LM", "num_virtual_tokens": training.prompt_tokens}
    elif kind.config == "LoraConfig" or training.lora_targets != ALL_LINEAR:  # IA3 knows what to scale in each type of model
        fields["target_modules"] = _targets(model, training.lora_targets)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what peft settles by itself
            config = getattr(peft, kind.config)(**fields)
            return peft.get_peft_model(model, config, autocast_adapter_dtype=training.adapter_dtype == "fp32").train()
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{training.adapter or 'lora'} of peft does not fit {type(model).__name__}: {str(error).splitlines()[0]}") from None


def _peft() -> Any:
    silence()
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise InvalidInputError('adapters need peft, which is not installed: pip install "bsmodel[models]"') from None


def _targets(model: torch.nn.Module, asked: str | tuple[str, ...]) -> str | list[str]:
    """The modules to adapt, as peft takes them: a word of its own, a regular expression, or ends of names."""
    if asked == ALL_LINEAR:
        return ALL_LINEAR
    if asked == ATTENTION:
        return _in_attention(model)
    names = [name for name, _ in _linear(model)]
    if isinstance(asked, str) and _EXPRESSION.search(asked):
        try:
            if not any(re.fullmatch(asked, name) for name in names):
                raise InvalidInputError(f"lora_targets {asked!r} matches no linear layer; the first is called {names[0] if names else None!r}")
        except re.error as error:
            raise InvalidInputError(f"lora_targets {asked!r} is no regular expression: {error}") from None
        return asked
    wanted = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UnknownNameError("linear layer", target, sorted({name.rpartition(".")[2] for name in names}))
    return wanted


def _in_attention(model: torch.nn.Module) -> list[str]:
    """Linear layers inside of modules that are called attention."""
    inside = {name for name, module in model.named_modules() if _ATTENTION.search(type(module).__name__)}
    found = [name for name, _ in _linear(model) if any(f"{name}.".startswith(f"{outer}.") for outer in inside)]
    if not found:
        raise InvalidInputError(f"lora_targets 'attention': {type(model).__name__} has no linear layer in a module called attention; name the layers")
    return found


def _linear(model: torch.nn.Module) -> Iterable[tuple[str, torch.nn.Module]]:
    """Layers that multiply by a matrix: those of torch, bitsandbytes' under them, and GPT-2's."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            yield name, module
