# SPDX-License-Identifier: Apache-2.0
"""What is trained: your factories, or a name, or a config of transformers, diffusers, timm or torchvision."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.training import Training


@dataclass(frozen=True)
class Workload:
    """A model, its batches and its loss, as three functions.

    model() -> torch.nn.Module
    batch(size) -> any nesting of host tensors, `size` samples in it
    loss(model, batch) -> scalar tensor, or (scalar tensor, outputs); outputs live on where `Training.keep_outputs` says so
    step(model, optimizer, batch) -> anything, instead of `loss`: a whole training step of your own; what it returns lives until the
        next one returns. It moves the host batch to `"cuda"` itself and calls the optimizer.
    training: the recipe where none is given. base_lr at base_batch: a learning rate known to train it.
    """

    model: Callable[[], Any]
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], Any] | None = None
    step: Callable[[Any, Any, Any], Any] | None = None
    name: str = "model"
    training: Training = field(default_factory=Training)
    tokens_per_sample: int = 1
    base_lr: float | None = None
    base_batch: int | None = None

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.step is None):
            raise InvalidInputError(f"workload {self.name!r} needs exactly one of loss=(model, batch) -> scalar and step=(model, optimizer, batch)")

    @staticmethod
    def named(name: str, **options: Any) -> Workload:
        """The workload called `name`.

        `name` is one of `bsmodel.workloads.NAMED`, `timm:NAME`, `torchvision:NAME`, a transformers or diffusers `config.json`,
        `module:attribute` or `path.py:attribute` (a `Workload`, or a function that returns one). Options: `seq_len`, `image_size`,
        `attention` ("sdpa" or "eager"); one that the workload does not know is refused.
        Raises `UnknownNameError` with the nearest names, `InvalidInputError` for a file or option that cannot be used.
        """
        given = {option: value for option, value in options.items() if value is not None}
        if name in NAMED:
            return _built(NAMED[name], name, given)
        family, _, rest = name.partition(":")
        if family in ("timm", "torchvision") and rest:
            return _built(_from_timm if family == "timm" else _from_torchvision, name, {"architecture": rest, **given})
        if name.endswith(".json"):
            return _from_config_file(Path(name), given)
        if ":" in name:
            return _from_attribute(name, given)
        raise UnknownNameError("model", name, NAMED)


def _built(builder: Callable[..., Workload], name: str, options: dict[str, Any]) -> Workload:
    accepted = builder.__code__.co_varnames[: builder.__code__.co_argcount + builder.__code__.co_kwonlyargcount]
    for option in options:
        if option not in accepted:
            raise InvalidInputError(f"{name} has no option {option.replace('_', '-')!r}; it takes: {', '.join(accepted) or 'none'}")
    rate, batch, _ = KNOWN_RATES.get(name, (None, None, ""))
    return replace(builder(**options), name=name, base_lr=rate, base_batch=batch)


def _library(name: str, extra: str | None = "models") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = f'pip install "bsmodel[{extra}]"' if extra else f"pip install {name}"
        raise InvalidInputError(f"this model needs {name}, which cannot be imported ({error}); {remedy}") from None
    except RuntimeError as error:
        raise InvalidInputError(f"this model needs {name}, which fails to import here: {str(error).splitlines()[0]}") from None


# -- batches -----------------------------------------------------------------------------------------------------------------------


def image_batch(image_size: int, channels: int = 3) -> Callable[[int], dict[str, Any]]:
    """Batches of images and class labels, as `pixel_values` and `labels`."""

    def make(size: int) -> dict[str, Any]:
        import torch

        return {"pixel_values": torch.zeros(size, channels, image_size, image_size), "labels": torch.zeros(size, dtype=torch.long)}

    return make


def token_batch(seq_len: int, labels: str = "tokens", padded: bool = False) -> Callable[[int], dict[str, Any]]:
    """Batches of token ids; `labels` is "tokens" (one label each) or "class" (one a sample); `padded` adds an attention mask with padding."""

    def make(size: int) -> dict[str, Any]:
        import torch

        batch = {"input_ids": torch.zeros(size, seq_len, dtype=torch.long)}
        if padded:
            batch["attention_mask"] = torch.ones(size, seq_len, dtype=torch.long)
            batch["attention_mask"][:, -1] = 0
        batch["labels"] = torch.zeros((size, seq_len) if labels == "tokens" else (size,), dtype=torch.long)
        return batch

    return make


def own_loss(model: Any, batch: Any) -> Any:
    """The loss a transformers model computes when it is given labels."""
    outputs = model(**batch)
    return outputs.loss, outputs


def classification_loss(model: Any, batch: Any) -> Any:
    """Cross entropy of a plain image classifier."""
    import torch

    outputs = model(batch["pixel_values"])
    return torch.nn.functional.cross_entropy(outputs, batch["labels"]), outputs


def denoising_loss(model: Any, batch: Any) -> Any:
    """Mean squared error between predicted and true noise, of a diffusers UNet or DiT."""
    import torch

    noise = torch.randn_like(batch["sample"])
    outputs = model(**{**batch, "sample": noise}).sample
    return torch.nn.functional.mse_loss(outputs.float(), noise.float()), outputs


# -- transformers ------------------------------------------------------------------------------------------------------------------


def transformers_model(config: Any, auto_class: str) -> Callable[[], Any]:
    """Builds the model of a configuration, its weights not initialized; `auto_class` names one of transformers' auto classes, or a class."""
    cls = getattr(_library("transformers"), auto_class)
    initialization = importlib.import_module("transformers.initialization")

    def build() -> Any:
        with initialization.no_init_weights():
            model = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
        model.tie_weights()
        return model

    return build


