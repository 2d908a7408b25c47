# SPDX-License-Identifier: Apache-2.0
"""What a plan says, by the names that configurations are made from, and each part of it in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.memory import Peak
from bsmodel.parallel import BUCKET_MB, GPUS_PER_NODE, KINDS, PRESETS, Parallel, nodes_of
from bsmodel.planning import Plan, Split, Timing
from bsmodel.studies import Recorded, Row
from bsmodel.training import ADAPTERS, OPTIMIZERS, PRECISIONS, WEIGHTS, Training

Says = dict[str, dict[str, Any] | str]  # by the part of a plan that it says: settings, or a sentence; what is said by others has no settings of its own
_PEFT = {"LoraConfig": "r", "PromptTuningConfig": "num_virtual_tokens"}
_LIBRARIES = {  # of optimizers that stand in here for those of a library: where it has them
    "adamw-8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw-paged": "bitsandbytes.optim.PagedAdamW",
    "adamw-paged-8bit": "bitsandbytes.optim.PagedAdamW8bit",
}


@dataclass(frozen=True)
class Run:
    """One plan on one kind of GPU. `recipe` is how one trains, but for the optimizer, which may be the user's own and has its name alone."""

    model: str
    own_step: bool
    gpu: Gpu
    recipe: Training
    optimizer: str
    split: Split
    peak: Peak | None  # of a plan, and of none that is only asked for
    timing: Timing | None
    learning_rate: float | None
    warmup_steps: int | None
    total_steps: int | None
    steps_per_epoch: int | None
    tokens: int | None  # of a sample, where it is a text
    options: Mapping[str, Any] = field(default_factory=dict)  # of the workload, as they were given, but for what `tokens` says

    @staticmethod
    def of(found: Plan | Row, gpu: Gpu | None = None) -> Run:
        """What a plan says; a row has the id of its card alone, which is of the catalogue where no `gpu` is given.

        Raises `InvalidInputError` for a row without a plan, `UnknownNameError` for a card that the catalogue does not have.
        """
        if isinstance(found, Plan):
            recorded, card, split, peak = Recorded.of(found.fit.tape), found.fit.gpu, found.split, found.peak
        elif found.split is None or found.peak is None or found.recorded is None:
            raise InvalidInputError(f"there is no plan to write down: {found.workload} {found.verdict}")
        else:
            recorded, card, split, peak = found.recorded, Gpu.named(found.gpu) if gpu is None else gpu, found.split, found.peak
        same = ("timing", "learning_rate", "warmup_steps", "total_steps", "steps_per_epoch")
        how = (_recipe(recorded.recipe), recorded.optimizer, split, peak)
        tokens = recorded.tokens_per_sample if recorded.tokens_per_sample > 1 else None
        options = {name: value for name, value in recorded.options.items() if name != "seq_len" or tokens is None}
        return Run(recorded.name, recorded.own_step, card, *how, **{name: getattr(found, name) for name in same}, tokens=tokens, options=options)

    @property
    def parallel(self) -> Parallel | None:
        """How several devices share the work, where the recipe says that."""
        return self.recipe.parallel

    @property
    def kind(self) -> str:
        """The kind of sharing: `ddp` where there are several devices and nothing is said of it, none where there is one."""
        return self.parallel.kind if self.parallel else "ddp" if self.split.devices > 1 else ""

    @property
    def nodes(self) -> int:
        """Machines that the devices stand in."""
        connected = self.gpu.network.gpus_per_node if self.gpu.network else GPUS_PER_NODE
        return self.parallel.nodes if self.parallel else nodes_of(self.split.devices, connected)

    @property
    def per_node(self) -> int:
        """Devices in each node; raises `InvalidInputError` where there are more in one than in another, which no launcher takes."""
        if self.split.devices % self.nodes:
            raise InvalidInputError(f"{self.split.devices} devices in {self.nodes} nodes are not as many in each, which launchers want; give another --nodes")
        return self.split.devices // self.nodes

    @property
    def mixed(self) -> str | None:
        """What weights in float32 are computed in, `fp16` or `bf16`, where it is not float32: by autocast, or by those who gather them."""
        names = {dtype: name for name, dtype in WEIGHTS.items()}
        if (half := self.recipe.half) is not None:
            return names[half]
        return self.parallel.param_dtype if self.parallel and self.held == "fp32" else None

    @property
    def half(self) -> str | None:
        """What is computed in, `fp16` or `bf16`, whatever weights are held in; None for float32."""
        return self.mixed or (None if self.held == "fp32" else self.held)

    @property
    def gathers(self) -> tuple[str, ...]:
        """The part of a plan that says what parameters are gathered in, where the precision says the same of what is computed in."""
        return ("param_dtype",) if self.parallel is None or self.parallel.param_dtype in (None, self.mixed or self.held) else ()

    @property
    def held(self) -> str:
        """What the precision holds weights in: `fp32`, `fp16` or `bf16`."""
        return next(name for name, dtype in WEIGHTS.items() if dtype == PRECISIONS[self.recipe.precision].weights)

    @property
    def bucket_mb(self) -> float | int:
        """MiB of gradients that ddp sums together, as the whole number that some readers want where it is one."""
        size = self.parallel.bucket_mb if self.parallel else BUCKET_MB
        return int(size) if size == int(size) else size

    @property
    def launched(self) -> str | dict[str, Any]:
        """How several devices are started, where that is torchrun's to do; nothing for one."""
        return f"Launched by torchrun --nnodes={self.nodes} --nproc-per-node={self.per_node}" if self.split.devices > 1 else {}

    @property
    def stage(self) -> int | None:
        """DeepSpeed's stage of ZeRO, where it is DeepSpeed that shares."""
        return int(self.kind[-1]) if self.kind.startswith("deepspeed-") else None

    @property
    def lora_alpha(self) -> float | int:
        """The scale of adapters, peft's own 8 where the recipe has none (peft/tuners/lora/config.py)."""
        alpha = 8 if self.recipe.lora_alpha is None else self.recipe.lora_alpha
        return int(alpha) if alpha == int(alpha) else alpha

    @property
    def optimizer_path(self) -> str | None:
        """Where torch or bitsandbytes has the optimizer; None for one that neither has."""
        if self.optimizer in _LIBRARIES:
            return _LIBRARIES[self.optimizer]
        path = OPTIMIZERS[self.optimizer].path if self.optimizer in OPTIMIZERS else ""
        return path.replace(":", ".") if path.startswith("torch.") else None

    @property
    def optimizer_arguments(self) -> dict[str, float | bool]:
        """What the optimizer is called with: the plan's learning rate where it has one, and what its name stands for."""
        fixed = OPTIMIZERS[self.optimizer].arguments if self.optimizer in OPTIMIZERS else {}
        rate = {} if self.learning_rate is None else {"lr": self.learning_rate}
        return {**rate, **{name: value for name, value in fixed.items() if name != "lr"}}

    @property
    def weight_decay(self) -> float:
        """What the optimizer decays weights by where it is called as planned: the default of torch's and bitsandbytes' AdamW, none of all others."""
        return 0.01 if "AdamW" in (self.optimizer_path or "") else 0.0


