# SPDX-License-Identifier: Apache-2.0
"""What accelerate, transformers' Trainer and those on top of it, TRL and axolotl, read."""

from __future__ import annotations

from typing import Any

from bsmodel.configs.engines import zero
from bsmodel.configs.run import Run, Says, covered, in_halves
from bsmodel.errors import InvalidInputError
from bsmodel.parallel import BUCKET_MB
from bsmodel.training import WEIGHTS

# transformers 5.23, training_args.py (OptimizerNames) and trainer_optimizer.py: those that are torch's or bitsandbytes' own, called as here
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optim": "sgd"},
    "sgd-momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adamw": {"optim": "adamw_torch"},
    "adamw-fused": {"optim": "adamw_torch_fused"},
    "rmsprop": {"optim": "rmsprop"},
    "adagrad": {"optim": "adagrad"},
    "adamw-8bit": {"optim": "adamw_bnb_8bit"},
    "adamw-paged": {"optim": "paged_adamw_32bit"},
    "adamw-paged-8bit": {"optim": "paged_adamw_8bit"},
}


def accelerate(run: Run) -> Says:
    """The file of `accelerate launch --config_file` (accelerate/commands/config/config_args.py, `ClusterConfig`)."""
    distributed = "DEEPSPEED" if run.stage else "FSDP" if run.kind in _FSDP else "MULTI_GPU" if run.kind else "NO"
    says: Says = {
        "devices": {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": distributed,
            "num_machines": run.nodes,
            "num_processes": run.per_node * run.nodes,
            **_mesh(run),
        },
        "tensor": "Layers are put in parts where the model is loaded: by tp_plan='auto'" if run.split.tensor > 1 else {},
    }
    says["precision" if (run.stage or run.held == "fp32") and run.recipe.precision != "tf32" else "mixed"] = {"mixed_precision": _computed(run) or "no"}
    if run.nodes > 1:
        says["rendezvous"] = f"Yours to add on each of the {run.nodes} machines: machine_rank, main_process_ip and main_process_port"
    if run.kind in _FSDP:
        fields = _fsdp(run) | _wrapped(run, ",")
        says |= {"fsdp": {"fsdp_config": {f"fsdp_{name}": value for name, value in fields.items()}}, **_gathered(run, "accelerate")}
    if run.stage:
        _require_own_buckets(run, "accelerate")
        clipping = run.recipe.gradient_clipping or "inf"  # 0 is not handed on, and DeepSpeed clips to a norm of 1 where it is told none
        engine = {"zero_stage": run.stage, "gradient_accumulation_steps": run.split.accumulation, "gradient_clipping": clipping}
        says |= {"accumulation": {"deepspeed_config": engine}, **covered("gradient_clipping", *run.gathers)}
    return says | _synced(run)


def trainer(run: Run) -> Says:
    """`TrainingArguments` of transformers (training_args.py), as `HfArgumentParser.parse_yaml_file` reads them."""
    recipe, split = run.recipe, run.split
    says: Says = {
        "micro_batch": {"per_device_train_batch_size": split.micro_batch},
        "accumulation": {"gradient_accumulation_steps": split.accumulation},
        "devices": run.launched or "Run with one card in CUDA_VISIBLE_DEVICES: all that are seen are taken, each with such a micro-batch",
        "gradient_clipping": {"max_grad_norm": recipe.gradient_clipping or 0.0},
    }
    says["precision" if run.stage or run.held == "fp32" else "mixed"] = _arithmetic(run)
    if run.optimizer in OPTIMIZERS:
        says["optimizer"] = {**OPTIMIZERS[run.optimizer], "weight_decay": run.weight_decay}  # it has none unless it is told
    for name, field in (("learning_rate", "learning_rate"), ("warmup_steps", "warmup_steps"), ("total_steps", "max_steps")):
        if (value := getattr(run, name)) is not None:
            says[name] = {field: value}
    if run.kind in _FSDP:
        says |= {"fsdp": {"fsdp": True, "fsdp_config": _fsdp(run) | _wrapped(run)}, **_gathered(run, "the Trainer")}
    elif recipe.checkpointing:
        says["checkpointing"] = {"gradient_checkpointing": True}
    if run.stage:
        says |= {"deepspeed": {"deepspeed": zero(run)}, **covered(*run.gathers)}
    if run.kind == "ddp" and isinstance(run.bucket_mb, int):  # it takes no others
        says["bucket_mb"] = {"ddp_bucket_cap_mb": run.bucket_mb} if run.bucket_mb != BUCKET_MB else {}
    if run.parallel and run.kind in ("ddp", *_FSDP) and run.parallel.sync_each_micro_step and split.accumulation > 1:
        says["sync_each_micro_step"] = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
    return says | _synced(run)


