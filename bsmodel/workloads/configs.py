# SPDX-License-Identifier: Apache-2.0
"""Workloads from a `config.json` of transformers, or from the folder that holds it; those of diffusers go to `diffusion`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.training import QUANTIZED, WEIGHTS, Training
from bsmodel.units import shown
from bsmodel.workloads import diffusion
from bsmodel.workloads.batches import batch_of, own_loss
from bsmodel.workloads.faults import broken_import, said
from bsmodel.workloads.fields import UNKNOWN, read_fields, require_sizes, zeros_among
from bsmodel.workloads.heads import head_of, made
from bsmodel.workloads.libraries import library, transformers_model
from bsmodel.workloads.workload import Workload

_TORCHAO = [rule.config for rule in QUANTIZED.values() if rule.config]
# Types whose modeling files in transformers (5.23) look for kernels of mamba_ssm, causal_conv1d or fla, and do without where there are none.
_SCANS = """
    bamba falcon_h1 falcon_mamba granitemoehybrid jamba mamba mamba2 nemotron_h zamba zamba2 kimi_linear olmo_hybrid qwen3_next qwen3_5 qwen3_5_moe
""".split()
_SCANNED = "scans are recorded in transformers' own operators, as where mamba_ssm or fla is not installed; with their kernels a step takes less"
_OPTIONS = {"transformers": ("seq_len", "image_size", "attention"), "diffusers": ("image_size",)}


def config_file(name: str) -> Path | None:
    """The configuration that a name stands for: a JSON file, or the `config.json` of a folder; None for other names."""
    if name.endswith(".json"):
        return Path(name)
    return Path(name) / "config.json" if name and os.path.isdir(name) else None


def config_name(path: Path) -> str:
    """What a model is called after its configuration file: the folder it is in, or the file's own name."""
    return path.parent.name if path.name == "config.json" and path.parent.name else path.stem


