# SPDX-License-Identifier: Apache-2.0
"""Models of transformers and diffusers, built from configurations; a library is imported when its model is built."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from bsmodel.errors import BsmodelError, InvalidInputError
from bsmodel.workloads.faults import broken_import, said

IN_EXTRA = ("transformers", "diffusers", "peft", "accelerate", "scipy")  # of `bsmodel[models]`
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
MOST_MODULES = 100_000  # half a minute of building; switch-c with its 2048 experts a layer has 80,000
MOST_PARAMETERS = 10**13  # ten times the largest that is published


def silence() -> None:
    """Keeps bitsandbytes and torchao, which other libraries import, from warning of kernels and enumerations, which nobody asked for."""
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def library(name: str, who: str = "this model") -> Any:
    """The library called `name`; `InvalidInputError` says who needs it, what to install where it is missing, and what is wrong where it fails."""
    silence()
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            remedy = 'pip install "bsmodel[models]"' if name in IN_EXTRA else f"pip install {name}"
            raise InvalidInputError(f"{who} needs {name}, which cannot be imported ({error}); {remedy}") from None
        raise InvalidInputError(f"{who} needs {name}: {broken_import(error) or said(error)}") from None


def built(where: str, build: Callable[[], Any], hint: str = "") -> Any:
    """What `build` gives, within bounds; `InvalidInputError` says in one line what `where` names cannot be built from, and why."""
    from torch.nn.modules import module as torch_module

    counts = {"modules": 0, "parameters": 0}

    def count(kind: str, most: int, amount: int) -> None:
        counts[kind] += amount
        if counts[kind] > most:
            raise InvalidInputError(f"{where}: the model has more than {most:,} {kind}, above what is recorded{hint}")

    handles = [
        torch_module.register_module_module_registration_hook(lambda *_: count("modules", MOST_MODULES, 1)),
        torch_module.register_module_parameter_registration_hook(
            lambda _, __, parameter: count("parameters", MOST_PARAMETERS, 0 if parameter is None else parameter.numel())
        ),
    ]
    try:
        return build()
    except BsmodelError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{where}: {broken_import(error) or f'the model cannot be built: {said(error)}{hint}'}") from None
    finally:
        for handle in handles:
            handle.remove()


def transformers_config(model_type: str, attention: str | None, **fields: Any) -> Any:
    """The configuration of a model type, with the attention asked for (one of `ATTENTIONS`), or transformers' own choice."""
    config = library("transformers").AutoConfig.for_model(model_type, **fields)
    if attention is not None:
        config._attn_implementation = attention
    return config


_FILLED = contextvars.ContextVar("filled", default=False)


@contextlib.contextmanager
def filled() -> Iterator[None]:
    """Within this context models of transformers begin with the weights that the library gives them; else they are as they are in memory, which saves time."""
    before = _FILLED.set(True)
    try:
        yield
    finally:
        _FILLED.reset(before)


def transformers_model(config: Any, auto_class: str, hint: str = "") -> Callable[[], Any]:
    """Builds the model of a configuration, its weights not initialized but under `filled`; `auto_class` is one of transformers' auto classes, or a class.

    `hint` is added to what is said of a configuration that no model can be built from.
    """
    return functools.partial(_of_config, config, auto_class, hint)


def transformers_model_type(model_type: str, auto_class: str, attention: str | None, **fields: Any) -> Callable[[], Any]:
    """Builds the model of a type and the fields of its configuration that are not the default."""
    return functools.partial(_of_type, model_type, auto_class, attention, fields)


def _of_config(config: Any, auto_class: str, hint: str = "") -> Any:
    return built(f"{auto_class} of transformers", functools.partial(_uninitialized, config, auto_class), hint)


def _uninitialized(config: Any, auto_class: str) -> Any:
    cls = getattr(library("transformers"), auto_class)
    asked = getattr(config, "_attn_implementation_internal", None)
    attention = {} if asked is None else {"attn_implementation": asked}  # some versions forget what the configuration says
    with contextlib.nullcontext() if _FILLED.get() else _transformers_initialization().no_init_weights():
        model = cls.from_config(config, **attention) if hasattr(cls, "from_config") else cls(config)
    model.tie_weights()
    return model


def _transformers_initialization() -> Any:
    """Where `no_init_weights` is: in a module of its own since transformers 5."""
    try:
        return importlib.import_module("transformers.initialization")
    except ModuleNotFoundError:
        return importlib.import_module("transformers.modeling_utils")


def _of_type(model_type: str, auto_class: str, attention: str | None, fields: dict[str, Any]) -> Any:
    return _of_config(transformers_config(model_type, attention, **fields), auto_class)


def diffusers_model(class_name: str, hint: str = "", /, **fields: Any) -> Callable[[], Any]:
    """Builds a model of diffusers from the fields of its configuration; `hint` as for `transformers_model`."""
    return functools.partial(_of_diffusers, class_name, fields, hint)


def _of_diffusers(class_name: str, fields: dict[str, Any], hint: str) -> Any:
    return built(f"{class_name} of diffusers", lambda: getattr(library("diffusers"), class_name).from_config(fields), hint)
