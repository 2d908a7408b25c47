# SPDX-License-Identifier: Apache-2.0
"""How one trains: precision, optimizer, checkpointing, accumulation, clipping."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware import Gpu
from bsmodel.parallel import Parallel, refusal
from bsmodel.units import finite, whole


@dataclass(frozen=True)
class Precision:
    """What a precision name means: the dtype of the weights, of autocast, and whether the loss is scaled."""

    weights: str
    autocast: str | None = None
    loss_scaling: bool = False
    matmul: str = "fp32"

    @property
    def needs_bf16(self) -> bool:
        return "bfloat16" in (self.weights, self.autocast)


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("float32"),
    "tf32": Precision("float32", matmul="tf32"),
    "fp16-mixed": Precision("float32", "float16", loss_scaling=True, matmul="fp16"),
    "bf16-mixed": Precision("float32", "bfloat16", matmul="bf16"),
    "fp16": Precision("float16", matmul="fp16"),
    "bf16": Precision("bfloat16", matmul="bf16"),
}
"""What the name of a precision means."""


@dataclass(frozen=True)
class OptimizerRule:
    """Where an optimizer comes from, how it is called, and the family whose learning-rate rule applies."""

    path: str
    arguments: dict[str, float | bool]
    family: Literal["sgd", "adam", "layerwise"]
    source: str
    remark: str = ""


_PAGED = "Dettmers 2023, arXiv 2305.14314, section 3; bitsandbytes/optim/optimizer.py"
_MANAGED = (
    "averages of parameters of 100,000 elements and more are in managed memory, which the driver moves between host and device: they are not in these figures"
)
OPTIMIZERS: dict[str, OptimizerRule] = {
    "sgd": OptimizerRule("torch.optim:SGD", {"lr": 0.1}, "sgd", "torch/optim/sgd.py"),
    "sgd-momentum": OptimizerRule("torch.optim:SGD", {"lr": 0.1, "momentum": 0.9}, "sgd", "torch/optim/sgd.py"),
    "adam": OptimizerRule("torch.optim:Adam", {"lr": 1e-4}, "adam", "torch/optim/adam.py"),
    "adamw": OptimizerRule("torch.optim:AdamW", {"lr": 1e-4}, "adam", "torch/optim/adamw.py"),
    "adamw-fused": OptimizerRule("torch.optim:AdamW", {"lr": 1e-4, "fused": True}, "adam", "torch/optim/adamw.py"),
    "adamw-forloop": OptimizerRule("torch.optim:AdamW", {"lr": 1e-4, "foreach": False}, "adam", "torch/optim/adamw.py"),
    "rmsprop": OptimizerRule("torch.optim:RMSprop", {"lr": 1e-4}, "adam", "torch/optim/rmsprop.py"),
    "adagrad": OptimizerRule("torch.optim:Adagrad", {"lr": 1e-2}, "adam", "torch/optim/adagrad.py"),
    "adafactor": OptimizerRule("torch.optim:Adafactor", {"lr": 1e-2}, "adam", "torch/optim/_adafactor.py"),
    "lion": OptimizerRule("bsmodel.recording.optimizers:Lion", {"lr": 1e-4}, "adam", "Chen 2023, arXiv 2302.06675, algorithm 2"),
    "lamb": OptimizerRule("bsmodel.recording.optimizers:Lamb", {"lr": 1e-3}, "layerwise", "You 2019, arXiv 1904.00962, algorithm 2"),
    "lars": OptimizerRule("bsmodel.recording.optimizers:Lars", {"lr": 1.0, "momentum": 0.9}, "layerwise", "You 2017, arXiv 1708.03888, algorithm 1"),
    "adamw-8bit": OptimizerRule(
        "bsmodel.recording.optimizers:AdamW8bit", {"lr": 1e-4}, "adam", "Dettmers 2021, arXiv 2110.02861; bitsandbytes/optim/optimizer.py (block size 256)"
    ),
    "adamw-paged": OptimizerRule("bsmodel.recording.optimizers:PagedAdamW", {"lr": 1e-4}, "adam", _PAGED, _MANAGED),
    "adamw-paged-8bit": OptimizerRule("bsmodel.recording.optimizers:PagedAdamW8bit", {"lr": 1e-4}, "adam", _PAGED, _MANAGED),
}
"""What the name of an optimizer means; any other is a class or a function in `Training.optimizer`."""


@dataclass(frozen=True)
class AdapterRule:
    """The configuration of peft that makes an adapter, and what it is called with."""

    config: str
    arguments: dict[str, bool]
    source: str


ADAPTERS: dict[str, AdapterRule] = {
    "lora": AdapterRule("LoraConfig", {}, "Hu 2021, arXiv 2106.09685"),
    "rslora": AdapterRule("LoraConfig", {"use_rslora": True}, "Kalajdzievski 2023, arXiv 2312.03732: other scales, the same memory"),
    "dora": AdapterRule("LoraConfig", {"use_dora": True}, "Liu 2024, arXiv 2402.09353"),
    "ia3": AdapterRule("IA3Config", {}, "Liu 2022, arXiv 2205.05638"),
    "prompt-tuning": AdapterRule("PromptTuningConfig", {}, "Lester 2021, arXiv 2104.08691"),
}
WEIGHTS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class FormatRule:
    """A format of quantized weights: the library whose modules or tensors have it, the bits of a weight without its scales, and torchao's name for it."""

    library: Literal["bitsandbytes", "torchao"]
    bits: int
    source: str
    config: str = ""


