# SPDX-License-Identifier: Apache-2.0
"""What a GPU is, as a strict schema, and how to find one in the catalogue."""

from __future__ import annotations

import functools
import json
import os
import tomllib
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError

DEFAULT_GPUS = ("rtx-3070-8gb", "rtx-4090-24gb", "a100-40gb", "h100-80gb")
SEARCH_PATH_VARIABLE = "BSMODEL_HARDWARE_PATH"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


_AnyRow = TypeVar("_AnyRow", bound=_Row)


class Source(_Row):
    """Where figures come from."""

    figures: tuple[str, ...] = Field(strict=False)
    """Names of the fields this source stands for."""
    source: str = Field(min_length=1)
    """Document, listing or measurement."""
    checked: date
    """The day the figure was looked up."""
    kind: Literal["measured", "reported", "datasheet", "derived", "listed"]
    """`reported`: printed by a driver or library; `derived`: computed from other figures, see `note`; `listed`: a price list."""
    note: str | None = None
    """How a derived figure was computed, or what limits it."""


class Runtime(_Row):
    """What the CUDA runtime takes from a card before a program has allocated anything."""

    context_bytes: int = Field(gt=0)
    """CUDA context: the default for cards without a figure of their own, on the safe side."""
    context_bytes_low: int = Field(gt=0)
    """Lowest published figure."""
    context_bytes_high: int = Field(gt=0)
    """Highest published figure."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Provenance of the figures above."""


class Gpu(_Row):
    """One GPU model. Bytes, seconds and FLOP/s; a multiply-add is two FLOPs; tensor rates are dense, with float32 accumulation."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Lower-case name and memory; SXM is meant unless `-pcie` follows."""
    name: str
    """Name on the box."""
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    """Other names it is found by."""
    memory_bytes: int = Field(gt=0)
    """`total_memory` as torch and the driver report it."""
    context_bytes: int = Field(default=0, ge=0)
    """CUDA context; filled from `runtime.toml` where the row has no figure of its own."""
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    """CUDA compute capability, e.g. `8.6`."""
    sm_count: int | None = Field(default=None, gt=0)
    """Streaming multiprocessors."""
    l2_bytes: int | None = Field(default=None, gt=0)
    """Level-2 cache."""
    bandwidth_bytes_per_s: float | None = Field(default=None, gt=0)
    """Peak memory bandwidth."""
    fp32_flops_per_s: float | None = Field(default=None, gt=0)
    """Peak float32 rate without tensor cores."""
    tf32_dense_flops_per_s: float | None = Field(default=None, gt=0)
    """Peak TF32 tensor rate."""
    fp16_dense_flops_per_s: float | None = Field(default=None, gt=0)
    """Peak float16 tensor rate."""
    bf16_dense_flops_per_s: float | None = Field(default=None, gt=0)
    """Peak bfloat16 tensor rate; absent where bfloat16 is only emulated."""
    fp8_dense_flops_per_s: float | None = Field(default=None, gt=0)
    """Peak float8 tensor rate."""
    interconnect: str | None = None
    """Link to other GPUs."""
    interconnect_bytes_per_s: float | None = Field(default=None, gt=0)
    """Its bandwidth in one direction."""
    power_limited: bool = False
    """Whether the card throttles far below its peak under sustained load."""
    matmul_efficiency: dict[str, float] | None = None
    """Best measured matmul rate over the peak, by dtype (`fp32`, `tf32`, `fp16`, `bf16`)."""
    bandwidth_efficiency: float | None = Field(default=None, gt=0, le=1)
    """Measured copy bandwidth over the peak."""
    price_usd_per_hour: float | None = Field(default=None, gt=0)
    """On-demand price of one card, on the day of its source."""
    sources: tuple[Source, ...] = Field(strict=False)
    """Provenance: every figure of the row is covered by one of them."""

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Gpu:
        covered = {figure for source in self.sources for figure in source.figures}
        texts = {"id", "name", "aliases", "sources", "interconnect", "power_limited"}
        present = {name for name in type(self).model_fields if name not in texts and getattr(self, name) not in (None, 0)}
        if missing := sorted(present - covered - {"context_bytes"}):
            raise ValueError(f"no source covers {', '.join(missing)}; add them to the figures of a [[sources]] row")
        if unknown := sorted(covered - set(type(self).model_fields)):
            raise ValueError(f"sources name {', '.join(unknown)}, which is no figure of a GPU")
        return self

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as two numbers."""
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)

    @property
    def usable_bytes(self) -> int:
        """What a program can allocate: the card less the CUDA context."""
        return self.memory_bytes - self.context_bytes

    @property
    def supports_bf16(self) -> bool:
        """Whether bfloat16 arithmetic is native (compute capability 8.0 and above)."""
        return self.capability >= (8, 0)

    def source_of(self, figure: str) -> Source | None:
        """The source of one figure."""
        return next((source for source in self.sources if figure in source.figures), None)

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Gpu:
        """A copy with other figures, e.g. `model_copy(update={"memory_bytes": 12 * GiB})`; refuses what the schema refuses."""
        for name, value in (update or {}).items():
            if name not in type(self).model_fields:
                raise UnknownNameError("GPU field", name, type(self).model_fields)
            if name.endswith(("bytes", "per_s", "count")) and value is not None and (not isinstance(value, (int, float)) or value <= 0):
                raise InvalidInputError(f"{name} is {value!r}; expected a positive number")
        return super().model_copy(update=update, deep=deep)

    @staticmethod
    def all() -> tuple[Gpu, ...]:
        """Every GPU of the catalogue and of the user's own files, by memory."""
        places = [catalogue_folder(), *filter(None, os.environ.get(SEARCH_PATH_VARIABLE, "").split(os.pathsep))]
        found = {gpu.id: gpu for place in places for gpu in gpus_at(place)}
        return tuple(sorted(found.values(), key=lambda gpu: (gpu.memory_bytes, gpu.id)))

    @staticmethod
    def named(name: str) -> Gpu:
        """The GPU with this id or alias, in any case, or the one in a TOML file. Never another one instead.

        Raises `UnknownNameError` with the nearest ids, `InvalidInputError` for a file that does not follow the schema.
        """
        if name.endswith(".toml"):
            return Gpu.load(name)
        known = {alias.lower(): gpu for gpu in Gpu.all() for alias in (gpu.id, gpu.name, *gpu.aliases)}
        if name.lower() not in known:
            raise UnknownNameError("GPU", name, (gpu.id for gpu in Gpu.all()))
        return known[name.lower()]

    @staticmethod
    def load(path: str | Path) -> Gpu:
        """Read one GPU from a TOML file; the error names the field that is wrong."""
        gpu = _read(Gpu, Path(path))
        return gpu if gpu.context_bytes else gpu.model_copy(update={"context_bytes": runtime().context_bytes})


