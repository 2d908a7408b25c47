# SPDX-License-Identifier: Apache-2.0
"""What a GPU is, as a strict schema, and how to find one in the catalogue."""

from __future__ import annotations

import functools
import json
import os
import tomllib
from collections.abc import Mapping
from datetime import date
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bsmodel.errors import InvalidInputError, UnknownNameError

DEFAULT_GPUS = ("rtx-3070-8gb", "rtx-4090-24gb", "a100-40gb", "h100-80gb")
SEARCH_PATH_VARIABLE = "BSMODEL_HARDWARE_PATH"
CALIBRATION = "bsmodel validate --calibrate"  # how the source of a figure measured by the user begins
NO_FIGURES = {"id", "name", "aliases", "interconnect", "power_limited", "sources"}  # the fields that need no source

Dtype = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]
Count = Annotated[int, Field(gt=0, le=1 << 60)]  # sums of them are still below 2^63
Rate = Annotated[float, Field(gt=0)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


_AnyRow = TypeVar("_AnyRow", bound=_Row)


class Source(_Row):
    """Where figures come from."""

    figures: tuple[str, ...] = Field(strict=False, min_length=1)
    """Names of the fields this source stands for."""
    source: str = Field(min_length=1)
    """Document, listing or measurement."""
    checked: date = Field(examples=[date(2026, 11, 1)])
    """The day the figure was looked up."""
    kind: Literal["measured", "reported", "datasheet", "derived", "listed"]
    """`reported`: printed by a driver or library; `derived`: computed from other figures, see `note`; `listed`: a price list."""
    note: str | None = None
    """How a derived figure was computed, or what limits it."""


class Runtime(_Row):
    """What the CUDA runtime takes from a card before a program has allocated anything."""

    context_bytes: Count
    """CUDA context: the default for cards without a figure of their own, on the safe side."""
    context_bytes_low: Count
    """Lowest published figure."""
    context_bytes_high: Count
    """Highest published figure."""
    kernel_seconds: Rate
    """Time from one kernel to the next when each has next to nothing to do."""
    launch_seconds: Rate
    """Time the host needs for one kernel of an eager PyTorch program."""
    launch_seconds_low: Rate
    """The same on a fast host, with little Python around it."""
    launch_seconds_high: Rate
    """The same on a slow host."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Provenance of the figures above."""


@functools.cache
def runtime() -> Runtime:
    """The runtime's own memory, with provenance."""
    return _read(Runtime, catalogue_folder() / "runtime.toml")


class Gpu(_Row):
    """One GPU model. Bytes, seconds and FLOP/s; a multiply-add is two FLOPs; tensor rates are dense, with float32 accumulation."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", examples=["rtx-3070-8gb"])
    """Lower-case name and memory; SXM is meant unless `-pcie` follows."""
    name: str
    """Name on the box."""
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    """Other names it is found by, such as the one the driver prints."""
    memory_bytes: Count
    """`total_memory` as torch and the driver report it."""
    context_bytes: Count = Field(default_factory=lambda: runtime().context_bytes)
    """CUDA context; taken from `runtime.toml` where the row has no figure of its own."""
    compute_capability: str = Field(pattern=r"^\d+\.\d$", examples=["8.6"])
    """CUDA compute capability."""
    sm_count: Count | None = None
    """Streaming multiprocessors."""
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
    power_limited: bool = False
    """Whether the card throttles far below its peak under sustained load."""
    matmul_efficiency: dict[Dtype, Rate] | None = None
    """Best measured matmul rate over the peak, by dtype; above 1 where a card clocks higher than its box says."""
    bandwidth_efficiency: Annotated[float, Field(gt=0, le=1)] | None = None
    """Measured copy bandwidth over the peak."""
    launch_seconds: Rate | None = None
    """Time the host needs for one kernel of an eager PyTorch program, measured; `runtime.toml` has the default."""
    price_usd_per_hour: Rate | None = None
    """On-demand price of one card, on the day of its source."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Provenance: every figure of the row is covered by one of them."""

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Gpu:
        figures = set(type(self).model_fields) - NO_FIGURES
        present = {name for name in figures if getattr(self, name) is not None}
        covered = {figure for source in self.sources for figure in source.figures}
        needed = present if self.context_bytes != runtime().context_bytes else present - {"context_bytes"}
        if missing := sorted(needed - covered):
            raise ValueError(f"no source covers {', '.join(missing)}; name them in the figures of a [[sources]] row")
        if unknown := sorted(covered - figures):
            raise UnknownNameError("figure in sources", unknown[0], figures)
        if absent := sorted(covered - present):
            raise ValueError(f"sources name {', '.join(absent)}, for which the row has no figure")
        if self.memory_bytes <= self.context_bytes:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; expected more than the CUDA context of {self.context_bytes} bytes")
        return self

    def __hash__(self) -> int:
        return hash((self.id, self.memory_bytes, self.compute_capability))

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as two numbers."""
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)

    @property
    def kernel_family(self) -> tuple[int, int]:
        """The compute capability that stands for the kernels PyTorch picks on this card; cards that give the same can share a recording.

        Ampere and Ada cards (8.x) pick alike but for attention heads wider than 192, where 8.6 is the narrower one; Volta and Turing alike.
        Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
        """
        return {7: (7, 5), 8: (8, 6)}.get(self.capability[0], self.capability)

    @property
    def usable_bytes(self) -> int:
        """What a program can allocate: the card less the CUDA context."""
        return self.memory_bytes - self.context_bytes

    def peak_flops_per_s(self, dtype: str) -> float | None:
        """Peak rate of a dtype, on tensor cores but for float32; None where the row has none."""
        rate: float | None = getattr(self, "fp32_flops_per_s" if dtype == "fp32" else f"{dtype}_dense_flops_per_s")
        return rate

    @property
    def supports_bf16(self) -> bool:
        """Whether bfloat16 arithmetic is native (compute capability 8.0 and above)."""
        return self.capability >= (8, 0)

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
        return _validated(Gpu, {**dict(self), **{name: _number(value) for name, value in (update or {}).items()}}, f"a copy of {self.id}")

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
        return _read(Gpu, Path(path))


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


def catalogue_folder() -> Path:
    """Where the built-in rows are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "_hardware" if (package / "_hardware").is_dir() else package.parent / "hardware"


def gpus_in(place: str | Path) -> tuple[Gpu, ...]:
    """The GPUs of every TOML file in a folder, or of one TOML file; `InvalidInputError` where there is neither."""
    path = Path(place)
    if not path.exists():
        raise InvalidInputError(f"no hardware file or folder at {str(place)!r}; see {SEARCH_PATH_VARIABLE}")
    files = [path] if path.is_file() else sorted(file for file in path.glob("*.toml") if file.name != "runtime.toml")
    return tuple(_cached(file, file.stat().st_mtime_ns) for file in files)


@functools.cache
def _cached(path: Path, modified_ns: int) -> Gpu:
    return Gpu.load(path)


def _folded(name: str) -> str:
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def _read(row: type[_AnyRow], path: Path) -> _AnyRow:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not text
        raise InvalidInputError(f"{str(path)!r} is not TOML: {error}") from None
    return _validated(row, values, repr(str(path)))


def _validated(row: type[_AnyRow], values: Mapping[str, Any], where: str) -> _AnyRow:
    try:
        return row.model_validate(values)
    except ValidationError as error:
        raise InvalidInputError(f"{where}: {_reason(row, error)}") from None


def _reason(row: type[_Row], error: ValidationError) -> str:
    """One line for the first problem; a misspelt field goes before the field that is missing because of it."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    *parents, name = map(str, first["loc"] or ("",))
    fields = (Source if parents[:1] == ["sources"] else row).model_fields
    where = f"a key of {parents[0]}" if name == "[key]" else ".".join([*parents, name])
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(parents)}: ".removeprefix(": ") + str(UnknownNameError("field", name, fields))
    if first["type"] == "missing":
        return f"field {where!r} is missing; expected: {(fields[name].description or '').rstrip('.')}"
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected").replace("String should", "expected text to")
    reason = reason.replace("expected greater", "expected a number greater").replace("expected less", "expected a number less")
    example = "".join(f', e.g. "{value}"' if isinstance(value, str) else f", e.g. {value}" for value in _examples(fields, name))
    return f"{where} is {first['input']!r}; {reason}{example}" if where else reason


def _examples(fields: Mapping[str, Any], name: str) -> list[Any]:
    return (fields[name].examples or []) if name in fields else []


def schema() -> str:
    """The JSON schema of a row, as kept in `hardware/gpu.schema.json`."""
    return json.dumps(Gpu.model_json_schema(), indent=2) + "\n"