def checked_config(path: Path, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The library of a configuration file and its fields, as far as they can be judged without that library.

    Raises `InvalidInputError` for a file that cannot be read or is no configuration, for options that the library's models do not take, and
    for fields that ask for what is not recorded: weights that are quantized in formats nobody trains on, code of the model's own repository.
    """
    where = repr(str(path))
    fields = read_fields(path)
    family = "diffusers" if "_class_name" in fields else "transformers"
    kind = "_class_name" if family == "diffusers" else "model_type"
    if kind not in fields:
        raise InvalidInputError(f"{where} is no transformers config (no model_type) and no diffusers config (no _class_name)")
    if not isinstance(fields[kind], str):
        raise InvalidInputError(f"{where}: {kind} is {shown(fields[kind])}; expected the name of a {'class' if family == 'diffusers' else 'model type'}")
    for option in options:
        if option not in _OPTIONS[family]:
            known = ", ".join(name.replace("_", "-") for name in _OPTIONS[family])
            raise InvalidInputError(f"{where} is of {family}, whose models have no option {option.replace('_', '-')!r}; they take: {known}")
    _quantized(fields, where)
    for name in ("auto_map", "trust_remote_code"):
        if fields.get(name):
            reason = "code of the model's own repository is not run; without that field, transformers' own model of this type is recorded"
            raise InvalidInputError(f"{where} has {name}: {reason}, or write a Workload in a Python file")
    return family, fields


def _quantized(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a quantization_config of bitsandbytes or torchao says, as fields of a recipe; raises `InvalidInputError` for one of another library.

    Its defaults are those of transformers' BitsAndBytesConfig (utils/quantization_config.py).
    """
    given = fields.get("quantization_config")
    if not given:
        return {}
    said = given if isinstance(given, dict) else {}
    of_torchao = next((name for name, rule in QUANTIZED.items() if rule.config and f"'{rule.config}'" in repr(said.get("quant_type"))), None)
    if of_torchao is not None:
        return {"weights": of_torchao}
    if not (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = shown(said.get("quant_method", given))
        without = f"those of bitsandbytes and {', '.join(_TORCHAO)} are; without that field, weights are as the precision says"
        raise InvalidInputError(f"{where} has a quantization_config of {method}, whose weights are not recorded; {without}")
    if said.get("llm_int8_skip_modules"):
        raise InvalidInputError(f"{where} has llm_int8_skip_modules {shown(said['llm_int8_skip_modules'])}; expected none: all but the head is quantized")
    if said.get("load_in_8bit"):
        return {"weights": "int8"}
    compute, names = str(said.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch."), {long: short for short, long in WEIGHTS.items()}
    found = {"weights": said.get("bnb_4bit_quant_type", "fp4"), "double_quant": bool(said.get("bnb_4bit_use_double_quant"))}
    for name, value, known in (("quant_type", found["weights"], ("nf4", "fp4")), ("compute_dtype", compute, names)):
        if value not in known:
            raise InvalidInputError(f"{where}: bnb_4bit_{name} is {shown(value)}; expected {' or '.join(known)}")
    return {**found, "compute_dtype": names[compute]}


def from_config_file(path: Path, options: dict[str, Any]) -> Workload:
    """The workload of a configuration file, called after the file or the folder it is in.

    Raises `InvalidInputError` as `checked_config` does, and for fields from which no model can be built; `UnknownNameError` for a type nobody
    knows.
    """
    _, fields = checked_config(path, options)
    return replace(from_fields(fields, repr(str(path)), options), name=config_name(path))


def from_fields(fields: dict[str, Any], where: str, options: dict[str, Any]) -> Workload:
    """The workload of a configuration's fields, which are called `where` in what is refused; raises as `from_config_file` does."""
    make = diffusion.workload if "_class_name" in fields else _from_transformers
    try:
        return make(fields, where, **options)
    except BsmodelError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{where}: {broken_import(error) or said(error)}") from None


def _from_transformers(fields: dict[str, Any], where: str, attention: str | None = None, **asked: int) -> Workload:
    library("transformers")
    usual = _usual(str(fields["model_type"]))
    require_sizes(fields, usual, where)
    head, name, remarks = head_of(fields.get("architectures"), fields["model_type"], where)
    quantized = _quantized(fields, where)
    config = library("transformers").AutoConfig.for_model(**{name: value for name, value in fields.items() if name != "quantization_config"})
    if attention is not None:
        _require_attention(config, name)
        config._attn_implementation = attention
    found = made(head, config, name, asked)
    published = None if config.dtype is None else str(config.dtype).removeprefix("torch.")
    remarks += found.remarks + _settled(config) + ((_SCANNED,) if fields["model_type"] in _SCANS else ())
    training = Training(precision="bf16-mixed", optimizer="adamw")
    model = transformers_model(config, name, f", from {where}{zeros_among(fields, usual)}")
    batch = batch_of(**found.tensors)
    return Workload(
        model, batch, own_loss, training=training, tokens_per_sample=found.tokens_per_sample, remarks=remarks, weights=published, quantized=quantized
    )


def _usual(model_type: str) -> Callable[[str], Any]:
    """The usual value of a field of this model type, by the configuration that transformers makes where nothing is given."""
    known = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    if model_type not in known:
        raise UnknownNameError("model_type", model_type, known)
    try:
        default = library("transformers").AutoConfig.for_model(model_type)
    except Exception:  # some are made of others, which have to be given
        default = library("transformers").PretrainedConfig()
    default.allow_global_per_layer_attribute_access = True  # of models whose layers differ, such as Gemma 4
    return lambda name: getattr(default, name, UNKNOWN)


def _require_attention(config: Any, name: str) -> None:
    text = config.get_text_config()
    if not any(hasattr(part, field) for part in (config, text) for field in ("num_attention_heads", "encoder_attention_heads")):
        raise InvalidInputError(f"{name} has no attention; it has no option 'attention'")


def _settled(config: Any) -> tuple[str, ...]:
    """Takes from a configuration what would have the step decided by chance, or its weights otherwise than the recipe says."""
    remarks: tuple[str, ...] = ()
    config.return_dict = True  # the loss is asked for by name
    for name in ("decoder_start_token_id", "pad_token_id"):  # no size depends on which token it is
        if config.is_encoder_decoder and getattr(config, name, None) is None:
            setattr(config, name, 0)
    if getattr(config, "apply_spec_augment", False):
        config.apply_spec_augment = False
        remarks += ("apply_spec_augment false: which stretches of sound are masked is left to chance",)
    config.dtype = None  # the recipe says in which the weights are
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0):
            remarks += (f"{name} 0 in place of the configuration's {getattr(config, name)}: every layer runs, which is the most that a step takes",)
            setattr(config, name, 0.0)
    return remarks
