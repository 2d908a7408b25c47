# SPDX-License-Identifier: Apache-2.0
"""The cases on which predictions are held against measured peaks: models, recipes, batches and GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bsmodel import Training, Workload
from cases.own import OWN


@dataclass(frozen=True)
class Case:
    """One run: what is trained, how, at which micro-batch, on which GPU."""

    model: str
    gpu: str
    batch: int
    training: Training
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """A name that no other case has."""
        recipe = {k: v for k, v in self.training.model_dump().items() if v != Training.model_fields[k].default or k in ("precision", "optimizer")}
        words = [f"{k}={v}" for k, v in [*recipe.items(), *self.options]]
        return f"{self.model} {self.gpu} b={self.batch} {' '.join(words)}"

    def workload(self) -> Workload:
        """The workload of this case."""
        options = dict(self.options)
        if self.model in OWN:
            return replace(OWN[self.model](**options), name=self.model)
        return Workload.named(self.model, **options)


def _recipe(precision: str = "bf16-mixed", optimizer: str = "adamw", **fields: Any) -> Training:
    return Training(precision=precision, optimizer=optimizer, **fields)


def _sgd(precision: str = "fp16-mixed", **fields: Any) -> Training:
    return Training(precision=precision, optimizer="sgd-momentum", **fields)


def cases() -> tuple[Case, ...]:
    """The whole matrix."""
    return (*_convolutional(), *_language(), *_diffusion(), *_recipes(), *_others())


def _convolutional() -> list[Case]:
    found = []
    for precision, channels_last in (("fp32", False), ("fp16-mixed", False), ("fp16-mixed", True), ("bf16-mixed", True)):
        recipe = _sgd(precision, channels_last=channels_last)
        found += [Case("resnet50", gpu, 64, recipe) for gpu in ("a100-40gb", "h100-80gb")]
        found += [Case(model, "a100-40gb", 32, recipe) for model in ("vgg16", "depthwise", "densenet121", "convnext-tiny")]
    found += [Case("resnet50", "rtx-3070-8gb", 48, _sgd()), Case("resnet50", "rtx-4090-24gb", 128, _sgd(channels_last=True))]
    found += [Case("resnet50", "t4-16gb", 64, _sgd()), Case("segmenter", "a100-40gb", 16, _recipe("fp16-mixed"))]
    found += [Case("segmenter", "rtx-3090-24gb", 8, _recipe("fp32")), Case("depthwise", "rtx-4090-24gb", 128, _sgd())]
    return found


def _language() -> list[Case]:
    found = []
    for gpu in ("a100-40gb", "h100-80gb", "rtx-4090-24gb", "t4-16gb"):
        precision = "fp16-mixed" if gpu == "t4-16gb" else "bf16-mixed"
        found += [Case("gpt2", gpu, 4, _recipe(precision)), Case("bert-base", gpu, 64, _recipe(precision)), Case("vit-b-16", gpu, 64, _recipe(precision))]
    found += [Case("gpt2", "a100-40gb", 4, _recipe("fp32")), Case("gpt2", "rtx-3090-24gb", 4, _recipe("fp32"), (("attention", "eager"),))]
    found += [Case("gpt2", "h100-80gb", 8, _recipe("bf16", "adamw-fused")), Case("gpt2", "rtx-3070-8gb", 2, _recipe("fp16-mixed", checkpointing=True))]
    found += [Case("bert-large", "a100-40gb", 4, _recipe("fp32", "adamw-forloop"), (("attention", "eager"),))]
    found += [Case("bert-large", "rtx-3090-24gb", 8, _recipe("fp16-mixed", checkpointing=True), (("padded", True),))]
    found += [Case("bert-large", "h100-80gb", 8, _recipe(), (("padded", True),)), Case("vit-l-16", "a100-40gb", 32, _recipe("fp16-mixed"))]
    found += [Case("vit-b-16", "rtx-3070-8gb", 32, _recipe("fp32")), Case("t5-base", "a100-40gb", 8, _recipe("bf16", "adafactor"))]
    found += [Case("t5-base", "h100-80gb", 8, _recipe()), Case("qwen2.5-0.5b", "a100-40gb", 2, _recipe(optimizer="adamw-fused"))]
    found += [
        Case("qwen2.5-0.5b", "h100-80gb", 4, _recipe("bf16")),
        Case("gemma-like", "a100-40gb", 2, _recipe()),
        Case("gemma-like", "rtx-4090-24gb", 2, _recipe("bf16")),
    ]
    found += [Case("opt-350m", "a100-40gb", 8, _recipe()), Case("pythia-410m", "rtx-3090-24gb", 2, _recipe("fp16-mixed"))]
    found += [Case("llama-3.2-1b", "h100-80gb", 2, _recipe()), Case("llama-3.2-1b", "a100-40gb", 2, _recipe("bf16", checkpointing=True))]
    found += [
        Case("llama-3-8b", "h100-80gb", 1, _recipe("bf16", checkpointing=True)),
        Case("llama-3-8b", "rtx-4090-24gb", 1, _recipe("bf16", lora_rank=16, checkpointing=True)),
    ]
    found += [
        Case("torch-encoder", "a100-40gb", 32, _recipe()),
        Case("torch-encoder", "t4-16gb", 16, _recipe("fp32")),
        Case("mlp", "a100-40gb", 512, _recipe("fp32")),
    ]
    return found


def _diffusion() -> list[Case]:
    found = [Case("sd15-unet", "a100-40gb", 4, _recipe("fp16-mixed")), Case("sd15-unet", "rtx-4090-24gb", 2, _recipe("bf16-mixed", checkpointing=True))]
    found += [Case("sd15-unet", "h100-80gb", 8, _recipe("bf16-mixed")), Case("sd15-unet", "a100-40gb", 2, _recipe("fp32"))]
    found += [Case("dit-xl2", "a100-40gb", 8, _recipe("bf16-mixed")), Case("dit-xl2", "h100-80gb", 8, _recipe("fp16-mixed", ema=True))]
    return found


def _recipes() -> list[Case]:
    names = ("sgd", "sgd-momentum", "adam", "adamw", "adamw-fused", "adamw-forloop", "rmsprop", "adagrad", "adafactor", "lion", "lamb")
    found = [Case("gpt2", "a100-40gb", 1, _recipe(optimizer=name), (("seq_len", 256),)) for name in names]
    found += [Case("gpt2", "a100-40gb", 4, _recipe(accumulation=4)), Case("gpt2", "a100-40gb", 4, _recipe(gradient_clipping=1.0))]
    found += [Case("gpt2", "a100-40gb", 4, _recipe(zero_grad="zeros")), Case("gpt2", "a100-40gb", 4, _recipe(keep_outputs=True))]
    found += [Case("gpt2", "a100-40gb", 4, _recipe("fp16-mixed", gradient_clipping=1.0, accumulation=2)), Case("gpt2", "a100-40gb", 4, _recipe(ema=True))]
    found += [
        Case("gpt2", "a100-40gb", 8, _recipe(checkpointing=True)),
        Case("gpt2", "a100-40gb", 4, _recipe(lora_rank=8)),
        Case("vit-b-16", "a100-40gb", 64, _recipe("bf16")),
    ]
    found += [
        Case("gpt2", "a100-40gb", 4, _recipe("fp16")),
        Case("vit-b-16", "a100-40gb", 64, _recipe("tf32")),
        Case("vit-b-16", "a100-40gb", 128, _recipe(checkpointing=True)),
    ]
    found += [
        Case("bert-base", "a100-40gb", 32, _recipe(frozen=("bert.embeddings", "bert.encoder.layer.0."))),
        Case("bert-base", "a100-40gb", 32, _recipe(), (("attention", "eager"),)),
    ]
    return found


def _others() -> list[Case]:
    """Models of the zoo, each with one recipe, spread over the GPUs."""
    half, mixed = _recipe("fp16-mixed"), _recipe()
    return [
        Case("whisper-small", "a100-40gb", 8, half),
        Case("whisper-small", "l4-24gb", 8, _recipe(checkpointing=True)),
        Case("wav2vec2-base", "rtx-3090-24gb", 8, half),
        *(Case("segformer-b0", "rtx-4090-24gb", batch, half) for batch in (4, 8, 16, 20)),
        Case("videomae-base", "h100-80gb", 4, mixed),
        Case("vit-mae", "a100-80gb", 64, mixed),
        Case("dinov2-base", "h100-80gb", 64, mixed),
        Case("swinv2-tiny", "h100-80gb", 32, mixed),
        Case("pvt-v2-b0", "rtx-3090-24gb", 32, half),
        Case("mobilevit", "rtx-3070-8gb", 16, _sgd(channels_last=True)),
        Case("efficientnet-b7", "a100-40gb", 32, _recipe(channels_last=True)),
        Case("efficientnet-b7", "t4-16gb", 8, _sgd()),
        Case("unet-3d", "a100-40gb", 32, half),
        Case("unet-3d", "t4-16gb", 8, _recipe("fp32")),
        Case("deberta-v3-base", "a100-40gb", 16, mixed),
        Case("xlnet-base", "a100-40gb", 16, mixed),
        Case("modernbert-base", "a100-40gb", 8, mixed),
        Case("bart-base", "rtx-3090-24gb", 8, mixed),
        Case("bloom-560m", "a100-80gb", 8, mixed),
        Case("falcon-like", "l4-24gb", 8, _recipe("bf16")),
        Case("mixtral-like", "a100-40gb", 4, _recipe("bf16")),
        Case("mamba-like", "a100-40gb", 4, mixed),
        Case("sd3-like", "h100-80gb", 8, _recipe("bf16")),
        Case("ddpm-like", "rtx-3090-24gb", 32, _recipe("fp16-mixed", ema=True)),
        Case("vae-like", "a100-80gb", 4, mixed),
    ]


def largest_cases() -> tuple[Case, ...]:
    """The cases whose largest batch is held against real out-of-memory errors, at the card's own capacity."""
    small, mixed = "rtx-3070-8gb", _recipe()
    found = [Case("gpt2", gpu, 0, mixed) for gpu in (small, "rtx-4090-24gb", "a100-40gb", "h100-80gb")]
    found += [Case("vit-b-16", gpu, 0, mixed) for gpu in (small, "rtx-4090-24gb", "a100-40gb")]
    found += [Case("bert-base", gpu, 0, mixed) for gpu in (small, "rtx-4090-24gb")]
    found += [Case("resnet50", gpu, 0, _sgd()) for gpu in (small, "rtx-4090-24gb", "a100-40gb")]
    found += [Case("resnet50", gpu, 0, _sgd(channels_last=True)) for gpu in (small, "rtx-4090-24gb")]
    found += [Case("resnet50", small, 0, _sgd("fp32")), Case("gpt2", small, 0, _recipe(checkpointing=True)), Case("gpt2", small, 0, _recipe("fp16-mixed"))]
    found += [Case("sd15-unet", "rtx-4090-24gb", 0, _recipe("fp16-mixed")), Case("llama-3.2-1b", "h100-80gb", 0, _recipe(checkpointing=True))]
    found += [
        Case("t5-base", "rtx-4090-24gb", 0, mixed),
        Case("gpt2", "t4-16gb", 0, _recipe("fp16-mixed")),
        Case("convnext-tiny", small, 0, _sgd("bf16-mixed")),
    ]
    found += [Case("gpt2", small, 0, _recipe(accumulation=2)), Case("qwen2.5-0.5b", "a100-40gb", 0, _recipe(optimizer="adamw-fused"))]
    found += [
        Case("densenet121", "rtx-3090-24gb", 0, _sgd("fp16-mixed")),
        Case("vgg16", "t4-16gb", 0, _sgd("fp16-mixed")),
        Case("depthwise", "rtx-4090-24gb", 0, _sgd("bf16-mixed", channels_last=True)),
        Case("convnext-tiny", "h100-80gb", 0, _sgd("fp16-mixed")),
        Case("segmenter", "a100-40gb", 0, _recipe("fp16-mixed")),
        Case("sd15-unet", "h100-80gb", 0, _recipe("fp16-mixed")),
        Case("dit-xl2", "a100-40gb", 0, mixed),
        Case("bert-large", "rtx-3090-24gb", 0, _recipe("fp32")),
        Case("opt-350m", small, 0, _recipe("bf16")),
    ]
    return tuple(found)
