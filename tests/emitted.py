# SPDX-License-Identifier: Apache-2.0
"""Plans by many recipes, and the files that are written for them."""

import functools
import shlex
from dataclasses import replace

import bsmodel
from bsmodel import Gpu, InvalidInputError, Parallel, Training, emit
from tests.models import SGD, workload


def shared(kind, devices=8, **fields):
    return Parallel(kind=kind, devices=devices, **fields)


ZERO2 = shared("deepspeed-zero2", param_dtype="bf16")
LORA = {"lora_rank": 16, "lora_alpha": 32.0, "lora_dropout": 0.1}
RECIPES = {
    "plain": Training(optimizer="sgd-momentum"),
    "mixed": Training(precision="bf16-mixed", checkpointing=True, gradient_clipping=0.5),
    "half": Training(precision="bf16", optimizer="adamw-fused"),
    "ddp": Training(precision="fp16-mixed", parallel=shared("ddp", preset="accelerate")),
    "ddp-16": Training(optimizer="adam", parallel=shared("ddp", 16)),
    "fsdp2": Training(precision="bf16-mixed", checkpointing=True, parallel=shared("fsdp2", 16, preset="accelerate")),
    "fsdp2-kept": Training(precision="bf16", parallel=shared("fsdp2", reshard_after_forward=False)),
    "fsdp2-tensor": Training(parallel=shared("fsdp2", tensor=2, reduce_dtype="fp32")),
    "titan": Training(gradient_clipping=1.0, parallel=shared("fsdp2", preset="torchtitan")),
    "fsdp1": Training(parallel=shared("fsdp1", wrap=("Block",))),
    "fsdp1-mixed": Training(precision="bf16-mixed", gradient_clipping=1.0, parallel=shared("fsdp1", reshard_after_forward=False)),
    "hsdp": Training(precision="bf16-mixed", parallel=shared("hsdp", 16, nodes=2, preset="accelerate")),
    "hsdp-titan": Training(checkpointing=True, parallel=shared("hsdp", 16, nodes=4, preset="torchtitan")),
    "tp": Training(parallel=shared("tp")),
    "zero1-deepspeed": Training(optimizer="sgd", parallel=shared("deepspeed-zero1")),
    "zero2-deepspeed": Training(gradient_clipping=1.0, parallel=ZERO2),
    "zero3-auto": Training(parallel=shared("deepspeed-zero3", 16, param_dtype="bf16", preset="hf-auto")),
    "zero3-half": Training(precision="bf16", optimizer="adagrad", parallel=shared("deepspeed-zero3")),
    "lora": Training(precision="bf16-mixed", optimizer="adamw-8bit", checkpointing=True, **LORA),
    "qlora": Training(precision="bf16-mixed", optimizer="adamw-paged-8bit", weights="nf4", double_quant=True, adapter="dora", **LORA),
    "lora-tune": Training(precision="bf16", adapter_dtype="weights", **LORA),
}
TOKENS = 512  # of a sample, where it is a text
TARGETS = (64, 8192, 200_000)  # on one card of them all, the last is accumulated


@functools.cache
def card():
    """A card with a few GiB left, so that larger batches are accumulated."""
    return Gpu.named("a100-80gb").leaving(headroom_bytes=72 << 30)


@functools.cache
def recorded():
    return bsmodel.trace(workload(), SGD, card())


@functools.cache
def on(devices, target):
    return bsmodel.plan(bsmodel.fit(recorded(), card()), target, devices=devices, samples=1_000_000, epochs=3.0, base_lr=1e-3)


UNKNOWN = dict.fromkeys(("learning_rate", "warmup_steps", "total_steps", "steps_per_epoch"))  # of a plan that is asked for without a goal


def planned(recipe, target=8192, framework="", goal=False, optimizer=None, own_step=False, options=None):
    """A plan of one recording, whose recipe is said to be another: a configuration is made from what a plan says alone.

    Samples are texts, but for a framework that trains on images. With a `goal` it says rate, warm-up and steps.
    """
    parallel = recipe.parallel
    found = on(parallel.devices if parallel else 1, target)
    split = replace(found.split, tensor=parallel.tensor if parallel else 1)
    fields = recipe.model_dump(mode="json", exclude={"optimizer"})
    said = {
        "optimizer": optimizer or recipe.optimizer_name,
        "own_step": own_step,
        "options": options or {},
        "tokens_per_sample": 1 if framework == "timm" else TOKENS,
    }
    tape = replace(found.fit.tape, recipe=fields, precision=recipe.precision, **said)
    return replace(found, fit=replace(found.fit, tape=tape), split=split, **({} if goal else UNKNOWN))


@functools.cache
def accepted(framework, goal=True):
    """Plans that a framework can follow, and what it reads."""
    found = []
    for name, recipe in RECIPES.items():
        for target in TARGETS:
            plan = planned(recipe, target, framework, goal)
            try:
                found.append((name, plan, emit(plan, framework)))
            except InvalidInputError:
                continue
    assert found, f"nothing is written for {framework}"
    return found


def written(emitted, folder, more=""):
    path = folder / emitted.file
    path.write_text(emitted.text + more)
    return str(path)


def parallel_of(plan):
    fields = plan.fit.tape.recipe["parallel"]
    return Parallel(**fields) if fields else None


def arguments(emitted):
    return [word for line in emitted.text.splitlines() if not line.startswith("#") for word in shlex.split(line)]
