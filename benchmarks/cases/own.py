# SPDX-License-Identifier: Apache-2.0
"""Models of the cases that the library has no name for: written out in plain torch, or by their configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bsmodel import Workload
from bsmodel.workloads import LARGE_ENCODER, classification_loss, dit_loss, image_batch, token_batch
from cases.zoo import MODELS, from_config

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
