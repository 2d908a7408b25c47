# SPDX-License-Identifier: Apache-2.0
"""What DeepSpeed, Lightning and timm's training script read."""

from __future__ import annotations

from typing import Any

from bsmodel.configs.run import Run, Says, covered, in_halves, sentences
from bsmodel.errors import InvalidInputError
from bsmodel.parallel import BUCKET_MB
from bsmodel.training import WEIGHTS

# timm 1.0, optim/_optim_factory.py: those that are torch's or bitsandbytes' own, with what they need to be called as here
TIMM: dict[str, dict[str, Any]] = {
    "sgd": {"opt": "momentum", "momentum": 0.0},
    "sgd-momentum": {"opt": "momentum", "momentum": 0.9},
    "adam": {"opt": "adam"},
    "adamw": {"opt": "adamw"},
    "adamw-fused": {"opt": "adamw", "opt_kwargs": {"fused": True}},
    "adamw-forloop": {"opt": "adamw", "opt_kwargs": {"foreach": False}},
    "rmsprop": {"opt": "rmsprop", "momentum": 0.0},
    "adagrad": {"opt": "adagrad"},
    "adamw-8bit": {"opt": "bnbadamw8bit"},
}
_LIGHTNING = {"fp32": "32", "fp16": "16", "bf16": "bf16"}  # with -true where weights are held in it, and -mixed where they are in float32


def zero(run: Run) -> dict[str, Any]:
    """A configuration of DeepSpeed (deepspeed/runtime/config.py); `auto` stands only for sizes of buckets that the Trainer is left to choose."""
    split, recipe = run.split, run.recipe
    per_step = split.micro_batch * split.accumulation * split.replicas
    config: dict[str, Any] = {
        "train_batch_size": per_step,
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": split.accumulation,
        "zero_optimization": {"stage": run.stage, **_buckets(run)},
        "gradient_clipping": recipe.gradient_clipping or 0.0,  # it clips to a norm of 1 unless it is told otherwise
    }
    config |= {run.half: {"enabled": True}} if run.half else {}
    tested = run.optimizer in ("adam", "adamw", "adamw-fused", "adamw-forloop")
    return config if tested else {**config, "zero_allow_untested_optimizer": True}


def deepspeed(run: Run) -> Says:
    """The file of `deepspeed.initialize(config=...)`, with the optimizer and the warm-up."""
    optimizer = _engine_optimizer(run)
    says: Says = {"engine": zero(run)}
    says |= covered("micro_batch", "accumulation", "gradient_clipping", *run.gathers, *(("precision",) if run.recipe.precision != "tf32" else ()))
    if optimizer:
        says |= {"optimizer": {"optimizer": optimizer}, "learning_rate": {}}
    if optimizer and run.warmup_steps:
        rates = {"warmup_min_lr": 0.0, "warmup_max_lr": run.learning_rate, "warmup_num_steps": run.warmup_steps, "warmup_type": "linear"}
        says["warmup_steps"] = {"scheduler": {"type": "WarmupLR", "params": rates}}
    says["devices"] = f"Launched by deepspeed --num_nodes {run.nodes} --num_gpus {run.per_node}, or by torchrun"
    return says


def _engine_optimizer(run: Run) -> dict[str, Any] | None:
    """An optimizer of torch and its rate, which DeepSpeed makes by its name; its own Adam is another one, and is asked not to be taken."""
    path = run.optimizer_path
    if path is None or not path.startswith("torch.") or run.learning_rate is None:
        return None
    name = path.rpartition(".")[2]
    own = {"Adam": {"torch_adam": True, "adam_w_mode": False}, "AdamW": {"torch_adam": True}}.get(name, {})
    return {"type": name, "params": {**run.optimizer_arguments, **own}}


def _buckets(run: Run) -> dict[str, Any]:
    if run.parallel is None or run.parallel.preset != "hf-auto":
        return {}
    names = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    return dict.fromkeys(names if run.stage == 3 else names[:1], "auto")


def lightning(run: Run) -> Says:
    """The file of a `LightningCLI`, whose `trainer` are the arguments of `lightning.Trainer` (lightning/pytorch/trainer/trainer.py)."""
    split, recipe = run.split, run.recipe
    says: Says = {
        "devices": {
            "trainer": {"accelerator": "gpu", "devices": run.per_node, "num_nodes": run.nodes, **({"strategy": _strategy(run)} if run.kind else {})},
        },
        **_precise(run),
        "accumulation": {"trainer": {"accumulate_grad_batches": split.accumulation}},
        **_sharded(run),
    }
    if run.nodes > 1:
        says["launched"] = run.launched
    if recipe.gradient_clipping is not None and run.kind != "fsdp1":  # where it clips by no norm
        says["gradient_clipping"] = {"trainer": {"gradient_clip_val": recipe.gradient_clipping, "gradient_clip_algorithm": "norm"}}
    if run.total_steps is not None:
        says["total_steps"] = {"trainer": {"max_steps": run.total_steps}}
    if run.optimizer_path and "lr" in run.optimizer_arguments:
        says["optimizer"] = {"optimizer": {"class_path": run.optimizer_path, "init_args": run.optimizer_arguments}}
        says["learning_rate"] = {}
    if run.parallel and run.kind == "ddp":
        says |= covered("bucket_mb", "gradient_as_bucket_view")
    if run.parallel and not run.parallel.sync_each_micro_step:
        says |= covered("sync_each_micro_step")
    return says


