# SPDX-License-Identifier: Apache-2.0
"""What a GPU is, as a strict schema, and how to find one in the catalogue."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from datetime import date
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware.links import Network
from bsmodel.hardware.rows import Count, HardwareRow, Rate, Source, capability_of, catalogue_folder, read, validated
from bsmodel.hardware.runtime import Context, runtime, threads_per_sm
from bsmodel.hardware.workspaces import KINDS
from bsmodel.units import format_bytes, whole

DEFAULT_GPUS = ("rtx-3070-8gb", "rtx-4090-24gb", "a100-40gb", "h100-80gb")
SEARCH_PATH_VARIABLE = "BSMODEL_HARDWARE_PATH"
CALIBRATION = "bsmodel validate --calibrate"  # how the source of a figure measured by the user begins
_SHARED = ("nccl.toml", "networks.toml", "runtime.toml", "workspaces.toml")  # what holds for every card
# the fields that need no source
NO_FIGURES = set("id name aliases skypilot_names headroom_bytes shared interconnect network power_limited sources".split())

Dtype = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]


def _usual_context(row: Mapping[str, Any]) -> int:
    return runtime().context(row.get("sm_count"), row.get("compute_capability", "8.0")).usual_bytes


class Gpu(HardwareRow):
    """One GPU model. Bytes, seconds and FLOP/s; a multiply-add is two FLOPs; tensor rates are dense, with float32 accumulation."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", examples=["rtx-3070-8gb"])
    """Lower-case name and memory; SXM is meant unless `-pcie` follows."""
    name: str
    """Name on the box."""
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    """Other names it is found by, such as the one the driver prints."""
    skypilot_names: tuple[str, ...] = Field(default=(), strict=False)
    """Names that SkyPilot gives it, the usual one first; other cards may share them: `A100-80GB` is SXM4 here and PCIe there."""
    memory_bytes: Count
    """`total_memory` as torch and the driver report it."""
    compute_capability: str = Field(pattern=r"^\d+\.\d$", examples=["8.6"])
    """CUDA compute capability."""
    sm_count: Count | None = None
    """Streaming multiprocessors."""
    context_bytes: Count = Field(default_factory=_usual_context)
    """CUDA context with the kernels of a step; by the rule of `runtime.toml` where the row has no figure of its own."""
    headroom_bytes: int = Field(default=0, ge=0, le=1 << 60)
    """Memory that is left to others, such as a desktop on the same card, or kept free."""
    shared: bool = False
    """Whether other cards take part in the work, and NCCL has buffers for what is said to them."""
    l2_bytes: Count | None = None
    """Level-2 cache."""
    bandwidth_bytes_per_s: Rate | None = None
    """Peak memory bandwidth."""
    fp32_flops_per_s: Rate | None = None
    """Peak float32 rate without tensor cores."""
    tf32_dense_flops_per_s: Rate | None = None
    """Peak TF32 tensor rate."""
    fp16_dense_flops_per_s: Rate | None = None
    """Peak float16 tensor rate."""
    bf16_dense_flops_per_s: Rate | None = None
    """Peak bfloat16 tensor rate; absent where bfloat16 is only emulated."""
    fp8_dense_flops_per_s: Rate | None = None
    """Peak float8 tensor rate."""
    interconnect: str | None = None
    """Link to other GPUs."""
    interconnect_bytes_per_s: Rate | None = None
    """Its bandwidth in one direction."""
    bridge_bytes_per_s: Rate | None = None
    """Bandwidth in one direction of an NVLink bridge to one other card, which not every box has."""
    network: Network | None = None
    """What connects the nodes that it stands in, where that is known; else any that it is rented with."""
    power_limited: bool = False
    """Whether the card throttles far below its peak under sustained load."""
    matmul_efficiency: dict[Dtype, Rate] | None = None
    """Measured rate of large matmuls over the peak, by dtype, of values spread as in training where known; above 1 where a card clocks above its box."""
    bandwidth_efficiency: Annotated[float, Field(gt=0, le=1)] | None = None
    """Measured copy bandwidth over the peak."""
    launch_seconds: Rate | None = None
    """Time the host needs for one kernel of an eager PyTorch program, measured; `runtime.toml` has the default."""
    workspaces: dict[str, bool] | None = None
    """Whether the convolutions of this card take the workspaces of a kind, where that is not as `workspaces.toml` says."""
    price_usd_per_hour: Rate | None = None
    """On-demand price of one card, on the day of its source."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Provenance: every figure of the row is covered by one of them."""

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Gpu:
        for name in self.workspaces or {}:
            if name not in KINDS:
                raise UnknownNameError("kind of workspace", name, KINDS)
        figures = set(type(self).model_fields) - NO_FIGURES
        present = {name for name in figures if getattr(self, name) is not None}
        covered = {figure for source in self.sources for figure in source.figures}
        needed = present if self.context_bytes != _usual_context(dict(self)) else present - {"context_bytes"}
        if missing := sorted(needed - covered):
            raise ValueError(f"no source covers {', '.join(missing)}; name them in the figures of a [[sources]] row")
        if unknown := sorted(covered - figures):
            raise UnknownNameError("figure in sources", unknown[0], figures)
        if absent := sorted(covered - present):
            raise ValueError(f"sources name {', '.join(absent)}, for which the row has no figure")
        if self.memory_bytes <= self.context_bytes + self.headroom_bytes:
            headroom = f" and a headroom of {self.headroom_bytes}" if self.headroom_bytes else ""
            raise ValueError(f"memory_bytes is {self.memory_bytes}; expected more than the CUDA context of {self.context_bytes}{headroom} bytes")
        return self

    def __hash__(self) -> int:
        return hash((self.id, self.memory_bytes, self.compute_capability))

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as two numbers."""
        return capability_of(self.compute_capability)

    @property
    def kernel_family(self) -> tuple[int, int]:
        """The compute capability that stands for the kernels PyTorch picks on this card; cards that give the same can share a recording.

        Ampere and Ada cards (8.x) pick alike but for attention heads wider than 192, where 8.6 is the narrower one; Volta and Turing alike.
        Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
        """
        return {7: (7, 5), 8: (8, 6)}.get(self.capability[0], self.capability)

    @property
    def threads_per_sm(self) -> int:
        """Threads that a multiprocessor holds at once."""
        return threads_per_sm(self.compute_capability)

    @property
    def context(self) -> Context:
        """The CUDA context with the kernels of a step: a figure of the row's own, else what is usual and the range around it."""
        known = any("context_bytes" in source.figures for source in self.sources)
        own = Context(*(self.context_bytes,) * 3) if known else runtime().context(self.sm_count, self.compute_capability)
        return own.with_(self.communicator) if self.shared else own

    @property
    def communicator(self) -> Context:
        """What NCCL takes where others take part."""
        return runtime().communicator(self.interconnect)

    @property
    def busy_share(self) -> float:
        """Of its multiprocessors, those that NCCL keeps busy while a collective goes on: one a channel; none where it is not known how many there are."""
        return min(1.0, runtime().channels(self.interconnect).usual_channels / self.sm_count) if self.sm_count else 0.0

    @property
    def usable_bytes(self) -> int:
        """What a program can usually allocate: the card less the CUDA context and what is left to others."""
        return max(1, self.memory_bytes - self.context_bytes - (self.communicator.usual_bytes if self.shared else 0) - self.headroom_bytes)

    @property
    def sure_bytes(self) -> int:
        """What a program can allocate where the CUDA context is as large as it may be."""
        return max(1, self.memory_bytes - self.context.high_bytes - self.headroom_bytes)

    def peak_flops_per_s(self, dtype: str) -> float | None:
        """Peak rate of a dtype, on tensor cores but for float32; None where the row has none."""
        rate: float | None = getattr(self, "fp32_flops_per_s" if dtype == "fp32" else f"{dtype}_dense_flops_per_s")
        return rate

    @property
    def supports_bf16(self) -> bool:
        """Whether bfloat16 arithmetic is native (compute capability 8.0 and above)."""
        return self.capability >= (8, 0)

    @property
    def supports_float8(self) -> bool:
        """Whether there are products in float8 (compute capability 8.9 and above)."""
        return self.capability >= (8, 9)

    def source_of(self, figure: str) -> Source | None:
        """The source of one figure, or `None` where the row has no such figure."""
        return next((source for source in (*self.sources, *runtime().sources) if figure in source.figures), None)

    @property
    def calibrated_on(self) -> date | None:
        """The last day on which `bsmodel validate --calibrate` measured figures of this row; None where it did not."""
        return max((source.checked for source in self.sources if source.source.startswith(CALIBRATION)), default=None)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Gpu:
        """A copy with other figures, e.g. `model_copy(update={"memory_bytes": 12 * GiB})`.

        Raises `InvalidInputError` for what the schema refuses: a figure new to the row needs a source, so update `sources` with it.
        """
        derived = {"context_bytes"} - {figure for source in self.sources for figure in source.figures}
        kept = {name: value for name, value in self if name not in derived}
        return validated(Gpu, {**kept, **{name: _number(value) for name, value in (update or {}).items()}}, f"a copy of {self.id}")

    def leaving(self, headroom_bytes: int = 0, context_bytes: int | None = None) -> Gpu:
        """This card with so much left to others, and with a CUDA context that is known where one is given.

        Raises `InvalidInputError` where that leaves nothing.
        """
        update: dict[str, Any] = {"headroom_bytes": whole("headroom", headroom_bytes, least=0)}
        taken = whole("context", self.context_bytes if context_bytes is None else context_bytes)
        if taken + headroom_bytes >= self.memory_bytes:
            parts = f"a CUDA context of {format_bytes(taken)}" + (f" and {format_bytes(headroom_bytes)} left free" if headroom_bytes else "")
            raise InvalidInputError(f"{self.id} has {format_bytes(self.memory_bytes)}, of which {parts} would leave nothing; expected less")
        if context_bytes is not None:
            kept = [source.without("context_bytes") for source in self.sources]
            own = Source(figures=("context_bytes",), source="given with the question", checked=date.today(), kind="reported")
            update |= {"context_bytes": taken, "sources": (*(source for source in kept if source), own)}
        return self.model_copy(update=update)

    def among(self, network: Network) -> Gpu:
        """This card in nodes that are connected so; raises `InvalidInputError` where those are rented with other cards."""
        if network.gpus and self.id not in network.gpus:
            raise InvalidInputError(f"network {network.id} is rented with {', '.join(network.gpus)}, not with {self.id}; expected one of its own, or a file")
        return self.model_copy(update={"network": network})

    @staticmethod
    def all() -> tuple[Gpu, ...]:
        """Every GPU of the catalogue and of the user's own files, by memory; a user's row replaces the catalogue's of the same id."""
        places: list[str | Path] = [catalogue_folder(), *filter(None, os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep))]
        found = {gpu.id: gpu for place in places for gpu in gpus_in(place)}
        return tuple(sorted(found.values(), key=lambda gpu: (gpu.memory_bytes, gpu.id)))

    @staticmethod
    def named(name: str) -> Gpu:
        """The GPU with this id, name or alias, in any case, or the one in a TOML file. Never another one instead.

        Raises `UnknownNameError` with the nearest ids, `InvalidInputError` for an alias of several GPUs or a file that breaks the schema.
        """
        if name.lower().endswith(".toml"):
            return Gpu.load(name)
        rows, wanted = Gpu.all(), _folded(name)
        by_id = [gpu for gpu in rows if gpu.id == wanted]
        matches = by_id or [gpu for gpu in rows if wanted in map(_folded, (gpu.name, *gpu.aliases))]
        if not matches:
            raise UnknownNameError("GPU", name, (gpu.id for gpu in rows))
        if len(matches) > 1:
            raise InvalidInputError(f"GPU {name!r} may be {' or '.join(gpu.id for gpu in matches)}; use one of these ids")
        return matches[0]

    @staticmethod
    def load(path: str | Path) -> Gpu:
        """Read one GPU from a TOML file; `InvalidInputError` names the file, the field that is wrong and what was expected."""
        return read(Gpu, Path(path))


def _number(value: Any) -> Any:
    """Numbers of numpy and whole floats as Python's own; what is no number is left to the schema."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    number = float(value)
    return int(number) if number.is_integer() else number


def defaults() -> tuple[Gpu, ...]:
    """The four GPUs a plan is made for when none is named."""
    return tuple(Gpu.named(name) for name in DEFAULT_GPUS)


def gpus_in(place: str | Path) -> tuple[Gpu, ...]:
    """The GPUs of every TOML file in a folder, or of one TOML file; `InvalidInputError` where there is neither."""
    path = Path(place)
    if not path.exists():
        raise InvalidInputError(f"no hardware file or folder at {str(place)!r}; see {SEARCH_PATH_VARIABLE}")
    files = [path] if path.is_file() else sorted(file for file in path.glob("*.toml") if file.name not in _SHARED)
    return tuple(_cached(file, file.stat().st_mtime_ns) for file in files)


@functools.cache
def _cached(path: Path, modified_ns: int) -> Gpu:
    return Gpu.load(path)


def _folded(name: str) -> str:
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def schema() -> str:
    """The JSON schema of a row, as kept in `hardware/gpu.schema.json`."""
    return json.dumps(Gpu.model_json_schema(), indent=2) + "\n"
