# SPDX-License-Identifier: Apache-2.0
"""peft's comparison of its methods (method_comparison/MetaMathQA): any of its configurations on a language model, and the step of its script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bsmodel import Gpu, Tape, Training, Workload
from bsmodel.memory.allocator import CachingAllocator
from bsmodel.recording.quantized import quantized


def workload(name: str, config: str | None = None, fields: dict[str, Any] | None = None, cast: bool = True, **options: Any) -> Workload:
    """A model of `cases.hub` on padded batches, in full or with the adapters of this configuration of peft; `cast`: these in float32."""
    from cases.library import parts

    base = parts(f"hub:{name}", padded=True, **options)
    if config is None:
        return base

    def build() -> Any:
        import peft

        return peft.get_peft_model(base.model(), getattr(peft, str(config))(**(fields or {})), autocast_adapter_dtype=cast)

    return replace(base, model=build)


def quantized_by_trl(name: str, rank: int, targets: Sequence[str], dropout: float, **options: Any) -> Workload:
    """A bf16 model in nf4 as TRL's SFTTrainer trains it: all else to float32 by peft, then embeddings and head to bf16 again; norms stay in float32."""
    from cases.library import parts

    base = parts(name, **options)

    def build() -> Any:
        import peft
        import torch

        recipe = Training(precision="bf16-mixed", weights="nf4", double_quant=True, lora_rank=rank)
        model = quantized(base.model().to(torch.bfloat16), recipe, torch.bfloat16)
        model.enable_input_require_grads()  # type: ignore[operator]
        model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_dropout=dropout, target_modules=list(targets)))
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.to(torch.bfloat16)
        return model

    return replace(base, model=build)


def _step(parts: Workload) -> Workload:
    """One step of its run.py: outputs and loss live on, gradients go first and are clipped at norm 1.

    The longest batch comes first after the cache is emptied; those of the step before, the shortest of eighty samples, are left out.
    """
    variables: dict[str, Any] = {}

    def build() -> Any:
        variables.clear()
        return parts.model()

    def step(model: Any, optimizer: Any, batch: Any) -> None:
        import torch

        variables["batch"] = {name: tensor.cuda() for name, tensor in batch.items()}
        optimizer.zero_grad()
        variables["outputs"] = model(**variables["batch"])
        variables["loss"] = variables["outputs"].loss
        variables["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        variables.clear()

    return replace(parts, model=build, loss=None, step=step)


def _trainer(autocast: bool) -> Callable[[Workload], Workload]:
    """A step of transformers' Trainer: nothing of it lives on, for it keeps its loss detached; gradients are clipped at norm 1 and go last.

    A loss that is kept would hold what `enable_input_require_grads` makes a leaf, the embedded tokens, and its gradient through the next forward.
    """

    def make(parts: Workload) -> Workload:
        def step(model: Any, optimizer: Any, batch: Any) -> None:
            import torch

            on_device = {name: tensor.cuda() for name, tensor in batch.items()}
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
                loss = model(**on_device).loss
            del on_device
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return replace(parts, loss=None, step=step)

    return make


def after_emptying(tape: Tape, gpu: Gpu, batch: int) -> int:
    """Bytes reserved by a second step that begins with an empty cache, as by `torch.cuda.empty_cache()` before it."""
    allocator, sizes = CachingAllocator(), tape.sizes(batch, gpu).tolist()
    for name, operations in tape.program(2):
        if name == "micro":
            allocator.release_cached()
            allocator.max_reserved_bytes = allocator.reserved_bytes
        allocator.run(operations, sizes)
    return allocator.max_reserved_bytes


SCRIPTS: dict[str, Callable[[Workload], Workload]] = {
    "peft comparison": _step,
    "trainer": _trainer(autocast=False),
    "trainer bf16-mixed": _trainer(autocast=True),
}
KINDS: dict[str, Callable[..., Workload]] = {"peft": workload, "qlora": quantized_by_trl}
