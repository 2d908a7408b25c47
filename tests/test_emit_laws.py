# SPDX-License-Identifier: Apache-2.0
"""Whatever a plan says changes what is written for it, or is refused: no part of a recipe is dropped, for any framework."""

import functools
from dataclasses import replace

import pytest

from bsmodel import InvalidInputError, Parallel, Training, emit
from bsmodel.configs import FRAMEWORKS
from tests.emitted import planned, shared

LORA = {"precision": "bf16-mixed", "lora_rank": 16}
NF4 = {**LORA, "weights": "nf4"}
MIXED = {"precision": "bf16-mixed"}


def by(kind, devices=8, **fields):
    return {"parallel": shared(kind, devices, **fields)}


# Of each field, recipes in which it is of use, and another value of it; a framework that takes one of the two only has refused the other.
RECIPES: dict[str, list[tuple[dict, object]]] = {
    "precision": [(also, name) for also in ({}, by("ddp"), by("fsdp1"), by("fsdp2"), by("deepspeed-zero2")) for name in ("tf32", "fp16-mixed", "fp16", "bf16")],
    "optimizer": [({}, "sgd"), ({}, "lion"), (by("deepspeed-zero3"), "sgd"), (by("fsdp2"), "adagrad"), ({}, "adamw-fused"), ({}, "adamw-paged")],
    "checkpointing": [({}, True), (by("fsdp1"), True), (by("fsdp2"), True), (by("deepspeed-zero2"), True), (by("tp"), True)],
    "channels_last": [({}, True)],
    "gradient_clipping": [({}, 1.0), (by("fsdp1"), 1.0), (by("hsdp", 16), 1.0), (by("deepspeed-zero3"), 0.5)],
    "zero_grad": [({}, "zeros")],
    "ema": [({}, True)],
    "weights": [({}, "bf16"), (by("deepspeed-zero2"), "bf16"), (by("fsdp2") | MIXED, "bf16"), (LORA, "fp32"), (LORA, "int8"), (NF4, "fp4")],
    "double_quant": [(NF4, True)],
    "compute_dtype": [(NF4, "fp32")],
    "upcast": [(NF4, False)],
    "float8": [(MIXED, "rowwise"), (by("ddp") | MIXED, "tensorwise")],
    "adapter": [(LORA, "dora"), (NF4, "rslora"), (MIXED, "ia3")],
    "lora_rank": [(MIXED, 8), (LORA, 8)],
    "lora_targets": [(LORA, "attention"), (LORA, ("q_proj",))],
    "lora_alpha": [(LORA, 4.0)],
    "lora_dropout": [(LORA, 0.1)],
    "adapter_dtype": [(LORA, "weights"), ({"precision": "bf16", "lora_rank": 4}, "weights"), (LORA | by("deepspeed-zero3"), "weights")],
    "prompt_tokens": [({**MIXED, "adapter": "prompt-tuning", "prompt_tokens": 4}, 8)],
    "frozen": [({}, ("embed",))],
    "keep_outputs": [({}, True)],
}
DEVICES: dict[str, list[tuple[dict, str, object]]] = {
    "kind": [({}, "ddp", "fsdp2"), ({}, "fsdp2", "fsdp1"), ({}, "deepspeed-zero1", "deepspeed-zero3")],
    "devices": [({}, "ddp", 16)],
    "nodes": [({}, "ddp", 2), ({}, "fsdp2", 4)],
    "tensor": [({}, "fsdp2", 2)],
    "reshard_after_forward": [({}, "fsdp1", False), ({}, "fsdp2", False), ({}, "hsdp", False)],
    "param_dtype": [({}, "fsdp1", "bf16"), ({}, "fsdp2", "bf16"), (MIXED, "fsdp2", "fp16"), ({}, "deepspeed-zero2", "bf16")],
    "reduce_dtype": [({}, "fsdp1", "bf16"), ({}, "fsdp2", "bf16"), (MIXED, "fsdp2", "fp32"), (MIXED, "hsdp", "fp32")],
    "bucket_mb": [({}, "ddp", 50.0), ({}, "ddp", 10.5), ({}, "zero1", 50.0)],
    "gradient_as_bucket_view": [({}, "ddp", True), ({}, "zero1", True)],
    "sync_each_micro_step": [({}, "ddp", False), ({}, "fsdp2", False), ({}, "hsdp", False)],
    "preset": [({}, "ddp", "accelerate"), (MIXED, "fsdp2", "accelerate"), (MIXED, "fsdp2", "torchtitan"), ({}, "deepspeed-zero3", "hf-auto")],
    "wrap": [({}, "fsdp1", ("Block",)), ({}, "fsdp2", ("Block",))],
}


def test_every_field_is_tried():
    assert set(RECIPES) == set(Training.model_fields) - {"accumulation", "parallel"}  # micro-steps are the plan's, devices below
    assert set(DEVICES) == set(Parallel.model_fields)


@functools.cache
def written(framework, recipe):
    """What is written for a plan of several micro-steps, but for the lines that name what it was made from; None where it is refused."""
    try:
        plan = planned(recipe, framework=framework)
        emitted = emit(replace(plan, split=replace(plan.split, accumulation=4)), framework)
    except InvalidInputError:
        return None
    named = [line for line in emitted.said if line.endswith("an optimizer step")]
    text = emitted.text + "\n".join(emitted.said)
    return "\n".join(line for line in text.splitlines() if not any(name in line for name in named))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_recipes_are_not_written_alike(framework):
    for field, cases in RECIPES.items():
        for also, value in cases:
            one, other = written(framework, Training(**also)), written(framework, Training(**{**also, field: value}))
            assert one is None or one != other, (field, value, also)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_ways_of_sharing_are_not_written_alike(framework):
    for field, cases in DEVICES.items():
        for also, kind, value in cases:
            fields = {"kind": kind, "devices": 16 if kind == "hsdp" else 8}
            one = written(framework, Training(**also, parallel=Parallel(**fields)))
            other = written(framework, Training(**also, parallel=Parallel(**{**fields, field: value})))
            assert one is None or one != other, (field, value, kind, also)