def transformers_config(model_type: str, attention: str | None, **fields: Any) -> Any:
    """The configuration of a model type, with the attention asked for ("sdpa" or "eager"), or transformers' own choice."""
    config = _library("transformers").AutoConfig.for_model(model_type, **fields)
    if attention is not None:
        config._attn_implementation = attention
    return config


def _causal_lm(model_type: str, seq_len: int, attention: str | None, **fields: Any) -> Workload:
    config: Any = transformers_config(model_type, attention, **fields)
    if getattr(config, "max_position_embeddings", seq_len) < seq_len:
        raise InvalidInputError(f"seq-len {seq_len} is beyond the model's {config.max_position_embeddings} positions; give at most that")
    return Workload(
        transformers_model(config, "AutoModelForCausalLM"),
        token_batch(seq_len),
        own_loss,
        training=Training(precision="bf16-mixed", optimizer="adamw"),
        tokens_per_sample=seq_len,
    )


def _gpt2(seq_len: int = 1024, attention: str | None = None) -> Workload:
    return _causal_lm("gpt2", seq_len, attention)


_LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}


def _llama_1b(seq_len: int = 2048, attention: str | None = None) -> Workload:
    fields: dict[str, Any] = {**_LLAMA, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True}
    return _causal_lm(seq_len=seq_len, attention=attention, **fields)


