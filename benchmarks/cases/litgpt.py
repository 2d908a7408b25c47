# SPDX-License-Identifier: Apache-2.0
"""LitGPT's own models, with its adapters and in four bits as Lightning's Fabric and bitsandbytes of their time had them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from bsmodel import Workload


def workload(
    name: str,
    seq_len: int,
    rank: int | None = None,
    adapted: Sequence[str] = ("query", "value"),
    dropout: float = 0.05,
    quantize: str | None = None,
    longest_first: bool = False,
    prompts: str | None = None,
) -> Workload:
    """LitGPT's own GPT, in full or with its adapters; logits and loss in the chunks of its scripts, and in float32, as Lightning's Fabric returns them.

    `quantize`: "bnb.nf4" or "bnb.nf4-dq". `longest_first`: no other batch is as long as the first, so that nothing of the step before is beside it.
    `prompts`: "adapter" or "adapter_v2", in the place of LoRA.
    """
    held: list[Any] = []

    def build() -> Any:
        model = _gpt(name, rank, adapted, dropout) if prompts is None else _prompted(name, prompts)
        model.max_seq_length = seq_len
        return model if quantize is None else _quantized(model, quantize == "bnb.nf4-dq", held)

    def loss(model: Any, batch: Any) -> Any:
        chunked_cross_entropy = importlib.import_module("litgpt.utils").chunked_cross_entropy
        if longest_first:
            for context in held:
                context.rows = None
        held.clear()
        if prompts:
            _keep_prompts(model, batch["input_ids"].device)
        if rank is None and prompts is None:
            logits = model(batch["input_ids"]).float()
            return chunked_cross_entropy(logits[..., :-1, :], batch["labels"][..., 1:]), logits
        logits = [chunk.float() for chunk in model(batch["input_ids"], lm_head_chunk_size=128)]
        logits[-1] = logits[-1][..., :-1, :]
        return chunked_cross_entropy(logits, batch["labels"][..., 1:]), logits

    return Workload(build, functools.partial(_tokens, seq_len), loss)


def _tokens(seq_len: int, size: int) -> Any:
    import torch

    return {name: torch.zeros(size, seq_len, dtype=torch.long) for name in ("input_ids", "labels")}


def _gpt(name: str, rank: int | None, adapted: Sequence[str], dropout: float) -> Any:
    if rank is None:
        full = importlib.import_module("litgpt.model")
        return full.GPT(full.Config.from_name(name))
    lora = importlib.import_module("litgpt.lora")
    chosen = {f"lora_{part}": True for part in adapted}
    model = lora.GPT(lora.Config.from_name(name, lora_r=rank, lora_alpha=16, lora_dropout=dropout, **chosen))
    lora.mark_only_lora_as_trainable(model)
    return model


def _prompted(name: str, kind: str) -> Any:
    """The GPT with LLaMA-Adapter's prompts before attention, or with those and a scale and bias for every linear layer (`adapter_v2`)."""
    module = importlib.import_module(f"litgpt.{kind}")
    model = module.GPT(module.Config.from_name(name))
    getattr(module, f"mark_only_{kind}_as_trainable")(model)
    return model


def _keep_prompts(model: Any, device: Any) -> None:
    """Keys and values of the prompts as a validation before training leaves them, without gradients: training goes on with these."""
    import torch

    for attention in (block.attn for block in model.transformer.h):
        if getattr(attention, "adapter_kv_cache", ()) is None:
            shape = (1, attention.config.n_head, attention.config.adapter_prompt_length, attention.config.head_size)
            attention.adapter_kv_cache = tuple(torch.zeros(shape, device=device, dtype=attention.gating_factor.dtype) for _ in range(2))


def _quantized(model: Any, double_quant: bool, held: list[Any]) -> Any:
    """The model with every linear layer in four bits, its head among them, of weights in float16: fabric/plugins/precision/bitsandbytes.py of Lightning."""
    import bitsandbytes
    import torch

    from bsmodel.recording.quantized import packed

    class Linear(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return _product().apply(x, self.weight, self.bias, held)

    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear:
            sizes = (layer.in_features, layer.out_features)
            made = Linear(*sizes, bias=False, compress_statistics=double_quant, quant_type="nf4", device="meta")
            made.bias = layer.bias
            made.weight.data = made.weight.data.to(torch.float16)
            packed(bitsandbytes, made)
            model.set_submodule(name, made)
    return model


def _product() -> Any:
    """`MatMul4Bit` of bitsandbytes up to 0.42: the whole weight is unpacked and cast, and the rows are kept, though backward does not read them.

    They are kept as an attribute, which backward does not let go of: they live as long as a result does, such as the loss.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: Any, weight: Any, bias: Any, held: list[Any]) -> Any:
            ctx.weight, ctx.state = weight, weight.quant_state
            if ctx.needs_input_grad[0]:
                ctx.rows = rows
                held.append(ctx)
            return torch.nn.functional.linear(rows, dequantize_4bit(weight, ctx.state).to(rows.dtype), bias)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return torch.matmul(gradient, dequantize_4bit(ctx.weight, ctx.state).to(gradient.dtype)), None, None, None

    return Product
