# SPDX-License-Identifier: Apache-2.0
"""What every row of the hardware catalogue is: strict, frozen, read from TOML, each figure with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bsmodel.errors import InvalidInputError, UnknownNameError

Count = Annotated[int, Field(gt=0, le=1 << 60)]  # sums of them are still below 2^63
Rate = Annotated[float, Field(gt=0)]


class HardwareRow(BaseModel):
    """A table of the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


AnyRow = TypeVar("AnyRow", bound=HardwareRow)


class Source(HardwareRow):
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

    def without(self, figure: str) -> Source | None:
        """The same of all other figures; None where there is none."""
        others = tuple(name for name in self.figures if name != figure)
        return Source(**{**dict(self), "figures": others}) if others else None


def catalogue_folder() -> Path:
    """Where the built-in rows are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "_hardware" if (package / "_hardware").is_dir() else package.parent / "hardware"


def read(row: type[AnyRow], path: Path) -> AnyRow:
    """The table in a TOML file; `InvalidInputError` names the file, the field that is wrong and what was expected."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not text
        raise InvalidInputError(f"{str(path)!r} is not TOML: {error}") from None
    return validated(row, values, repr(str(path)))


def validated(row: type[AnyRow], values: Mapping[str, Any], where: str) -> AnyRow:
    """The table with these values, which are those of `where`; `InvalidInputError` where the schema refuses them."""
    try:
        return row.model_validate(values)
    except ValidationError as error:
        raise InvalidInputError(f"{where}: {_reason(row, error)}") from None


def _reason(row: type[HardwareRow], error: ValidationError) -> str:
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


def capability_of(written: str) -> tuple[int, int]:
    """A compute capability as two numbers, which compare as it does."""
    major, minor = written.split(".")
    return int(major), int(minor)