def _llama_8b(seq_len: int = 2048, attention: str | None = None) -> Workload:
    fields: dict[str, Any] = {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    return _causal_lm(seq_len=seq_len, attention=attention, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192, **fields)


def _bert(seq_len: int = 128, attention: str | None = None) -> Workload:
    return Workload(
        transformers_model(transformers_config("bert", attention, num_labels=2), "AutoModelForSequenceClassification"),
        token_batch(seq_len, labels="class", padded=True),
        own_loss,
        training=Training(precision="bf16-mixed", optimizer="adamw"),
        tokens_per_sample=seq_len,
    )


def vision(model_type: str, pixels: int, training: Training, attention: str | None = None, **fields: Any) -> Workload:
    config: Any = transformers_config(model_type, attention, num_labels=1000, **fields)
    return Workload(transformers_model(config, "AutoModelForImageClassification"), image_batch(pixels), own_loss, training=training)


def _resnet50(image_size: int = 224) -> Workload:
    return vision("resnet", image_size, Training(precision="fp16-mixed", optimizer="sgd-momentum"))


def _vit_b(image_size: int = 224, attention: str | None = None) -> Workload:
    return vision("vit", image_size, Training(precision="bf16-mixed", optimizer="adamw"), attention, image_size=image_size)


def _vit_l(image_size: int = 224, attention: str | None = None) -> Workload:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return vision("vit", image_size, Training(precision="bf16-mixed", optimizer="adamw"), attention, image_size=image_size, **large)


# -- diffusers ---------------------------------------------------------------------------------------------------------------------


def _unet_batch(latent_size: int, channels: int, context: tuple[int, int]) -> Callable[[int], dict[str, Any]]:
    def make(size: int) -> dict[str, Any]:
        import torch

        return {
            "sample": torch.zeros(size, channels, latent_size, latent_size),
            "timestep": torch.zeros(size, dtype=torch.long),
            "encoder_hidden_states": torch.zeros(size, *context),
        }

    return make


def _dit_batch(latent_size: int, channels: int) -> Callable[[int], dict[str, Any]]:
    def make(size: int) -> dict[str, Any]:
        import torch

        return {
            "hidden_states": torch.zeros(size, channels, latent_size, latent_size),
            "timestep": torch.zeros(size, dtype=torch.long),
            "class_labels": torch.zeros(size, dtype=torch.long),
        }

    return make


def dit_loss(model: Any, batch: Any) -> Any:
    """Mean squared error of a diffusers DiT; the channels of a learned variance are left out."""
    import torch

    noise = torch.randn_like(batch["hidden_states"])
    outputs = model(**{**batch, "hidden_states": noise}).sample
    return torch.nn.functional.mse_loss(outputs[:, : noise.size(1)].float(), noise.float()), outputs


def _sd15_unet(image_size: int = 512) -> Workload:
    if image_size % 64:
        raise InvalidInputError(f"image-size {image_size} does not divide by 64, as the UNet needs; nearest: {max(64, round(image_size / 64) * 64)}")

    unet: Any = _library("diffusers").UNet2DConditionModel
    build = functools.partial(unet, sample_size=image_size // 8, cross_attention_dim=768)
    return Workload(build, _unet_batch(image_size // 8, 4, (77, 768)), denoising_loss, training=Training(precision="fp16-mixed", optimizer="adamw"))


# -- timm and torchvision ------------------------------------------------------------------------------------------------------------


def _from_timm(architecture: str, image_size: int = 224) -> Workload:
    timm = _library("timm", None)
    if architecture not in timm.list_models():
        raise UnknownNameError("timm model", architecture, timm.list_models())
    training = Training(precision="bf16-mixed", optimizer="adamw")
    return Workload(lambda: timm.create_model(architecture, pretrained=False), image_batch(image_size), classification_loss, training=training)


def _from_torchvision(architecture: str, image_size: int = 224) -> Workload:
    models = _library("torchvision", None).models
    if architecture not in models.list_models():
        raise UnknownNameError("torchvision model", architecture, models.list_models())
    training = Training(precision="fp16-mixed", optimizer="sgd-momentum")
    return Workload(lambda: models.get_model(architecture, weights=None), image_batch(image_size), classification_loss, training=training)


# -- configs and the user's own code -------------------------------------------------------------------------------------------------

_HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def _from_config_file(path: Path, options: dict[str, Any]) -> Workload:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInputError(f"{str(path)!r} is not JSON: {error}") from None
    name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
    if "_class_name" in fields:
        return replace(_from_diffusers_config(fields, path, **options), name=name)
    if "model_type" in fields:
        return replace(_from_transformers_config(fields, path, **options), name=name)
    raise InvalidInputError(f"{str(path)!r} is no transformers config (no model_type) and no diffusers config (no _class_name)")


def _from_diffusers_config(fields: dict[str, Any], path: Path, image_size: int | None = None) -> Workload:
    cls = getattr(_library("diffusers"), fields["_class_name"], None)
    if cls is None:
        raise InvalidInputError(f"{str(path)!r} names {fields['_class_name']!r}, which this diffusers does not have")
    latent = image_size // 8 if image_size else int(fields.get("sample_size", 64))
    channels, context = int(fields.get("in_channels", 4)), fields.get("cross_attention_dim")
    training = Training(precision="fp16-mixed", optimizer="adamw")
    if isinstance(context, int):
        return Workload(lambda: cls.from_config(fields), _unet_batch(latent, channels, (77, context)), denoising_loss, training=training)
    if "DiT" in fields["_class_name"]:
        return Workload(lambda: cls.from_config(fields), _dit_batch(latent, channels), dit_loss, training=training)
    raise InvalidInputError(f"{str(path)!r}: no batch is known for {fields['_class_name']}; write a Workload in a Python file and give FILE.py:NAME")


def _from_transformers_config(
    fields: dict[str, Any], path: Path, seq_len: int | None = None, image_size: int | None = None, attention: str | None = None
) -> Workload:
    transformers = _library("transformers")
    try:
        config: Any = transformers.AutoConfig.for_model(**{"model_type": fields["model_type"], **fields})
    except ValueError:
        known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
        raise UnknownNameError("model_type", str(fields["model_type"]), known) from None
    if attention is not None:
        config._attn_implementation = attention
    architecture = (fields.get("architectures") or [""])[0]
    head = next((auto for suffix, auto in _HEADS.items() if architecture.endswith(suffix)), None)
    if head is None:
        head = "AutoModelForImageClassification" if hasattr(config, "image_size") else "AutoModelForCausalLM"
    if head == "AutoModelForSeq2SeqLM" and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    model = transformers_model(config, head)
    training = Training(precision="bf16-mixed", optimizer="adamw")
    if "Image" in head:
        own_size = getattr(config, "image_size", 224)
        return Workload(model, image_batch(image_size or int(own_size if isinstance(own_size, int) else own_size[0])), own_loss, training=training)
    length = seq_len or min(2048, getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 512)
    labels = "class" if "SequenceClassification" in head else "tokens"
    batch = token_batch(length, labels, padded=head in ("AutoModelForMaskedLM", "AutoModelForSequenceClassification"))
    return Workload(model, batch, own_loss, training=training, tokens_per_sample=length)


def bare_module(name: str, shape: str) -> Workload:
    """A workload around the `nn.Module` (class, factory or instance) at `module:attribute` or `path.py:attribute`.

    `shape` is one sample's, e.g. `3x224x224` (float32) or `128:long` (token ids below 2). The loss is the mean of the first output.
    Raises `InvalidInputError` for a shape that cannot be read or an attribute that gives no module.
    """
    import torch

    sizes, _, kind = shape.partition(":")
    if not all(size.isdigit() and int(size) > 0 for size in sizes.split("x")) or kind not in ("", "float", "long"):
        raise InvalidInputError(f"--input {shape!r} cannot be read; expected sizes of one sample such as 3x224x224, or 128:long for token ids")
    sample = tuple(int(size) for size in sizes.split("x"))
    if ":" not in name:
        raise InvalidInputError(f"--input is for a module of your own, given as path.py:attribute; {name!r} is not")
    found = _attribute(name)

    def build() -> Any:
        module = found if isinstance(found, torch.nn.Module) else found()
        if not isinstance(module, torch.nn.Module):
            raise InvalidInputError(f"{name} gives {type(module).__name__}; expected a torch.nn.Module")
        return module

    def loss(model: Any, batch: Any) -> Any:
        outputs = model(batch)
        first = next(leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
        return first.float().mean(), outputs

    def make(size: int) -> Any:
        return torch.zeros(size, *sample, dtype=torch.long if kind == "long" else torch.float32)

    return Workload(build, make, loss, name=name.rpartition(":")[2])


def _attribute(name: str) -> Any:
    place, _, attribute = name.rpartition(":")
    found: Any = _imported(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"attribute of {place}", part, [n for n in vars(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found


def _from_attribute(name: str, options: dict[str, Any]) -> Workload:
    found = _attribute(name)
    if callable(found) and not isinstance(found, Workload) and not hasattr(found, "named_parameters"):
        try:
            found = found(**options)
        except TypeError as error:
            raise InvalidInputError(f"{name} cannot be called with {options or 'no arguments'}: {error}") from None
    if not isinstance(found, Workload):
        raise InvalidInputError(f"{name} gives {type(found).__name__}; expected a bsmodel.Workload (or give --input SHAPE for a bare module)")
    return found


def _imported(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise InvalidInputError(f"cannot import {place!r}: {error}") from None
        finally:
            sys.path.remove("")
    path = Path(place)
    if not path.is_file():
        raise InvalidInputError(f"no such file: {place!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BsmodelError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{place} fails to run: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(path.parent))
    return module


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

NAMED: dict[str, Callable[..., Workload]] = {
    "resnet50": _resnet50,
    "vit-b-16": _vit_b,
    "vit-l-16": _vit_l,
    "gpt2": _gpt2,
    "bert-base": _bert,
    "llama-3.2-1b": _llama_1b,
    "llama-3-8b": _llama_8b,
    "sd15-unet": _sd15_unet,
}