def covered(*parts: str) -> Says:
    """Parts of a plan that the settings of others say, or that a framework does by itself."""
    return {part: {} for part in parts}


def in_halves(run: Run, framework: str) -> Says:
    """What is said by a framework that has FSDP sum in what a mixed precision computes in, and gather, too: by the older FSDP that may not be planned."""
    half, parallel = run.mixed, run.parallel
    assert parallel is not None
    summed = covered("reduce_dtype") if parallel.reduce_dtype in (None, half) else {}
    if run.kind != "fsdp1" or half is None or (parallel.param_dtype == half and summed):
        return summed
    planned = f"parameters gathered in {parallel.param_dtype or run.held} and gradients summed in {parallel.reduce_dtype or parallel.param_dtype or run.held}"
    return {**summed, "halves": f"Planned with {planned}, and {framework} does both in {half}; plan with --param-dtype {half} for that"}


def _recipe(fields: Mapping[str, Any]) -> Training:
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items() if name in Training.model_fields}
    parallel = {} if known.get("parallel") is None else {"parallel": Parallel(**known["parallel"])}
    return Training(**{**known, **parallel})


def sentences(run: Run) -> dict[str, str]:
    """Everything that the plan says and that a script could be without, each as what there is to do."""
    split, recipe = run.split, run.recipe
    said = {
        "micro_batch": f"micro-batches of {split.micro_batch} samples on each {'device' if split.tensor == 1 else f'group of {split.tensor} devices'}",
        "accumulation": f"{split.accumulation} micro-steps for each optimizer step",
        "devices": f"{split.devices} devices in {run.nodes} nodes",
        "tensor": f"layers in parts over {split.tensor} devices each",
        "sharing": _sharing(run),
        "tokens": f"samples of {run.tokens} tokens",
        "precision": _precision(run),
        "optimizer": _optimizer(run),
        "learning_rate": f"a learning rate of {run.learning_rate}",
        "warmup_steps": f"{run.warmup_steps} steps of warm-up",
        "total_steps": f"{run.total_steps} optimizer steps",
        "weights": _weights(recipe),
        "adapter": _adapter(recipe),
        "checkpointing": "activation checkpointing of every block",
        "gradient_clipping": f"gradients clipped to a norm of {recipe.gradient_clipping}",
        "channels_last": "model and images in torch.channels_last",
        "zero_grad": "zero_grad(set_to_none=False)",
        "ema": "an exponential moving average of the trained parameters on the device",
        "float8": f"linear layers in float8 by torchao, recipe {recipe.float8}",
        "frozen": f"parameters that are not trained: {', '.join(recipe.frozen)}",
        "keep_outputs": "outputs of the model that live through backward",
        **{name: f"the model and its samples with {name} {value}" for name, value in run.options.items()},
        **_shared(run),
    }
    absent = {
        "accumulation": split.accumulation == 1,
        "devices": split.devices == 1,
        "sharing": split.devices == 1,
        "tensor": split.tensor == 1,
        **{name: getattr(run, name) is None for name in ("learning_rate", "warmup_steps", "total_steps", "tokens")},
        "weights": recipe.weights is None,
        "adapter": not recipe.adapts,
        **{name: getattr(recipe, name) == Training.model_fields[name].default for name in ("checkpointing", "gradient_clipping", *_REST)},
    }
    return {name: sentence for name, sentence in said.items() if not absent.get(name, False)}


