# SPDX-License-Identifier: Apache-2.0
"""What torchtitan and torchtune are called with: arguments that go before what a configuration of theirs says."""

from __future__ import annotations

from typing import Any

from bsmodel.configs.run import Run, Says, covered
from bsmodel.errors import InvalidInputError
from bsmodel.training import WEIGHTS

# torchtitan 0.3, components/optimizer/optimizer.py: the optimizers that it makes, and their implementations
TORCHTITAN = {"adam": ("Adam", "foreach"), "adamw": ("AdamW", "foreach"), "adamw-fused": ("AdamW", "fused"), "adamw-forloop": ("AdamW", "for-loop")}
_GROUP = "--optimizer.param_groups.0"


def torchtitan(run: Run) -> Says:
    """The arguments of `python -m torchtitan.train` (torchtitan/config/configs.py); what says whether blocks are checkpointed stands last."""
    split, recipe, parallel = run.split, run.recipe, run.parallel
    replicate = run.nodes if run.kind == "hsdp" else split.devices if run.kind == "ddp" else 1
    says: Says = {
        "micro_batch": {"--training.local_batch_size": split.micro_batch},
        "accumulation": {"--training.global_batch_size": split.effective_batch},
        "devices": {
            "--parallelism.data_parallel_replicate_degree": replicate,
            "--parallelism.data_parallel_shard_degree": split.replicas // replicate,
            "--parallelism.tensor_parallel_degree": split.tensor,
        },
        "launched": run.launched,
        "tensor": {"--parallelism.no-enable-sequence-parallel": None} if split.tensor > 1 else {},
        "precision": _titan_precision(run),
        "gradient_clipping": {"--training.max_norm": recipe.gradient_clipping or "inf"},
        "eager": {"--training.disable_cuda_graphs": None, "--compile.no-enable": None},  # graphs are captured unless it is told otherwise
    }
    if run.kind not in ("fsdp2", "hsdp"):
        says["wrapped"] = "Planned without fully_shard, by which torchtitan gathers and computes in half precision on one device and on replicas, too"
    if run.tokens:
        says["tokens"] = {"--training.seq_len": run.tokens}
    if run.optimizer in TORCHTITAN:
        name, implementation = TORCHTITAN[run.optimizer]
        decay = {f"{_GROUP}.optimizer_kwargs.weight_decay": run.weight_decay}
        says["optimizer"] = {f"{_GROUP}.optimizer_name": name, "--optimizer.implementation": implementation, **decay}
    if run.learning_rate is not None:
        says["learning_rate"] = {f"{_GROUP}.optimizer_kwargs.lr": run.learning_rate}
    if run.warmup_steps is not None:
        says["warmup_steps"] = {"--lr_scheduler.warmup_steps": run.warmup_steps}
    if run.total_steps is not None:
        says["total_steps"] = {"--training.steps": run.total_steps}
    if parallel is not None and run.kind in ("fsdp2", "hsdp"):
        policy = {None: "default", True: "always", False: "never"}[parallel.reshard_after_forward]
        says |= {"reshard_after_forward": {"--parallelism.fsdp_reshard_after_forward": policy}, **_titan_sums(run)}
    return {**says, "checkpointing": {f"activation-checkpoint:{'full' if recipe.checkpointing else 'none'}": None}}


def _titan_precision(run: Run) -> dict[str, Any]:
    if run.recipe.precision == "tf32" or "fp16" in (run.mixed, run.held):
        raise InvalidInputError(f"torchtitan trains in fp32, bf16 or bf16-mixed, and not in {run.recipe.precision}; plan with one of these")
    return {"--training.dtype": WEIGHTS[run.held], "--training.mixed_precision_param": WEIGHTS[run.mixed or run.held]}


def _titan_sums(run: Run) -> Says:
    """torchtitan sums gradients in float32 in every micro-step; refused where they are planned to be summed otherwise."""
    assert run.parallel is not None
    gathered, summed = run.mixed or run.held, run.parallel.reduce_dtype
    if (summed or gathered) != "fp32":
        raise InvalidInputError(f"torchtitan sums gradients in fp32, and the plan in {summed or gathered}; plan with --preset torchtitan")
    return covered("reduce_dtype", *run.gathers, *(("sync_each_micro_step",) if run.parallel.sync_each_micro_step else ()))