QUANTIZED: dict[str, FormatRule] = {
    "nf4": FormatRule("bitsandbytes", 4, "Dettmers 2023, arXiv 2305.14314"),
    "fp4": FormatRule("bitsandbytes", 4, "bitsandbytes/functional.py, quantize_4bit"),
    "int8": FormatRule("bitsandbytes", 8, "Dettmers 2022, arXiv 2208.07339"),
    "nf4-torchao": FormatRule("torchao", 4, "torchao/quantization/quantize_/workflows/nf4/nf4_tensor.py: scales are quantized, too"),
    "int8-torchao": FormatRule("torchao", 8, "torchao/quantization/quant_api.py: a scale for each row", "Int8WeightOnlyConfig"),
    "float8-torchao": FormatRule("torchao", 8, "torchao/quantization/quant_api.py: e4m3, a scale for each row", "Float8WeightOnlyConfig"),
}
UNTRAINABLE = {"int4-torchao": "it multiplies by kernels of mslk, which have no shape functions, and peft refuses it; use nf4-torchao or nf4"}
FLOAT8 = ("tensorwise", "rowwise", "rowwise_with_gw_hp")  # torchao/float8/config.py, Float8LinearRecipeName


# Fields that name something, what that is called, and the names there are.
NAMES: dict[str, tuple[str, Collection[str]]] = {
    "precision": ("precision", PRECISIONS),
    "optimizer": ("optimizer", OPTIMIZERS),
    "weights": ("format of weights", (*WEIGHTS, *QUANTIZED)),
    "float8": ("float8 recipe", FLOAT8),
    "adapter": ("adapter", ADAPTERS),
}


