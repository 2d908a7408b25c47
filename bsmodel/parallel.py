# SPDX-License-Identifier: Apache-2.0
"""How the work of a step is split over devices: data parallelism, and how much of its states each device holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.units import shown


@dataclass(frozen=True)
class KindRule:
    """What a kind of parallelism is, where its code stands, and which fields of `Parallel` it has that others have not."""

    what: str
    source: str
    fields: tuple[str, ...] = ()
    shards: bool = False  # whether each device holds a part of every parameter


_DDP = ("bucket_mb", "gradient_as_bucket_view", "sync_each_micro_step")
_FSDP1 = ("reshard_after_forward", "param_dtype", "reduce_dtype", "wrap")
_FSDP = (*_FSDP1, "sync_each_micro_step")
_TENSOR = "torch/distributed/tensor/parallel/style.py"
_DEEPSPEED = ("param_dtype",)
_ZERO = "deepspeed/runtime/zero"
_SHARD = "torch/distributed/fsdp/_fully_shard"
KINDS: dict[str, KindRule] = {
    "ddp": KindRule("every device holds all, gradients are summed in buckets", "torch/nn/parallel/distributed.py", _DDP),
    "zero1": KindRule("as ddp, with states of the optimizer dealt out parameter by parameter", "torch/distributed/optim/zero_redundancy_optimizer.py", _DDP),
    "fsdp2": KindRule("parameters, gradients and states in shards, gathered block by block", _SHARD, (*_FSDP, "tensor"), shards=True),
    "fsdp1": KindRule("as fsdp2, by the older FullyShardedDataParallel", "torch/distributed/fsdp/fully_sharded_data_parallel.py", _FSDP1, shards=True),
    "hsdp": KindRule("as fsdp2 within each node, and as ddp between nodes", _SHARD, _FSDP, shards=True),
    "tp": KindRule("layers in parts by the model's own plan, all devices at work on the same samples", _TENSOR, ("tensor",)),
    "deepspeed-zero1": KindRule("as ddp, with states of the optimizer in float32 dealt out in equal parts", f"{_ZERO}/stage_1_and_2.py", _DEEPSPEED),
    "deepspeed-zero2": KindRule("as deepspeed-zero1, with gradients dealt out as they are made", f"{_ZERO}/stage_1_and_2.py", _DEEPSPEED),
    "deepspeed-zero3": KindRule("parameters, gradients and states dealt out, gathered module by module", f"{_ZERO}/stage3.py", _DEEPSPEED, shards=True),
}
"""Ways in which devices share the work: what each means, where its code is, and which fields of `Parallel` it takes."""


@dataclass(frozen=True)
class PresetRule:
    """What a trainer does that plain PyTorch leaves to its user, where its code stands, and the kinds it is for: how their names begin.

    `sets` are fields of `Parallel` that it sets where they are not given; `casts`: whether it computes in half precision by means of its own, and the
    loop needs no autocast.
    """

    what: str
    source: str
    kinds: tuple[str, ...]
    sets: tuple[tuple[str, Any], ...] = ()
    casts: bool = False


_ACCELERATE = (
    "gradients are summed in the last micro-step only; ddp looks for unused parameters, but under checkpointing: it copies outputs and rebuilds no buckets; "
    "fsdp2 has embedding and head beside the blocks, and gathers, computes and sums in the half precision of a mixed one"
)
_TORCHTITAN = "fsdp2 has embedding and head beside the blocks, gathers and computes in bf16 and sums in fp32"
_ENGINE = ("deepspeed-",)
PRESETS: dict[str, PresetRule] = {
    "torch": PresetRule("as torch's own defaults are", "torch/nn/parallel/distributed.py, torch/distributed/fsdp", ("",)),
    "accelerate": PresetRule(
        _ACCELERATE,
        "accelerate 1.15: accelerator.py, utils/fsdp_utils.py; transformers 5.23: trainer.py, which runs it",
        ("ddp", "fsdp2", "hsdp"),
        (("sync_each_micro_step", False),),
        casts=True,
    ),
    "torchtitan": PresetRule(
        _TORCHTITAN,
        "torchtitan/distributed/fsdp.py, torchtitan/config/job_config.py",
        ("fsdp2", "hsdp"),
        (("param_dtype", "bf16"), ("reduce_dtype", "fp32")),
        casts=True,
    ),
    "deepspeed": PresetRule("as DeepSpeed's own defaults are", "deepspeed 0.19: deepspeed/runtime/zero/config.py", _ENGINE),
    "hf-auto": PresetRule('as "auto" in a configuration for the Trainer sets them', "transformers/integrations/deepspeed.py", _ENGINE),
}
"""Trainers whose way of sharing the work is known: what each does, where its code is, and for which kinds."""
MOST_DEVICES = 1 << 14


GPUS_PER_NODE = 8
BUCKET_MB = 25.0


def nodes_of(devices: int, per_node: int = GPUS_PER_NODE) -> int:
    """The fewest nodes that hold so many devices, at most `per_node` in each."""
    return -(-devices // per_node)


def refusal(error: ValidationError, model: type[BaseModel], kind: str, named: str) -> BsmodelError:
    """What pydantic complains of first, in one line; a misspelt field goes before the field that is missing because of it.

    A field that the model does not have is called `kind`, and one that it has by `named`.
    """
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UnknownNameError(kind, name, model.model_fields)
    if isinstance(reason := first.get("ctx", {}).get("error"), BsmodelError):
        return reason
    return InvalidInputError(f"{named.format(name)} is {shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}")


class Parallel(BaseModel, frozen=True):
    """How one step is split over devices; every field has the default of plain PyTorch."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: str
    """One of `bsmodel.parallel.KINDS`."""
    devices: int = Field(ge=2, le=MOST_DEVICES)
    """GPUs in all."""
    nodes: int = Field(default_factory=lambda given: nodes_of(given.get("devices", 1)), ge=1)
    """Machines that they stand in, as evenly as can be; by default as few as hold them by eights."""
    tensor: int = Field(default=1, ge=1)
    """Of `tp` and `fsdp2`: devices that hold a layer together and share each micro-batch; by default all of `tp`, and one of `fsdp2`."""
    reshard_after_forward: bool | None = None
    """Of `fsdp1`, `fsdp2` and `hsdp`: whether gathered parameters are given back after forward; by default those of all but the root are."""
    param_dtype: Literal["fp16", "bf16"] | None = None
    """Of `fsdp1`, `fsdp2`, `hsdp` and DeepSpeed: what parameters are gathered and computed in, by default what their shards are in;
    DeepSpeed updates float32."""
    reduce_dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Of `fsdp1`, `fsdp2` and `hsdp`: what gradients are summed in, by default what they come in."""
    bucket_mb: float = Field(default=BUCKET_MB, gt=0)
    """Of `ddp` and `zero1`: MiB of gradients that are summed together; with PyTorch's own 25 the first bucket has 1."""
    gradient_as_bucket_view: bool = False
    """Of `ddp` and `zero1`: whether gradients are views of the buckets."""
    sync_each_micro_step: bool = True
    """Whether every micro-step sums its gradients over the devices, or only the last one of an optimizer step."""
    preset: str = "torch"
    """Whose trainer it is, one of `bsmodel.parallel.PRESETS`: which defaults fields that are not given have, and how modules are grouped."""
    wrap: tuple[str, ...] = ()
    """Of `fsdp1`, `fsdp2` and `hsdp`: names of the classes whose modules are sharded one by one; by default the model's own blocks."""

    if not TYPE_CHECKING:  # type checkers see the fields, which pydantic has from their annotations

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise refusal(error, type(self), "field of parallel", "parallel {}") from None

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, given: Any) -> Any:
        """What kind and preset set and is not given."""
        if not isinstance(given, dict):
            return given
        split = {"tensor": given["devices"]} if given.get("kind") == "tp" and "devices" in given and given.get("tensor", 1) == 1 else {}
        rule = PRESETS.get(str(given.get("preset")))
        return {**(dict(rule.sets) if rule else {}), **given, **split}

    @model_validator(mode="after")
    def _together(self) -> Parallel:
        """Raises `InvalidInputError` for a kind or preset that nobody knows, and for fields of another kind."""
        if self.kind not in KINDS:
            raise UnknownNameError("kind of parallel", self.kind, KINDS)
        if self.preset not in PRESETS:
            raise UnknownNameError("preset of parallel", self.preset, PRESETS)
        if not self.kind.startswith(PRESETS[self.preset].kinds):
            kinds = ", ".join(kind for kind in KINDS if kind.startswith(PRESETS[self.preset].kinds))
            raise InvalidInputError(f"parallel preset {self.preset!r} does not have kind {self.kind!r}; it has {kinds}")
        known = KINDS[self.kind].fields
        for name in dict.fromkeys(field for rule in KINDS.values() for field in rule.fields if field not in known):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InvalidInputError(f"parallel {name} is {shown(getattr(self, name))}, which kind {self.kind!r} does not have")
        if self.nodes > self.devices:
            raise InvalidInputError(f"parallel nodes is {self.nodes}; expected at most one for each of {self.devices} devices")
        if self.kind == "hsdp" and self.devices % self.nodes:
            raise InvalidInputError(f"parallel nodes is {self.nodes}; hsdp has as many devices in each, expected a number that divides {self.devices}")
        if self.devices % self.tensor:
            raise InvalidInputError(f"parallel tensor is {self.tensor}; expected as many devices for each micro-batch: a number that divides {self.devices}")
        if self.kind == "tp" and self.tensor != self.devices:
            raise InvalidInputError(f"parallel tensor is {self.tensor}; tp has every layer on all {self.devices} devices, and fsdp2 goes with fewer")
        if self.tensor < self.devices and not self._in_whole_nodes(self.nodes):
            other = next(nodes for nodes in range(self.nodes, self.devices + 1) if self._in_whole_nodes(nodes))
            raise InvalidInputError(
                f"parallel tensor is {self.tensor}, and of {self.devices} devices in {self.nodes} nodes some that share a micro-batch would stand in two; "
                f"expected nodes that hold whole groups, e.g. {other}"
            )
        if self.kind == "fsdp2" and 1 < self.tensor == self.devices:
            raise InvalidInputError(f"parallel tensor is {self.tensor}, which leaves fsdp2 nothing to shard over; use kind 'tp'")
        if self.kind == "hsdp" and not 1 < self.nodes < self.devices:
            raise InvalidInputError(f"parallel nodes is {self.nodes}; hsdp shards within each of several nodes, and needs two or more of two devices or more")
        return self

    def _in_whole_nodes(self, nodes: int) -> bool:
        """Whether as many groups that share a micro-batch stand in each of so many nodes, or each group in as many nodes."""
        together = -(-self.devices // nodes)
        return nodes == 1 or together % self.tensor == 0 or self.tensor % together == 0 == self.devices % together

    @property
    def replicas(self) -> int:
        """How many micro-batches the devices take at once."""
        return self.devices // self.tensor

    @property
    def casts(self) -> bool:
        """Whether half precision is the preset's to compute in, and not a loop's by autocast."""
        return PRESETS[self.preset].casts

    @property
    def shards(self) -> bool:
        """Whether each device holds a part of every parameter."""
        return KINDS[self.kind].shards

    def __str__(self) -> str:
        parts = f", layers over {self.tensor} of them" if 1 < self.tensor < self.devices else ""
        return f"{self.kind} over {self.devices:,} devices{parts}" + (f" by {self.preset}" if self.preset != "torch" else "")
