# SPDX-License-Identifier: Apache-2.0
"""The cases on which predictions are held against measured peaks: models, recipes, batches and GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from zoo import MODELS, from_config

from bsmodel import Training, Workload
from bsmodel.workloads import LARGE_ENCODER, classification_loss, dit_loss, image_batch, token_batch


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


# -- convolutional networks in plain torch -------------------------------------------------------------------------------------------


def _images(build: Callable[[], Any], image_size: int = 224) -> Workload:
    return Workload(build, image_batch(image_size), classification_loss)


def _vgg(image_size: int = 224) -> Workload:
    def build() -> Any:
        from torch import nn

        layers: list[Any] = []
        channels = 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
            if width == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True)]
        return nn.Sequential(*layers, *head, nn.Dropout(), nn.Linear(4096, 1000))

    return _images(build, image_size)


def _depthwise(image_size: int = 224) -> Workload:
    """A MobileNet-like stack: pointwise, depthwise, pointwise, with batch norm and hard swish."""

    def build() -> Any:
        from torch import nn

        class Inverted(nn.Module):
            def __init__(self, inp: int, out: int, stride: int) -> None:
                super().__init__()
                mid = inp * 4
                self.body = nn.Sequential(
                    nn.Conv2d(inp, mid, 1, bias=False),
                    nn.BatchNorm2d(mid),
                    nn.Hardswish(inplace=True),
                    nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
                    nn.BatchNorm2d(mid),
                    nn.Hardswish(inplace=True),
                    nn.Conv2d(mid, out, 1, bias=False),
                    nn.BatchNorm2d(out),
                )
                self.same = stride == 1 and inp == out

            def forward(self, x: Any) -> Any:
                return x + self.body(x) if self.same else self.body(x)

        widths = ((32, 1), (48, 2), (48, 1), (96, 2), (96, 1), (96, 1), (160, 2), (160, 1), (320, 1))
        layers: list[Any] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish(inplace=True)]
        channels = 32
        for width, stride in widths:
            layers.append(Inverted(channels, width, stride))
            channels = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 1000))

    return _images(build, image_size)


def _dense(image_size: int = 224) -> Workload:
    """DenseNet-121's connectivity: every layer reads the concatenation of all before it."""

    def build() -> Any:
        import torch
        from torch import nn

        class Layer(nn.Module):
            def __init__(self, channels: int) -> None:
                super().__init__()
                self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 128, 1, bias=False)
                self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

            def forward(self, features: list[Any]) -> Any:
                x = self.conv1(nn.functional.relu(self.norm1(torch.cat(features, 1)), inplace=True))
                return self.conv2(nn.functional.relu(self.norm2(x), inplace=True))

        class Stage(nn.Module):
            def __init__(self, depth: int, channels: int) -> None:
                super().__init__()
                self.layers = nn.ModuleList(Layer(channels + 32 * i) for i in range(depth))

            def forward(self, x: Any) -> Any:
                features = [x]
                for layer in self.layers:
                    features.append(layer(features))
                return torch.cat(features, 1)

        layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for position, depth in enumerate((6, 12, 24, 16)):
            layers.append(Stage(depth, channels))
            channels += 32 * depth
            if position < 3:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))

    return _images(build, image_size)


def _convnext(image_size: int = 224) -> Workload:
    return from_config("convnext", "AutoModelForImageClassification", image_batch(image_size), num_labels=1000, image_size=image_size)


def _segmenter(image_size: int = 256) -> Workload:
    """A small U-Net with transposed convolutions and group norm, trained on pixels."""

    def build() -> Any:
        import torch
        from torch import nn

        def block(inp: int, out: int) -> Any:
            norm = [nn.Conv2d(inp, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            return nn.Sequential(*norm, nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU())

        class UNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.down = nn.ModuleList([block(3, 32), block(32, 64), block(64, 128)])
                self.bottom = block(128, 256)
                self.up = nn.ModuleList([nn.ConvTranspose2d(2 * w, w, 2, 2) for w in (128, 64, 32)])
                self.merge = nn.ModuleList([block(2 * w, w) for w in (128, 64, 32)])
                self.head = nn.Conv2d(32, 2, 1)

            def forward(self, x: Any) -> Any:
                kept = []
                for stage in self.down:
                    x = stage(x)
                    kept.append(x)
                    x = nn.functional.max_pool2d(x, 2)
                x = self.bottom(x)
                for up, merge in zip(self.up, self.merge):
                    x = merge(torch.cat([up(x), kept.pop()], 1))
                return self.head(x)

        return UNet()

    def batch(size: int) -> Any:
        import torch

        return {"pixel_values": torch.zeros(size, 3, image_size, image_size), "labels": torch.zeros(size, image_size, image_size, dtype=torch.long)}

    return Workload(build, batch, classification_loss)


def _mlp(width: int = 4096) -> Workload:
    def build() -> Any:
        from torch import nn

        return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(width, width), nn.GELU())), nn.Linear(width, 1000))

    def batch(size: int) -> Any:
        import torch

        return {"pixel_values": torch.zeros(size, width), "labels": torch.zeros(size, dtype=torch.long)}

    return Workload(build, batch, classification_loss)