class Training(BaseModel, frozen=True):
    """A training recipe. Frozen; every field has the default of a plain PyTorch loop."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    precision: str = "fp32"
    """One of `fp32`, `tf32`, `fp16-mixed` (with loss scaling), `bf16-mixed`, `fp16`, `bf16`."""
    optimizer: str | Callable[..., object] = "adamw"
    """A name of `bsmodel.OPTIMIZERS`, a `torch.optim.Optimizer` class, or a function from parameters to an optimizer."""
    checkpointing: bool = False
    """Recompute activations in backward: by the model's own switch, else block by block with `torch.utils.checkpoint`."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-steps per optimizer step; from two on, gradients stay alive through the next micro-step."""
    channels_last: bool = False
    """Keep 4-dimensional weights and images in `torch.channels_last`."""
    gradient_clipping: float | None = Field(default=None, gt=0)
    """Maximum gradient norm for `clip_grad_norm_`."""
    zero_grad: Literal["none", "zeros"] = "none"
    """Whether `zero_grad` frees the gradients or fills them with zeros."""
    ema: bool = False
    """Keep an exponential moving average of the trained parameters on the device."""
    weights: str | None = None
    """What the weights are held in, where that is not what the precision says: `fp32`, `fp16`, `bf16`, or, frozen under adapters, `nf4`, `fp4` or `int8` of
    bitsandbytes, `nf4-torchao`, `int8-torchao` or `float8-torchao`. By default weights under adapters are in half precision where they are published so and
    the precision is a mixed one."""
    double_quant: bool = False
    """Quantize the scales of `nf4` and `fp4` weights, too."""
    compute_dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """What products with `nf4` and `fp4` weights are computed in; by default in what the precision computes in."""
    upcast: bool = True
    """With quantized weights of bitsandbytes, hold all others (embeddings, head, norms) in float32, as peft's `prepare_model_for_kbit_training` does."""
    float8: str | None = None
    """Multiply in float8 in linear layers but the head, by this recipe of torchao: `tensorwise`, `rowwise` or `rowwise_with_gw_hp`. What the weights are
    held in stays as the precision says."""
    adapter: str | None = None
    """Train adapters through peft, all else frozen: `lora`, `rslora`, `dora`, `ia3` or `prompt-tuning`. With a `lora_rank`, `lora` by default."""
    lora_rank: int | None = Field(default=None, ge=1)
    """Rank of the adapters of `lora`, `rslora` and `dora`."""
    lora_targets: str | tuple[str, ...] = "all-linear"
    """Which layers have adapters: `all-linear`, `attention`, ends of their names, or a regular expression for the whole name."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapters; takes no memory. By default peft's."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters; above 0 its output and mask are kept for every adapter."""
    adapter_dtype: Literal["fp32", "weights"] = "fp32"
    """Whether adapters of half-precision weights are in float32, as by peft's `autocast_adapter_dtype`, or in the dtype of the weights."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Virtual tokens before each text, for `prompt-tuning`."""
    parallel: Parallel | None = None
    """How the step is split over several devices, of which a recording is of one; by default there is one."""
    frozen: tuple[str, ...] = ()
    """Prefixes of parameter names that are not trained, e.g. `("embeddings", "encoder.layer.0.")`."""
    keep_outputs: bool = False
    """Whether the model's outputs stay alive through backward, as `out = model(x); loss = out.loss` makes them."""

    if not TYPE_CHECKING:  # type checkers see the fields, which pydantic has from their annotations

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise refusal(error, type(self), "training field", "training field '{}'") from None

    @field_validator("accumulation", "lora_rank", "prompt_tokens", mode="before")
    @classmethod
    def _counts(cls, value: object, info: ValidationInfo) -> int | None:
        return None if value is None and info.field_name != "accumulation" else whole(f"training field {info.field_name!r}", value)

    @field_validator("gradient_clipping", mode="before")
    @classmethod
    def _norm(cls, value: object) -> float | None:
        return None if value is None else finite("training field 'gradient_clipping'", value, above=0)

    @field_validator(*NAMES)
    @classmethod
    def _known(cls, name: object, info: ValidationInfo) -> object:
        kind, known = NAMES[info.field_name or ""]
        if info.field_name == "weights" and name in UNTRAINABLE:
            raise InvalidInputError(f"weights {name!r} are not recorded: {UNTRAINABLE[str(name)]}")
        if isinstance(name, str) and name not in known:
            raise UnknownNameError(kind, name, known)
        return name

    @model_validator(mode="after")
    def _together(self) -> Training:
        """Raises `InvalidInputError` for fields that say nothing without another, or nothing with it."""
        ranked = self.adapter in ("lora", "rslora", "dora") or (self.adapter is None and self.lora_rank is not None)
        four_bits = self.weights in ("nf4", "fp4")
        problems = {
            f"adapter {self.adapter!r} needs a lora_rank": ranked and self.lora_rank is None,
            f"adapter {self.adapter!r} has no lora_rank": not ranked and self.lora_rank is not None,
            "prompt-tuning needs prompt_tokens, and nothing else has them": (self.adapter == "prompt-tuning") != (self.prompt_tokens is not None),
            f"weights {self.weights!r} cannot be trained; give a lora_rank to train adapters": self.weights in QUANTIZED and not self.adapts,
            f"double_quant is for weights nf4 and fp4, not {self.weights!r}": self.double_quant and not four_bits,
            f"compute_dtype is for weights nf4 and fp4, not {self.weights!r}": self.compute_dtype is not None and not four_bits,
            f"weights {self.weights!r} are not sharded; use parallel ddp or zero1": self.weights in QUANTIZED
            and self.parallel is not None
            and self.parallel.shards,
            **_of_layers_in_parts(self),
            f"channels_last parameters are not contiguous, which {self.parallel and self.parallel.kind} needs": self.channels_last
            and self.parallel is not None
            and self.parallel.shards,
            "upcast is for quantized weights of bitsandbytes": not self.upcast and not self.packs("bitsandbytes"),
            "float8 is for weights that are trained; under adapters, give weights float8-torchao": self.float8 is not None and self.adapts,
        }
        idle = () if ranked else ("lora_alpha", "lora_dropout") if self.adapts else ("lora_alpha", "lora_dropout", "lora_targets", "adapter_dtype")
        for name in idle:
            problems[f"{name} is for adapters; give a lora_rank"] = getattr(self, name) != type(self).model_fields[name].default
        for problem, found in problems.items():
            if found:
                raise InvalidInputError(problem)
        return self

    def packs(self, library: str) -> bool:
        """Whether the weights are in a quantized format of this library."""
        return self.weights in QUANTIZED and QUANTIZED[self.weights].library == library

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, and not the model."""
        return self.adapter is not None or self.lora_rank is not None

    def stored(self, published: str | None = None) -> str:
        """The dtype of the weights that are not quantized, of a model whose weights are `published` in one."""
        if self.weights in WEIGHTS:
            return WEIGHTS[self.weights]
        half = self.half
        return half if self.adapts and half is not None and published in ("bfloat16", "float16") else self.numerics.weights

    @property
    def numerics(self) -> Precision:
        """What the precision name means to a loop: no autocast where a trainer's preset has means of its own."""
        found = PRECISIONS[self.precision]
        return replace(found, autocast=None) if self.parallel is not None and self.parallel.casts else found

    @property
    def half(self) -> str | None:
        """What a mixed precision computes in."""
        return PRECISIONS[self.precision].autocast

    @property
    def optimizer_name(self) -> str:
        """The optimizer as printed and stored."""
        return self.optimizer if isinstance(self.optimizer, str) else getattr(self.optimizer, "__name__", repr(self.optimizer))

    @property
    def optimizer_family(self) -> str:
        """`sgd`, `adam` or `layerwise`: which learning-rate rule applies. A user's own class counts as Adam unless SGD is in its name."""
        if isinstance(self.optimizer, str):
            return OPTIMIZERS[self.optimizer].family
        return "sgd" if "sgd" in self.optimizer_name.lower() else "adam"