def trl(run: Run) -> Says:
    """`SFTConfig` and `ModelConfig` of TRL, as `trl sft --config` reads them (trl/trainer/sft_config.py, model_config.py)."""
    says = trainer(run)
    says.pop("mixed", None)
    recipe = run.recipe
    held = recipe.weights if recipe.weights in WEIGHTS else run.held
    if recipe.packs("torchao"):
        raise InvalidInputError(f"trl quantizes by bitsandbytes and not in {recipe.weights}; plan with weights nf4, fp4 or int8")
    computed = recipe.compute_dtype or run.mixed or held
    published = recipe.adapts and recipe.weights is None and run.mixed is not None
    says["precision"] = {
        **_arithmetic(run),
        "dtype": "auto" if published else WEIGHTS[computed if recipe.packs("bitsandbytes") else held],
    }
    if not says.get("checkpointing"):  # which it does unless it is told otherwise
        says["checkpointing"] = {"gradient_checkpointing": False}
    if run.tokens:
        says["tokens"] = {"max_length": run.tokens}
    if recipe.weights is not None:
        says["weights"] = _quantized(run)
    says |= _upcast(run, "trl") | _attention(run)
    if recipe.adapts:
        says |= {"adapter": {"use_peft": True, **_lora(run, "trl")}, **_trl_adapters(run)}
    return says


def _trl_adapters(run: Run) -> Says:
    """What TRL holds adapters in (trl/trainer/sft_trainer.py); refused where the plan has them otherwise."""
    if run.recipe.packs("bitsandbytes"):
        return {"adapters": "Planned with adapters in float32, which trl has in bf16 over quantized weights"}
    usual = "weights" if run.stage == 3 else "fp32"
    if run.recipe.adapter_dtype != usual and (run.recipe.weights or run.half or "fp32") != "fp32":
        by = " by deepspeed-zero3" if run.stage == 3 else ""
        raise InvalidInputError(f"trl has adapters{by} in {'float32' if usual == 'fp32' else 'the dtype of the weights'}; plan with --adapter-dtype {usual}")
    if run.stage == 3 and run.recipe.checkpointing:
        return {"reentrant": "Planned with checkpoints that are not reentrant, and trl has reentrant ones of adapters by deepspeed-zero3"}
    return {}


def axolotl(run: Run) -> Says:
    """The file of `axolotl train` (axolotl/utils/schemas)."""
    recipe = run.recipe
    says = trainer(run)
    renamed = {"per_device_train_batch_size": "micro_batch_size", "optim": "optimizer", "fsdp": ""}
    for name, settings in says.items():
        if isinstance(settings, dict):
            says[name] = {renamed.get(field, field): value for field, value in settings.items() if renamed.get(field, field)}
    says.pop("mixed", None)
    says["precision"] = _axolotl_precision(run)
    if run.kind in _FSDP:
        fields = {name: value for name, value in _fsdp(run).items() if name != "version"}
        says["fsdp"] = {"fsdp_version": 2, "fsdp_config": fields | _wrapped(run, ",")}
    elif recipe.checkpointing:
        says["checkpointing"] = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}  # which it does otherwise
    if run.kind == "hsdp":
        says["mesh"] = {"dp_replicate_size": run.nodes, "dp_shard_size": run.per_node}
    if run.split.tensor > 1:
        says["tensor"] = {"tensor_parallel_size": run.split.tensor, "dp_shard_size": run.split.replicas}
    if run.tokens:
        says["tokens"] = {"sequence_len": run.tokens}
    if recipe.weights is not None:
        says["weights"] = _axolotl_weights(run)
    if recipe.adapts:
        says["adapter"] = _axolotl_lora(run)
    return says | _upcast(run, "axolotl") | _attention(run)


