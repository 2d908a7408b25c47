# SPDX-License-Identifier: Apache-2.0
"""Models and steps of published rows that no library has under a name: adapters on chosen layers, other people's GPTs, loops of a Trainer or Fabric."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bsmodel import Workload
from cases import litgpt

Script = Callable[[Workload], Workload]


# -- models ------------------------------------------------------------------------------------------------------------------------------


def _adapted(build: Callable[[], Any], rank: int, targets: Sequence[str], dropout: float = 0.0) -> Callable[[], Any]:
    """The model with LoRA adapters of peft on these layers, kept in float32 as peft keeps them on weights of 16 bits; all else is frozen."""

    def make() -> Any:
        import peft

        model = build()
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
        config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=list(targets))
        return peft.get_peft_model(model, config)

    return make


def _lora(name: str, rank: int, targets: Sequence[str], dropout: float = 0.0, **options: Any) -> Workload:
    """A model of `cases.library` with adapters."""
    from cases.library import parts

    base = parts(name, **options)
    return replace(base, model=_adapted(base.model, rank, targets, dropout))


def _image(name: str, image_size: int = 224, attention: str | None = None, **fields: Any) -> Workload:
    """A transformers model of `cases.hub` that is given images."""
    from bsmodel.workloads import image_batch, own_loss, transformers_config, transformers_model
    from cases.hub import CONFIGURATIONS

    model_type, head, own_fields = CONFIGURATIONS[name]
    config = transformers_config(model_type, attention, **{**own_fields, **fields})
    return Workload(transformers_model(config, head), image_batch(image_size), own_loss)


def _flux(name: str, rank: int | None = None, targets: Sequence[str] = (), image_size: int = 512, text: int = 512, cached: int = 20) -> Workload:
    """FLUX.2 klein's transformer: flow matching on packed latents, prompts embedded beforehand and kept on the device."""

    def build() -> Any:
        import diffusers

        sizes = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680, "in_channels": 128}
        return diffusers.Flux2Transformer2DModel(**sizes, guidance_embeds=False)

    def batch(size: int) -> Any:
        import torch

        side = image_size // 16
        positions = {"txt_ids": torch.zeros(size, text, 4, dtype=torch.long), "img_ids": torch.zeros(size, side * side, 4, dtype=torch.long)}
        return {"latents": torch.zeros(size, 128, side, side), "prompts": torch.zeros(size, text, 7680), **positions}

    def loss(model: Any, batch: Any) -> Any:
        import torch

        latents, prompts = batch["latents"], batch["prompts"]
        noise = torch.randn_like(latents)
        mixed = 0.5 * latents + 0.5 * noise
        packed = mixed.flatten(2).transpose(1, 2)
        times = torch.zeros(latents.size(0), device=latents.device)
        ids = {"txt_ids": batch["txt_ids"], "img_ids": batch["img_ids"]}
        found = model(hidden_states=packed, timestep=times, guidance=None, encoder_hidden_states=prompts, **ids, return_dict=False)[0]
        found = found.transpose(1, 2).reshape(latents.shape)
        return ((found.float() - (noise - latents).float()) ** 2).mean(), found

    return Workload(_adapted(build, rank, targets) if rank else build, batch, loss)


def _book_gpt(name: str, seq_len: int = 1024, mask: str = "buffer", classes: bool = False, flash: bool = False) -> Workload:
    """GPT-2 124M of "Build a Large Language Model From Scratch": mask a "buffer" or made "in place", torch's own classes or written out."""

    def build() -> Any:
        return _book_model(seq_len, mask, classes, flash)

    def batch(size: int) -> Any:
        import torch

        return torch.zeros(size, seq_len, dtype=torch.long), torch.zeros(size, seq_len, dtype=torch.long)

    def loss(model: Any, batch: Any) -> Any:
        import torch

        logits = model(batch[0])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten()), logits

    return Workload(build, batch, loss)