def defaults() -> tuple[Gpu, ...]:
    """The four GPUs a plan is made for when none is named."""
    return tuple(Gpu.named(name) for name in DEFAULT_GPUS)


def runtime() -> Runtime:
    """The runtime's own memory, with provenance."""
    return _read(Runtime, catalogue_folder() / "runtime.toml")


def catalogue_folder() -> Path:
    """Where the built-in rows are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "_hardware" if (package / "_hardware").is_dir() else package.parent / "hardware"


def gpus_at(place: str | Path) -> tuple[Gpu, ...]:
    """The GPUs of one TOML file or of every TOML file in a folder."""
    path = Path(place)
    if not path.exists():
        raise InvalidInputError(f"no such hardware file or folder: {str(place)!r}")
    files = [path] if path.is_file() else sorted(file for file in path.glob("*.toml") if file.name != "runtime.toml")
    return tuple(_cached(str(file), file.stat().st_mtime_ns) for file in files)


@functools.cache
def _cached(path: str, modified_ns: int) -> Gpu:
    return Gpu.load(path)


def _read(row: type[_AnyRow], path: Path) -> _AnyRow:
    try:
        with path.open("rb") as stream:
            return row.model_validate(tomllib.load(stream))
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{str(path)!r} is not TOML: {error}") from None
    except ValidationError as error:
        raise _one_line(row, path, error) from None


def _one_line(row: type[_Row], path: Path, error: ValidationError) -> BsmodelError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        nearest = UnknownNameError("field", field, row.model_fields)
        return InvalidInputError(f"{str(path)!r}: {nearest}")
    if first["type"] == "missing":
        return InvalidInputError(f"{str(path)!r}: field {field!r} is missing")
    reason = first["msg"].removeprefix("Value error, ")
    return InvalidInputError(f"{str(path)!r}: " + (f"{field} is {first['input']!r}: {reason[0].lower()}{reason[1:]}" if field else reason))


def schema() -> str:
    """The JSON schema of a row, as kept in `hardware/gpu.schema.json`."""
    return json.dumps(Gpu.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
