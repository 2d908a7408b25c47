# SPDX-License-Identifier: Apache-2.0
"""The models that have a name here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bsmodel.errors import InvalidInputError, TooLongError
from bsmodel.training import Training
from bsmodel.workloads import catalogue
from bsmodel.workloads.batches import denoising_loss, image_batch, own_loss, token_batch, unet_batch
from bsmodel.workloads.catalogue import ModelRow
from bsmodel.workloads.libraries import diffusers_model, transformers_model_type
from bsmodel.workloads.workload import Workload

# What BERT-large (Devlin 2018, arXiv 1810.04805) and ViT-L (Dosovitskiy 2020, arXiv 2010.11929) have in common.
LARGE_ENCODER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_MIXED = Training(precision="bf16-mixed", optimizer="adamw")


def _causal_lm(model_type: str, seq_len: int, attention: str | None, positions: int, **fields: Any) -> Workload:
    if positions < seq_len:
        raise TooLongError(seq_len, positions)
    model = transformers_model_type(model_type, "AutoModelForCausalLM", attention, **fields)
    return Workload(model, token_batch(seq_len), own_loss, training=_MIXED, tokens_per_sample=seq_len)


def _gpt2(seq_len: int = 1024, attention: str | None = None) -> Workload:
    return _causal_lm("gpt2", seq_len, attention, positions=1024)


def _llama(seq_len: int, attention: str | None, positions: int, **fields: Any) -> Workload:
    shared = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": positions}
    return replace(_causal_lm("llama", seq_len, attention, positions, **shared, **fields), weights="bfloat16")


def _llama_1b(seq_len: int = 2048, attention: str | None = None) -> Workload:
    return _llama(seq_len, attention, 131072, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, tie_word_embeddings=True)


def _llama_8b(seq_len: int = 2048, attention: str | None = None) -> Workload:
    return _llama(seq_len, attention, 8192, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)


def _bert(seq_len: int = 128, attention: str | None = None) -> Workload:
    if seq_len > 512:
        raise TooLongError(seq_len, 512)
    model = transformers_model_type("bert", "AutoModelForSequenceClassification", attention, num_labels=2)
    return Workload(model, token_batch(seq_len, labels="class", padded=True), own_loss, training=_MIXED, tokens_per_sample=seq_len)


def vision(model_type: str, pixels: int, training: Training, attention: str | None = None, **fields: Any) -> Workload:
    """An image classifier of transformers with a thousand classes."""
    model = transformers_model_type(model_type, "AutoModelForImageClassification", attention, num_labels=1000, **fields)
    return Workload(model, image_batch(pixels), own_loss, training=training)


def _resnet50(image_size: int = 224) -> Workload:
    return vision("resnet", image_size, Training(precision="fp16-mixed", optimizer="sgd-momentum"))


def _vit_b(image_size: int = 224, attention: str | None = None) -> Workload:
    return vision("vit", image_size, _MIXED, attention, image_size=image_size)


def _vit_l(image_size: int = 224, attention: str | None = None) -> Workload:
    return vision("vit", image_size, _MIXED, attention, image_size=image_size, **LARGE_ENCODER)


def _sd15_unet(image_size: int = 512) -> Workload:
    if image_size % 64:
        raise InvalidInputError(f"image-size {image_size} does not divide by 64, as the UNet needs; nearest: {max(64, round(image_size / 64) * 64)}")
    model = diffusers_model("UNet2DConditionModel", sample_size=image_size // 8, cross_attention_dim=768)
    return Workload(model, unet_batch(image_size // 8, 4, (77, 768)), denoising_loss, training=Training(precision="fp16-mixed", optimizer="adamw"))


# A learning rate and effective batch known to train each named model, with where they are published.
KNOWN_RATES: dict[str, tuple[float, int, str]] = {
    "resnet50": (0.1, 256, "Goyal 2017, arXiv 1706.02677"),
    "vit-b-16": (3e-3, 4096, "Dosovitskiy 2020, arXiv 2010.11929, table 3"),
    "vit-l-16": (3e-3, 4096, "Dosovitskiy 2020, arXiv 2010.11929, table 3"),
    "gpt2": (6e-4, 512, "Brown 2020, arXiv 2005.14165, table 2.1: 0.5 M tokens"),
    "bert-base": (2e-5, 32, "Devlin 2018, arXiv 1810.04805, appendix A.3, fine-tuning"),
    "llama-3.2-1b": (3e-4, 2048, "Touvron 2023, arXiv 2302.13971, table 2: 4 M tokens, taken for its size"),
    "llama-3-8b": (3e-4, 2048, "Touvron 2023, arXiv 2302.13971, table 2: 4 M tokens, taken for its size"),
    "sd15-unet": (1e-5, 4, "diffusers examples/text_to_image, README"),
}

PUBLISHED: tuple[ModelRow, ...] = (
    ModelRow("resnet50", "25.6 M", "He 2015, arXiv 1512.03385, as torchvision has it", "float32"),
    ModelRow("vit-b-16", "86.6 M", "Dosovitskiy 2020, arXiv 2010.11929, with a head of 1000 classes", "float32"),
    ModelRow("vit-l-16", "304 M", "Dosovitskiy 2020, arXiv 2010.11929, with a head of 1000 classes", "float32"),
    ModelRow("gpt2", "124 M", "openai-community/gpt2 on Hugging Face", "float32"),
    ModelRow("bert-base", "109 M", "Devlin 2018, arXiv 1810.04805, with pooler and two classes", "float32"),
    ModelRow("llama-3.2-1b", "1.24 B", "meta-llama/Llama-3.2-1B on Hugging Face", "bfloat16"),
    ModelRow("llama-3-8b", "8.03 B", "meta-llama/Meta-Llama-3-8B on Hugging Face", "bfloat16"),
    ModelRow("sd15-unet", "860 M", "Rombach 2021, arXiv 2112.10752, as released", "float32", "diffusers"),
    *catalogue.rows(),
)
MADE_HERE: dict[str, Callable[..., Workload]] = {
    "resnet50": _resnet50,
    "vit-b-16": _vit_b,
    "vit-l-16": _vit_l,
    "gpt2": _gpt2,
    "bert-base": _bert,
    "llama-3.2-1b": _llama_1b,
    "llama-3-8b": _llama_8b,
    "sd15-unet": _sd15_unet,
}
NAMED: dict[str, Callable[..., Workload]] = {**MADE_HERE, **catalogue.builders()}