def _encoder(seq_len: int = 256) -> Workload:
    """torch's own transformer encoder, causal, over embedded tokens."""

    def build() -> Any:
        import torch
        from torch import nn

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(32000, 512)
                layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, norm_first=True)
                self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
                self.head = nn.Linear(512, 32000)

            def forward(self, ids: Any) -> Any:
                mask = nn.Transformer.generate_square_subsequent_mask(ids.size(1), device=ids.device)
                return self.head(self.encoder(self.embed(ids), mask=mask, is_causal=True))

        return torch.nn.Sequential(Model())

    def loss(model: Any, batch: Any) -> Any:
        import torch

        logits = model(batch["input_ids"])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()), logits

    return Workload(build, token_batch(seq_len), loss)


# -- transformers and diffusers by configuration ---------------------------------------------------------------------------------------


def hf(model_type: str, head: str, seq_len: int, attention: str | None = None, padded: bool = False, **fields: Any) -> Workload:
    batch = token_batch(seq_len, "class" if "Sequence" in head else "tokens", padded)
    return replace(from_config(model_type, head, batch, attention=attention, **fields), tokens_per_sample=seq_len)


_CAUSAL, _MASKED, _SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"


def _bert_large(seq_len: int = 512, attention: str | None = None, padded: bool = False) -> Workload:
    return hf("bert", _MASKED, seq_len, attention, padded, **LARGE_ENCODER)


def _t5(seq_len: int = 256) -> Workload:
    base = {"decoder_start_token_id": 0, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12}
    return hf("t5", _SEQ2SEQ, seq_len, **base)


def _qwen(seq_len: int = 1024) -> Workload:
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    return hf("qwen2", _CAUSAL, seq_len, **sizes, vocab_size=151936, max_position_embeddings=32768, tie_word_embeddings=True)


def _gemma(seq_len: int = 512) -> Workload:
    sizes = {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 1}
    return hf("gemma3_text", _CAUSAL, seq_len, **sizes, head_dim=256, vocab_size=262144)


def _opt(seq_len: int = 512, attention: str | None = None) -> Workload:
    return hf("opt", _CAUSAL, seq_len, attention, hidden_size=1024, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16, word_embed_proj_dim=1024)


def _pythia(seq_len: int = 1024) -> Workload:
    sizes = {**LARGE_ENCODER, "vocab_size": 50304}
    return hf("gpt_neox", _CAUSAL, seq_len, **sizes)


def _dit(image_size: int = 256) -> Workload:
    def build() -> Any:
        import diffusers

        return diffusers.DiTTransformer2DModel(sample_size=image_size // 8, num_layers=28, norm_type="ada_norm_zero")

    def batch(size: int) -> Any:
        import torch

        side = image_size // 8
        labels = torch.zeros(size, dtype=torch.long)
        return {"hidden_states": torch.zeros(size, 4, side, side), "timestep": labels.clone(), "class_labels": labels}

    return Workload(build, batch, dit_loss)


OWN: dict[str, Callable[..., Workload]] = {
    "vgg16": _vgg,
    "depthwise": _depthwise,
    "densenet121": _dense,
    "convnext-tiny": _convnext,
    "segmenter": _segmenter,
    "mlp": _mlp,
    "torch-encoder": _encoder,
    "bert-large": _bert_large,
    "t5-base": _t5,
    "qwen2.5-0.5b": _qwen,
    "gemma-like": _gemma,
    "opt-350m": _opt,
    "pythia-410m": _pythia,
    "dit-xl2": _dit,
    **MODELS,
}


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