def _precise(run: Run) -> Says:
    """Lightning's name of a precision. Where `configure_model` shards it is to gather in half precision, too, and Lightning's own would be autocast."""
    by_policy = run.kind in _OWN_SHARDS and run.recipe.numerics.autocast is None
    mixed = None if by_policy else run.mixed
    name = f"{_LIGHTNING[mixed]}-mixed" if mixed else f"{_LIGHTNING[run.held]}-true"
    said = run.recipe.precision == "tf32" or (by_policy and run.mixed is not None)
    return {"mixed" if said else "precision": {"trainer": {"precision": name}}}


_OWN_SHARDS = ("fsdp2", "tp")


def _sharded(run: Run) -> Says:
    """What Lightning's strategies do of how parameters are sharded, and what they leave to the module."""
    if run.kind in _OWN_SHARDS:
        return {"sharing": f"Of your module's configure_model, which shards: {sentences(run)['sharing']}"}
    if run.stage:
        return covered(*run.gathers)
    if run.kind != "fsdp1" or run.parallel is None:
        return {}
    blocks = " and ".join(run.parallel.wrap) or "the model's blocks"
    wrap = f"FSDPStrategy shards {blocks} one by one where it has an auto_wrap_policy of them, and all as one where it has none: yours to give"
    return {"wrap": wrap, **covered("reshard_after_forward", *run.gathers), **in_halves(run, "lightning")}


def _strategy(run: Run) -> str | dict[str, Any]:
    """How Lightning shares the work, as `LightningCLI` makes it; refused for buckets that it would have the Trainer's sizes of."""
    parallel, home = run.parallel, "lightning.pytorch.strategies"
    if run.kind == "ddp":
        own: dict[str, Any] = {"bucket_cap_mb": run.bucket_mb} if run.bucket_mb != BUCKET_MB else {}
        own |= {"gradient_as_bucket_view": True} if parallel and parallel.gradient_as_bucket_view else {}
        return {"class_path": f"{home}.DDPStrategy", "init_args": own} if own else "ddp"
    if run.kind == "fsdp1":
        reshard = parallel is None or parallel.reshard_after_forward is not False
        return {"class_path": f"{home}.FSDPStrategy", "init_args": {"sharding_strategy": "FULL_SHARD" if reshard else "SHARD_GRAD_OP"}}
    if run.stage:
        if parallel and parallel.preset == "hf-auto":
            raise InvalidInputError("preset hf-auto has the Trainer choose the sizes of buckets, which lightning does not; plan without it")
        config, named = zero(run), ("train_micro_batch_size_per_gpu", "zero_optimization")  # all else it sets from its own arguments
        engine = {**{name: config[name] for name in named}, "zero_allow_untested_optimizer": True}
        return {"class_path": f"{home}.DeepSpeedStrategy", "init_args": {"config": engine}}
    sizes = {"data_parallel_size": run.split.replicas, "tensor_parallel_size": run.split.tensor}
    return {"class_path": f"{home}.ModelParallelStrategy", "init_args": sizes}


def timm(run: Run) -> Says:
    """The file of `train.py --config` in huggingface/pytorch-image-models, whose names are those of its flags."""
    split, recipe = run.split, run.recipe
    amp = {"amp": True, "amp_dtype": WEIGHTS[run.mixed]} if run.mixed else {"amp": False}
    held = {} if run.held == "fp32" else {"model_dtype": WEIGHTS[run.held]}
    says: Says = {
        "micro_batch": {"batch_size": split.micro_batch},
        "accumulation": {"grad_accum_steps": split.accumulation},
        "precision": {**amp, **held},
        "devices": run.launched,
        "checkpointing": {"grad_checkpointing": recipe.checkpointing},
        "channels_last": {"channels_last": recipe.channels_last},
        "ema": {"model_ema": recipe.ema},
        "gradient_clipping": {} if recipe.gradient_clipping is None else {"clip_grad": recipe.gradient_clipping, "clip_mode": "norm"},
    }
    if recipe.precision == "fp32" and run.gpu.capability >= (8, 0):
        says["tf32"] = f"train.py multiplies in TF32 where the card can, as {run.gpu.id} does: its time is that of --precision tf32"
    if "image_size" in run.options:
        says["image_size"] = {"img_size": run.options["image_size"]}
    if run.optimizer in TIMM:
        says["optimizer"] = {**TIMM[run.optimizer], "weight_decay": run.weight_decay}  # of 2e-5 unless it is told
    if run.learning_rate is not None:
        says["learning_rate"] = {"lr": run.learning_rate}
    if run.warmup_steps is not None and run.steps_per_epoch is not None:
        says["warmup_steps"] = _epochs(run, "warmup", run.warmup_steps)
    if run.total_steps is not None and run.steps_per_epoch is not None:
        says["total_steps"] = _epochs(run, "", run.total_steps)
    if run.parallel and not run.parallel.sync_each_micro_step:
        says |= covered("sync_each_micro_step")
    return says


def _epochs(run: Run, what: str, steps: int) -> dict[str, Any] | str:
    """Steps as the whole epochs that timm counts in, or what is to be decided where they are none."""
    assert run.steps_per_epoch is not None
    epochs, rest = divmod(steps, run.steps_per_epoch)
    if rest == 0:
        return {"warmup_epochs" if what else "epochs": epochs}
    said = "steps of warm-up" if what else "optimizer steps"
    return f"{steps} {said} are {steps / run.steps_per_epoch:.2f} epochs, and {'--warmup-epochs' if what else '--epochs'} takes whole ones: choose"