def _book_model(seq_len: int, mask: str, classes: bool, flash: bool) -> Any:
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions, self.dropout = nn.Embedding(50257, 768), nn.Embedding(seq_len, 768), nn.Dropout(0.1)
            self.blocks = nn.Sequential(*(_book_block(seq_len, mask, classes, flash) for _ in range(12)))
            self.norm, self.head = nn.LayerNorm(768) if classes else _written_norm(768), nn.Linear(768, 50257, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.dropout(self.tokens(ids) + self.positions(torch.arange(seq_len, device=ids.device)))
            return self.head(self.norm(self.blocks(x)))

    return Model()


def _book_block(seq_len: int, mask: str, classes: bool, flash: bool) -> Any:
    import torch
    from torch import nn

    def above(**where: Any) -> Any:
        return torch.triu(torch.ones(seq_len, seq_len, **where), diagonal=1)

    class Block(nn.Module):
        mask: Any

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(768, 768, bias=False) for _ in range(3))
            self.out, self.dropout = nn.Linear(768, 768), nn.Dropout(0.1)
            if mask == "buffer" and not flash:
                self.register_buffer("mask", above())
            gelu = nn.GELU(approximate="tanh") if classes else _written_gelu()
            self.inner = nn.Sequential(nn.Linear(768, 3072), gelu, nn.Linear(3072, 768))
            self.first, self.second = (nn.LayerNorm(768) if classes else _written_norm(768) for _ in range(2))

        def attend(self, x: Any) -> Any:
            query, key, value = (layer(x).view(*x.shape[:2], 12, 64).transpose(1, 2) for layer in (self.query, self.key, self.value))
            if flash:
                found = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1 if self.training else 0.0, is_causal=True)
            else:
                scores = query @ key.transpose(2, 3)
                scores.masked_fill_(self.mask.bool() if mask == "buffer" else above(device=x.device, dtype=torch.bool), -torch.inf)
                found = self.dropout(torch.softmax(scores / 64**0.5, dim=-1)) @ value
            return self.out(found.transpose(1, 2).reshape(x.shape))

        def forward(self, x: Any) -> Any:
            x = self.dropout(self.attend(self.first(x))) + x
            return self.dropout(self.inner(self.second(x))) + x

    return Block()


def _written_norm(width: int) -> Any:
    import torch

    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = torch.nn.Parameter(torch.ones(width)), torch.nn.Parameter(torch.zeros(width))

        def forward(self, x: Any) -> Any:
            mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
            return self.scale * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.shift

    return Norm()