def torchtune(run: Run) -> Says:
    """What `tune run RECIPE --config CONFIG` takes in the place of what a configuration says (torchtune 0.6, recipes/)."""
    split, recipe = run.split, run.recipe
    path = run.optimizer_path
    says: Says = {
        "recipe": f"By tune run {_recipe(run)}",
        "micro_batch": {"batch_size": split.micro_batch},
        "accumulation": {"gradient_accumulation_steps": split.accumulation},
        "precision": _tune_precision(run),
        "checkpointing": {"enable_activation_checkpointing": recipe.checkpointing, "enable_activation_offloading": False},
        "gradient_clipping": {"clip_grad_norm": recipe.gradient_clipping or "null"},
        "devices": {"fsdp_cpu_offload": False} if split.devices > 1 else {},
        "tensor": {"tensor_parallel_dim": split.tensor} if split.tensor > 1 else {},
        "eager": {"compile": False, **({} if recipe.adapts else {"optimizer_in_bwd": False})},
    }
    if split.tensor > 1:
        says["layers"] = "Yours to add: tensor_parallel_plan, of the model"
    if path is not None:
        fused = {"optimizer.fused": False} if path in ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD") else {}
        own = {f"optimizer.{name}": value for name, value in run.optimizer_arguments.items()}
        says["optimizer"] = {"optimizer._component_": path, "optimizer.weight_decay": run.weight_decay, **fused, **own}
        says["learning_rate"] = {}
        if not fused:
            says["fused"] = f"{path} is not called with fused: where the configuration has optimizer.fused, give ~optimizer.fused as well"
    if run.warmup_steps is not None:
        says["warmup_steps"] = {"lr_scheduler.num_warmup_steps": run.warmup_steps}
    if run.total_steps is not None and run.steps_per_epoch is not None:
        says["total_steps"] = _tune_steps(run.total_steps, run.steps_per_epoch)
    if run.tokens:
        says["tokens"] = {"tokenizer.max_seq_len": run.tokens}
    if run.parallel is not None and run.kind == "fsdp2":
        says["reshard_after_forward"] = {"fsdp_reshard_after_forward": run.parallel.reshard_after_forward is not False}
        says |= covered("sync_each_micro_step") if run.parallel.sync_each_micro_step else {}
    if recipe.adapts:
        says |= {"adapter": _tune_lora(run), "weights": {}}
    return says


def _recipe(run: Run) -> str:
    kind = "lora" if run.recipe.adapts else "full"
    if run.split.devices == 1:
        return f"{kind}_finetune_single_device"
    return f"--nnodes {run.nodes} --nproc_per_node {run.per_node} {kind}_finetune_distributed"


def _tune_precision(run: Run) -> dict[str, Any]:
    if run.mixed or run.recipe.precision == "tf32" or run.held == "fp16":
        raise InvalidInputError(f"torchtune trains in fp32 or bf16 throughout, and not in {run.recipe.precision}; plan with precision bf16")
    return {"dtype": run.held}


def _tune_steps(total: int, per_epoch: int) -> dict[str, Any]:
    """Whole epochs where the steps are that, else one that ends with the last step."""
    epochs, rest = divmod(total, per_epoch)
    if rest == 0:
        return {"epochs": epochs, "max_steps_per_epoch": "null"}
    if total < per_epoch:
        return {"epochs": 1, "max_steps_per_epoch": total}
    raise InvalidInputError(f"torchtune trains whole epochs, and {total} steps are {total / per_epoch:.2f} of {per_epoch}; plan with whole --epochs")


def _tune_lora(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    targets = recipe.lora_targets
    problems = {
        f"has no adapter {recipe.adapter}; plan with lora or dora": recipe.adapter not in (None, "lora", "dora"),
        "has adapters in the dtype of the weights; plan with --adapter-dtype weights": recipe.adapter_dtype != "weights",
        f"adapts attention or all linear layers, and not {targets!r}; plan with --lora-targets all-linear": targets not in ("all-linear", "attention"),
        f"has frozen weights in {run.held}, or in nf4-torchao, and not in {recipe.weights}": recipe.weights not in (None, run.held, "nf4-torchao"),
    }
    for problem, found in problems.items():
        if found:
            raise InvalidInputError(f"torchtune {problem}")
    quantized = {"model.quantize_base": True} if recipe.weights == "nf4-torchao" else {}
    return {
        "model.lora_rank": recipe.lora_rank,
        "model.lora_alpha": run.lora_alpha,
        "model.lora_dropout": recipe.lora_dropout,
        "model.lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
        "model.apply_lora_to_mlp": targets == "all-linear",
        "model.apply_lora_to_output": False,
        "model.use_dora": recipe.adapter == "dora",
        **quantized,
    }