def _of_layers_in_parts(training: Training) -> dict[str, bool]:
    """What does not go with tensor parallelism, by what is said of it: DTensors and plain tensors are not taken together by operators over lists."""
    parallel = training.parallel
    if parallel is None or parallel.tensor == 1:
        return {}
    mixed, where = parallel.kind == "tp", f"where layers are in {parallel.tensor} parts"
    return {
        f"weights {training.weights!r} are not recorded {where}; use parallel ddp or zero1": training.weights in QUANTIZED,
        f"adapters are not recorded {where}; use parallel ddp, zero1 or fsdp2 without tensor": training.adapts,
        f"float8 is not recorded {where}; leave it out": training.float8 is not None,
        f"gradient_clipping is not recorded {where}: clip_grad_norm_ takes no DTensors of several meshes, nor any beside plain tensors; leave it out": (
            training.gradient_clipping is not None
        ),
        f"precision fp16-mixed is not recorded {where}: loss scaling takes no DTensors beside plain tensors; use bf16-mixed": (
            mixed and training.numerics.loss_scaling
        ),
        f"ema is not recorded {where}: averages take no DTensors beside plain tensors; leave it out": mixed and training.ema,
        f"optimizer adafactor does not run {where}: its norms in place are no DTensors; use adamw": training.optimizer == "adafactor",
    }


def require_arithmetic(training: Training, gpu: Gpu) -> None:
    """Raises `InvalidInputError` where the recipe needs arithmetic that the GPU has not, with the precision to use instead."""
    if PRECISIONS[training.precision].needs_bf16 and not gpu.supports_bf16:
        raise InvalidInputError(f"{gpu.id} has no bf16 arithmetic (compute capability 8.0 is needed); use precision fp16-mixed")
    if training.weights == "bf16" and not gpu.supports_bf16:
        raise InvalidInputError(f"{gpu.id} has no bf16 arithmetic (compute capability 8.0 is needed); use weights fp16")
    if training.float8 is not None and gpu.capability[0] < 8:  # of cards of 8.x, which share recordings, some have; each is asked when it is answered for
        raise InvalidInputError(no_float8(gpu))


def no_float8(gpu: Gpu) -> str:
    """What is said of a card without products in float8."""
    return f"{gpu.id} has no float8 arithmetic (compute capability 8.9 is needed); leave float8 out"