def _written_gelu() -> Any:
    import torch

    class Gelu(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            inner = torch.sqrt(torch.tensor(0.6366197723675814, device=x.device)) * (x + 0.044715 * torch.pow(x, 3))
            return 0.5 * x * (1 + torch.tanh(inner))

    return Gelu()


# -- steps -------------------------------------------------------------------------------------------------------------------------------


def _torch_1_10(parts: Workload) -> Workload:
    """The canonical step with the softmax of torch before 1.11, which keeps its input for backward, too (`_softmax_backward_data` took `self`)."""

    def build() -> Any:
        model = parts.model()
        for module in model.modules():
            if "Attention" in type(module).__name__ or module is model:
                module.forward = _with_old_softmax(module.forward)
        return model

    return replace(parts, model=build)


def _with_old_softmax(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    from cases import old_torch

    functional: Any = torch.nn.functional
    old = {
        "softmax": lambda scores, dim=-1, **_: old_torch.softmax(scores, dim, old=True),
        "cross_entropy": lambda scores, target, **_: functional.nll_loss(old_torch.softmax(scores, 1, old=True, logarithm=True), target),
    }

    def run(*args: Any, **kwargs: Any) -> Any:
        today = {name: getattr(functional, name) for name in old}
        for name, function in old.items():
            setattr(functional, name, function)
        try:
            return forward(*args, **kwargs)
        finally:
            for name, function in today.items():
                setattr(functional, name, function)

    return run


def _trainer_of_2022(autocast: bool = False, accumulation: int = 1) -> Script:
    """transformers' Trainer of early 2022 with its Adafactor: gradients are clipped at norm 1 and filled with zeros, outputs die before backward."""

    def make(plain: Workload) -> Workload:
        parts = _torch_1_10(plain)
        variables: dict[str, Any] = {}

        def build() -> Any:
            variables.clear()
            return parts.model()

        def step(model: Any, _: Any, batch: Any) -> None:
            import torch

            if not variables:
                adafactor = importlib.import_module("transformers.optimization").Adafactor
                variables["optimizer"] = adafactor(model.parameters(), lr=5e-5, scale_parameter=False, relative_step=False)
                variables["scaler"] = torch.amp.GradScaler("cuda", enabled=autocast)
            optimizer, scaler = variables["optimizer"], variables["scaler"]
            for _ in range(accumulation):
                _forward_backward(parts, model, batch, variables, autocast)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            model.zero_grad(set_to_none=False)

        return replace(parts, model=build, loss=None, step=step)

    return make


def _forward_backward(parts: Workload, model: Any, batch: Any, variables: dict[str, Any], autocast: bool) -> None:
    import torch
    from torch.utils._pytree import tree_map

    assert parts.loss is not None
    variables["batch"] = tree_map(lambda leaf: leaf.cuda(), batch)
    with torch.autocast("cuda", dtype=torch.float16, enabled=autocast):
        loss = parts.loss(model, variables["batch"])[0]
    variables["scaler"].scale(loss).backward()


def _fabric(precision: str, accumulation: int = 1) -> Script:
    """A loop of Lightning's Fabric: float32 outputs that live on; gradients go before backward, or after the update where several batches share one."""

    def make(parts: Workload) -> Workload:
        variables: dict[str, Any] = {}

        def build() -> Any:
            variables.clear()
            return parts.model()

        def step(model: Any, optimizer: Any, batch: Any) -> None:
            import torch

            scaler = variables.setdefault("scaler", torch.amp.GradScaler("cuda", enabled=precision == "fp16-mixed"))
            for _ in range(accumulation):
                _fabric_forward(model, batch, variables, precision)
                if accumulation == 1:
                    optimizer.zero_grad()
                scaler.scale(variables["loss"] / accumulation).backward()
            scaler.step(optimizer)
            scaler.update()
            if accumulation > 1:
                optimizer.zero_grad()

        return replace(parts, model=build, loss=None, step=step)

    return make


def _fabric_forward(model: Any, batch: Any, variables: dict[str, Any], precision: str) -> None:
    import torch

    variables["images"], variables["labels"] = (leaf.cuda() for leaf in batch)
    images = variables["images"].to(torch.bfloat16) if precision == "bf16" else variables["images"]
    with torch.autocast("cuda", dtype=torch.float16, enabled=precision == "fp16-mixed"):
        found = model(images)
    variables["outputs"] = found.float()
    variables["loss"] = torch.nn.functional.cross_entropy(variables["outputs"], variables["labels"])


def _with_prompts(parts: Workload) -> Workload:
    """The canonical step beside 20 embedded prompts and latents that stay on the device."""

    def loss(model: Any, batch: Any) -> Any:
        import torch

        if not hasattr(model, "prompts_kept"):
            shapes = ((20, *batch["prompts"].shape[1:]), (20, *batch["latents"].shape[1:]))
            object.__setattr__(model, "prompts_kept", [torch.empty(shape, dtype=torch.bfloat16, device=batch["latents"].device) for shape in shapes])
        assert parts.loss is not None
        return parts.loss(model, batch)

    return replace(parts, loss=loss)


SCRIPTS: dict[str, Script] = {
    "torch 1.10": _torch_1_10,
    "trainer adafactor": _trainer_of_2022(),
    "trainer adafactor fp16 x4": _trainer_of_2022(autocast=True, accumulation=4),
    "fabric fp32": _fabric("fp32"),
    "fabric fp16-mixed": _fabric("fp16-mixed"),
    "fabric bf16": _fabric("bf16"),
    "fabric bf16 x4": _fabric("bf16", accumulation=4),
    "with prompts": _with_prompts,
}
KINDS: dict[str, Callable[..., Workload]] = {"image": _image, "lora": _lora, "flux": _flux, "litgpt": litgpt.workload, "book": _book_gpt}