def _axolotl_lora(run: Run) -> dict[str, Any]:
    """LoRA by peft's layers: axolotl has kernels of its own for them, which it takes unless it is told otherwise."""
    lora = _lora(run, "axolotl")
    targets = lora.pop("lora_target_modules")
    where = {"lora_target_linear": True} if targets == "all-linear" else {"lora_target_modules": targets}
    flags = {f"peft_{name}": lora.pop(name) for name in ("use_rslora", "use_dora") if name in lora}
    dtype = {"peft_autocast_adapter_dtype": False} if run.recipe.adapter_dtype == "weights" else {}
    kernels = {f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")}
    return {"adapter": "qlora" if run.recipe.weights in ("nf4", "fp4") else "lora", **lora, **where, **flags, **dtype, **kernels}


_FSDP = ("fsdp1", "fsdp2", "hsdp")


def _fsdp(run: Run) -> dict[str, Any]:
    """FSDP's settings, without the prefix that accelerate's file has before each."""
    assert run.parallel is not None
    reshard = run.parallel.reshard_after_forward is not False
    if run.kind == "fsdp1":
        own = {"version": 1, "reshard_after_forward": "FULL_SHARD" if reshard else "SHARD_GRAD_OP", "backward_prefetch": "BACKWARD_PRE"}  # torch's own
    else:
        own = {"version": 2, "reshard_after_forward": reshard}
    return {**own, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "activation_checkpointing": run.recipe.checkpointing}


def _gathered(run: Run, framework: str) -> Says:
    """What the settings of FSDP say, and where accelerate gathers and sums otherwise than is planned: in what a mixed precision computes in."""
    assert run.parallel is not None
    says = covered("reshard_after_forward", "wrap", "checkpointing", *run.gathers)
    if not run.parallel.wrap:
        says["blocks"] = "Blocks are those that the model names in _no_split_modules: plan with --wrap where it is none of transformers'"
    if run.mixed and run.recipe.weights == run.mixed and not run.recipe.adapts:
        says["whole"] = f"Planned with weights in {run.mixed}, which {framework} has in float32 again where they are sharded; plan without --weights for that"
    return says | in_halves(run, framework)


def _computed(run: Run) -> str | None:
    """What accelerate is told to compute in: DeepSpeed updates float32 whatever weights are held in."""
    return run.half if run.stage else run.mixed


def _arithmetic(run: Run) -> dict[str, Any]:
    """What is computed in, where weights are in float32."""
    half = _computed(run)
    return {"bf16": half == "bf16", "fp16": half == "fp16", **({"tf32": True} if run.recipe.precision == "tf32" else {})}


def _wrapped(run: Run, between: str = "") -> dict[str, Any]:
    """The classes that are sharded one by one, as a list or with something between them."""
    names = run.parallel.wrap if run.parallel else ()
    return {"transformer_layer_cls_to_wrap": between.join(names) if between else list(names)} if names else {}


def _mesh(run: Run) -> dict[str, Any]:
    """The dimensions of a mesh, where there are two, or one of layers in parts."""
    sizes = {"dp_replicate_size": run.nodes, "dp_shard_size": run.per_node} if run.kind == "hsdp" else {}
    if run.split.tensor > 1:
        sizes = {"dp_replicate_size": 1, "dp_shard_size": run.split.replicas, "tp_size": run.split.tensor}
    return {"parallelism_config": {f"parallelism_config_{name}": size for name, size in sizes.items()}} if sizes else {}


def _synced(run: Run) -> Says:
    """Where gradients are summed in the last micro-step alone, which is what accelerate does."""
    return covered("sync_each_micro_step") if run.parallel and not run.parallel.sync_each_micro_step else {}


def _require_own_buckets(run: Run, framework: str) -> None:
    if run.parallel and run.parallel.preset == "hf-auto":
        raise InvalidInputError(f"{framework} leaves the sizes of buckets to DeepSpeed, and preset hf-auto is the Trainer's; emit trainer, or plan without")


def _attention(run: Run) -> Says:
    """Whose attention it is, as transformers names it."""
    return {"attention": {"attn_implementation": run.options["attention"]}} if "attention" in run.options else {}


def _upcast(run: Run, framework: str) -> Says:
    """What of quantized models is held in float32, as it is by nobody who runs a recipe of its own."""
    if not (run.recipe.packs("bitsandbytes") and run.recipe.upcast):
        return {}
    return {"upcast": f"Planned with embeddings, head and norms in float32, which {framework} has in half precision; plan with --no-upcast for what it takes"}


def _quantized(run: Run) -> dict[str, Any]:
    """Weights in a format of bitsandbytes, as TRL says it."""
    recipe = run.recipe
    if recipe.weights in ("nf4", "fp4"):
        return {"load_in_4bit": True, "bnb_4bit_quant_type": recipe.weights, "use_bnb_nested_quant": recipe.double_quant}
    return {"load_in_8bit": True} if recipe.weights == "int8" else {}


def _lora(run: Run, framework: str) -> dict[str, Any]:
    """LoRA and its kin; refused where it is no LoRA, or where layers are called by a name that only the model knows."""
    recipe = run.recipe
    if recipe.lora_rank is None:
        raise InvalidInputError(f"{framework} has no adapter {recipe.adapter}; plan with lora, rslora or dora")
    targets: Any = recipe.lora_targets
    if targets == "attention":
        raise InvalidInputError(f"{framework} does not know which layers are attention's; plan with --lora-targets and their names")
    if not isinstance(targets, str) or "," in targets:
        targets = [name.strip() for name in (targets.split(",") if isinstance(targets, str) else targets)]
    flags = {"rslora": {"use_rslora": True}, "dora": {"use_dora": True}}.get(recipe.adapter or "lora", {})
    return {"lora_r": recipe.lora_rank, "lora_dropout": recipe.lora_dropout, "lora_target_modules": targets, "lora_alpha": run.lora_alpha, **flags}


def _axolotl_precision(run: Run) -> dict[str, Any]:
    """axolotl loads weights in the half precision that it computes in, whatever is trained; accelerate's FSDP2 has them in float32 again."""
    recipe, half = run.recipe, run.half
    if run.held == "fp16" and not run.stage:
        raise InvalidInputError("axolotl scales the loss where it computes in fp16, and precision fp16 does not; plan with fp16-mixed or bf16")
    whole = not (recipe.adapts or run.kind in ("fsdp2", "hsdp") or run.stage)
    if run.mixed == "fp16" and whole:
        raise InvalidInputError("axolotl loads weights in the fp16 that it computes in, of which no gradients are scaled; plan with --precision bf16")
    if run.mixed and whole and recipe.weights != run.mixed:
        raise InvalidInputError(f"axolotl loads weights in the {half} that it computes in, and {recipe.precision} has them in fp32; plan with --weights {half}")
    return {"bf16": half == "bf16", "fp16": half == "fp16", "float32": half is None, "tf32": recipe.precision == "tf32"}


def _axolotl_weights(run: Run) -> dict[str, Any]:
    recipe, computed = run.recipe, run.recipe.compute_dtype or run.mixed or run.held
    if recipe.packs("torchao"):
        raise InvalidInputError(f"axolotl quantizes by bitsandbytes and not in {recipe.weights}; plan with weights nf4, fp4 or int8")
    if recipe.weights in WEIGHTS and recipe.weights != (loaded := run.half or "fp32"):
        raise InvalidInputError(f"axolotl loads weights in the {loaded} that it computes in, and not in {recipe.weights}; plan with --weights {loaded}")
    if recipe.weights in ("nf4", "fp4"):
        own = {"bnb_4bit_quant_type": recipe.weights, "bnb_4bit_use_double_quant": recipe.double_quant, "bnb_4bit_compute_dtype": WEIGHTS[computed]}
        return {"load_in_4bit": True, "bnb_config_kwargs": own}
    return {"load_in_8bit": True} if recipe.weights == "int8" else {}