_REST = ("channels_last", "zero_grad", "ema", "float8", "frozen", "keep_outputs")


def _sharing(run: Run) -> str:
    """The kind of sharing, and what a trainer does of its own where it was planned as by one."""
    preset = run.parallel.preset if run.parallel else "torch"
    planned = "" if preset in ("torch", "deepspeed") else f", as by {preset}: {PRESETS[preset].what}"
    return f"{run.kind}: {KINDS[run.kind].what}{planned}" if run.kind else ""


def _precision(run: Run) -> str:
    parts = [f"precision {run.recipe.precision}: weights in {PRECISIONS[run.recipe.precision].weights}"]
    if run.recipe.precision == "tf32":
        parts.append('torch.set_float32_matmul_precision("high")')
    if run.recipe.half is not None:
        parts.append(f"computed in {run.recipe.half}" + (" with loss scaling" if PRECISIONS[run.recipe.precision].loss_scaling else ""))
    return ", ".join(parts)


def _optimizer(run: Run) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in run.optimizer_arguments.items() if name != "lr")
    source = "" if run.optimizer_path or run.optimizer not in OPTIMIZERS else f" ({OPTIMIZERS[run.optimizer].source})"
    return f"optimizer {run.optimizer_path or run.optimizer}" + (f" with {arguments}" if arguments else "") + source


def _weights(recipe: Training) -> str:
    parts = [f"weights in {recipe.weights}"]
    parts += ["their scales quantized, too"] if recipe.double_quant else []
    parts += [f"products in {recipe.compute_dtype}"] if recipe.compute_dtype else []
    parts += ["all others in float32 by peft's prepare_model_for_kbit_training"] if recipe.packs("bitsandbytes") and recipe.upcast else []
    return ", ".join(parts)


def _adapter(recipe: Training) -> str:
    rule = ADAPTERS[recipe.adapter or "lora"]
    given: dict[str, Any] = {_PEFT[rule.config]: recipe.lora_rank or recipe.prompt_tokens} if rule.config in _PEFT else {}
    given |= {} if recipe.lora_alpha is None else {"lora_alpha": recipe.lora_alpha}
    given |= {"lora_dropout": recipe.lora_dropout, "target_modules": recipe.lora_targets} if rule.config == "LoraConfig" else {}
    arguments = ", ".join(f"{name}={value!r}" for name, value in {**given, **rule.arguments}.items())
    beneath = ", over weights in half precision where they are published so" if recipe.weights is None and recipe.half else ""
    return f"adapters by peft.{rule.config}({arguments}), autocast_adapter_dtype={recipe.adapter_dtype == 'fp32'}{beneath}"


def _shared(run: Run) -> dict[str, str]:
    """What `Parallel` says beside its kind and that its preset does not."""
    parallel = run.parallel
    if parallel is None:
        return {}
    said = {
        "param_dtype": f"parameters gathered and computed in {parallel.param_dtype}",
        "reduce_dtype": f"gradients summed over the devices in {parallel.reduce_dtype}",
        "reshard_after_forward": f"reshard_after_forward={parallel.reshard_after_forward}",
        "bucket_mb": f"bucket_cap_mb={parallel.bucket_mb:g}",
        "gradient_as_bucket_view": f"gradient_as_bucket_view={parallel.gradient_as_bucket_view}",
        "wrap": f"{', '.join(parallel.wrap)} sharded one by one",
    }
    usual = {name: field.default for name, field in Parallel.model_fields.items()} | dict(PRESETS[parallel.preset].sets)
    found = {name: sentence for name, sentence in said.items() if getattr(parallel, name) != usual[name]}
    if run.split.accumulation > 1 and "sync_each_micro_step" in KINDS[parallel.kind].fields:
        found["sync_each_micro_step"] = f"gradients summed over the devices in {'every' if parallel.sync_each_micro_step else 'the last'} micro-step"
    return found
