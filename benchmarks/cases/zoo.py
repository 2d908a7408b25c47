# SPDX-License-Identifier: Apache-2.0
"""Models on which nothing was developed: other families, inputs and operators than those of the matrix's first part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bsmodel import Workload
from bsmodel.workloads import classification_loss, image_batch, own_loss, token_batch, transformers_config, transformers_model

_Batch = Callable[[int], dict[str, Any]]


def from_config(model_type: str, head: str, batch: _Batch, loss: Any = own_loss, attention: str | None = None, **fields: Any) -> Workload:
    """A transformers model by its configuration: `head` is one of its auto classes, or a class."""

    return Workload(transformers_model(transformers_config(model_type, attention, **fields), head), batch, loss)


def _zeros(labels: tuple[int, ...] | None = (), integers: tuple[str, ...] = (), **sizes: tuple[int, ...]) -> _Batch:
    """Batches of inputs with these sizes a sample, and of labels, one a sample or of these sizes."""

    def make(size: int) -> dict[str, Any]:
        import torch

        batch = {name: torch.zeros(size, *shape, dtype=torch.long if name in integers else torch.float32) for name, shape in sizes.items()}
        return batch if labels is None else {**batch, "labels": torch.zeros(size, *labels, dtype=torch.long)}

    return make


def _of_diffusers(name: str, batch: _Batch, **fields: Any) -> Workload:
    """A model of diffusers that learns to give zeros."""

    def build() -> Any:
        import diffusers

        return getattr(diffusers, name)(**fields)

    def loss(model: Any, inputs: Any) -> Any:
        outputs = model(**inputs, return_dict=False)[0]
        return outputs.float().pow(2).mean(), outputs

    return Workload(build, batch, loss)


def _images(model_type: str, side: int = 224, head: str = "AutoModelForImageClassification", **fields: Any) -> Callable[[], Workload]:
    return lambda: from_config(model_type, head, image_batch(side), num_labels=1000, **fields)


def _tokens(model_type: str, head: str, seq_len: int, **fields: Any) -> Callable[[], Workload]:
    return lambda: from_config(model_type, head, token_batch(seq_len, "class" if "Sequence" in head else "tokens"), **fields)


def _volumes() -> Workload:
    """A three-dimensional U-Net of two levels with instance norm, trained on voxels."""

    def build() -> Any:
        import torch
        from torch import nn

        def block(inp: int, out: int) -> Any:
            layers: list[Any] = []
            for channels in (inp, out):
                layers += [nn.Conv3d(channels, out, 3, padding=1), nn.InstanceNorm3d(out, affine=True), nn.LeakyReLU(inplace=True)]
            return nn.Sequential(*layers)

        class UNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second, self.bottom = block(1, 16), block(16, 32), block(32, 64)
                self.up, self.merge = nn.ConvTranspose3d(64, 32, 2, 2), block(64, 32)
                self.up_again, self.merge_again, self.head = nn.ConvTranspose3d(32, 16, 2, 2), block(32, 16), nn.Conv3d(16, 3, 1)

            def forward(self, x: Any) -> Any:
                first = self.first(x)
                second = self.second(nn.functional.max_pool3d(first, 2))
                x = self.bottom(nn.functional.max_pool3d(second, 2))
                x = self.merge(torch.cat([self.up(x), second], 1))
                return self.head(self.merge_again(torch.cat([self.up_again(x), first], 1)))

        return UNet()

    return Workload(build, _zeros((64, 64, 64), pixel_values=(1, 64, 64, 64)), classification_loss)


_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_CAUSAL, _MASKED, _SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"
_SPEECH = _zeros(input_values=(80_000,))
_WHISPER = {"d_model": 768, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 12, "decoder_attention_heads": 12}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
_EXPERTS = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
_SD3 = {"hidden_states": (16, 64, 64), "encoder_hidden_states": (154, 4096), "pooled_projections": (2048,), "timestep": ()}

MODELS: dict[str, Callable[[], Workload]] = {
    "whisper-small": lambda: from_config(
        "whisper", "WhisperForConditionalGeneration", _zeros((128,), input_features=(80, 3000)), encoder_ffn_dim=3072, decoder_ffn_dim=3072, **_WHISPER
    ),
    "wav2vec2-base": lambda: from_config("wav2vec2", "AutoModelForAudioClassification", _SPEECH, apply_spec_augment=False, layerdrop=0.0),
    "segformer-b0": lambda: from_config("segformer", "SegformerForSemanticSegmentation", _zeros((512, 512), pixel_values=(3, 512, 512)), num_labels=150),
    "videomae-base": lambda: from_config("videomae", "AutoModelForVideoClassification", _zeros(pixel_values=(16, 3, 224, 224)), num_labels=400),
    "vit-mae": lambda: from_config("vit_mae", "ViTMAEForPreTraining", _zeros(None, pixel_values=(3, 224, 224))),
    "dinov2-base": _images("dinov2"),
    "swinv2-tiny": _images("swinv2"),
    "pvt-v2-b0": _images("pvt_v2"),
    "mobilevit": _images("mobilevit", 256),
    "efficientnet-b7": _images("efficientnet"),
    "unet-3d": _volumes,
    "deberta-v3-base": _tokens("deberta-v2", _MASKED, 256, **_BASE, **_DISENTANGLED),
    "xlnet-base": _tokens("xlnet", "AutoModelForSequenceClassification", 256, d_model=768, n_layer=12, n_head=12, d_inner=3072),
    "modernbert-base": _tokens("modernbert", _MASKED, 512),
    "bart-base": _tokens("bart", _SEQ2SEQ, 256),
    "bloom-560m": _tokens("bloom", _CAUSAL, 512, hidden_size=1024, n_layer=24, n_head=16),
    "falcon-like": _tokens("falcon", _CAUSAL, 512, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, multi_query=True),
    "mixtral-like": _tokens("mixtral", _CAUSAL, 256, intermediate_size=1024, num_local_experts=4, **_EXPERTS),
    "mamba-like": _tokens("mamba", _CAUSAL, 64, hidden_size=512, num_hidden_layers=4, vocab_size=32_000),
    "sd3-like": lambda: _of_diffusers("SD3Transformer2DModel", _zeros(None, ("timestep",), **_SD3), num_layers=6),
    "ddpm-like": lambda: _of_diffusers(
        "UNet2DModel", _zeros(None, ("timestep",), sample=(3, 64, 64), timestep=()), sample_size=64, block_out_channels=(128, 256, 256, 512)
    ),
    "vae-like": lambda: _of_diffusers(
        "AutoencoderKL",
        _zeros(None, sample=(3, 256, 256)),
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ),
}
