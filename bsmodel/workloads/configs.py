# SPDX-License-Identifier: Apache-2.0
"""Workloads from a `config.json` of transformers or diffusers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.training import Training
from bsmodel.workloads.batches import denoising_loss, dit_batch, dit_loss, image_batch, own_loss, token_batch, unet_batch
from bsmodel.workloads.libraries import diffusers_model, library, transformers_model
from bsmodel.workloads.workload import Workload

_HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def from_config_file(path: Path, options: dict[str, Any]) -> Workload:
    """The workload of a configuration file, called after the file or the folder it is in.

    Raises `InvalidInputError` for a file that cannot be read or is no configuration, `UnknownNameError` for a type nobody knows.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInputError(f"{str(path)!r} is not JSON: {error}") from None
    if "_class_name" in fields:
        return replace(_from_diffusers_config(fields, path, **options), name=config_name(path))
    if "model_type" in fields:
        return replace(_from_transformers_config(fields, path, **options), name=config_name(path))
    raise InvalidInputError(f"{str(path)!r} is no transformers config (no model_type) and no diffusers config (no _class_name)")


def config_name(path: Path) -> str:
    """What a model is called after its configuration file: the folder it is in, or the file's own name."""
    return path.parent.name if path.name == "config.json" and path.parent.name else path.stem


def _from_diffusers_config(fields: dict[str, Any], path: Path, image_size: int | None = None) -> Workload:
    if not hasattr(library("diffusers"), fields["_class_name"]):
        raise InvalidInputError(f"{str(path)!r} names {fields['_class_name']!r}, which this diffusers does not have")
    latent = image_size // 8 if image_size else int(fields.get("sample_size", 64))
    channels, context = int(fields.get("in_channels", 4)), fields.get("cross_attention_dim")
    training, model = Training(precision="fp16-mixed", optimizer="adamw"), diffusers_model(fields["_class_name"], **fields)
    if isinstance(context, int):
        return Workload(model, unet_batch(latent, channels, (77, context)), denoising_loss, training=training)
    if "DiT" in fields["_class_name"]:
        return Workload(model, dit_batch(latent, channels), dit_loss, training=training)
    raise InvalidInputError(f"{str(path)!r}: no batch is known for {fields['_class_name']}; write a Workload in a Python file and give FILE.py:NAME")


def _from_transformers_config(
    fields: dict[str, Any], path: Path, seq_len: int | None = None, image_size: int | None = None, attention: str | None = None
) -> Workload:
    transformers = library("transformers")
    try:
        config: Any = transformers.AutoConfig.for_model(**{"model_type": fields["model_type"], **fields})
    except ValueError:
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        raise UnknownNameError("model_type", str(fields["model_type"]), known) from None
    if attention is not None:
        config._attn_implementation = attention
    head = _head(fields, config)
    if head == "AutoModelForSeq2SeqLM" and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    model, training = transformers_model(config, head), Training(precision="bf16-mixed", optimizer="adamw")
    if "Image" in head:
        own_size = getattr(config, "image_size", 224)
        return Workload(model, image_batch(image_size or int(own_size if isinstance(own_size, int) else own_size[0])), own_loss, training=training)
    length = seq_len or min(2048, getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 512)
    labels = "class" if "SequenceClassification" in head else "tokens"
    batch = token_batch(length, labels, padded=head in ("AutoModelForMaskedLM", "AutoModelForSequenceClassification"))
    return Workload(model, batch, own_loss, training=training, tokens_per_sample=length)


def _head(fields: dict[str, Any], config: Any) -> str:
    """The auto class for the architecture that the configuration names, else for what its fields suggest."""
    architecture = (fields.get("architectures") or [""])[0]
    head = next((auto for suffix, auto in _HEADS.items() if architecture.endswith(suffix)), None)
    return head or ("AutoModelForImageClassification" if hasattr(config, "image_size") else "AutoModelForCausalLM")
