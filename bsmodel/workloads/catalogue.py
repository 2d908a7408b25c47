# SPDX-License-Identifier: Apache-2.0
"""Models by name whose published configurations are rows of `models.toml`."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bsmodel.workloads.configs import from_fields
from bsmodel.workloads.workload import Workload


@dataclass(frozen=True)
class ModelRow:
    """A model by name: its parameters as published (such as "8.03 B"), the dtype its weights are published in, and where that stands."""

    name: str
    parameters: str
    source: str
    weights: str | None = None
    library: Literal["transformers", "diffusers"] = "transformers"


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    with (Path(__file__).parent / "models.toml").open("rb") as stream:
        return tomllib.load(stream)


def rows() -> tuple[ModelRow, ...]:
    """The rows of `models.toml`."""
    return tuple(ModelRow(name, row["parameters"], row["source"], row["weights"], _library(row)) for name, row in _table().items())


def builders() -> dict[str, Callable[..., Workload]]:
    """By name the function that makes the workload, of the options that its library's models take."""
    makers = {"transformers": _transformers, "diffusers": _diffusers}
    return {name: makers[_library(row)](name) for name, row in _table().items()}


def _library(row: dict[str, Any]) -> Literal["transformers", "diffusers"]:
    return "diffusers" if "_class_name" in row["config"] else "transformers"


def _transformers(name: str) -> Callable[..., Workload]:
    def build(seq_len: int | None = None, image_size: int | None = None, attention: str | None = None) -> Workload:
        return _workload(name, {"seq_len": seq_len, "image_size": image_size, "attention": attention})

    return build


def _diffusers(name: str) -> Callable[..., Workload]:
    def build(image_size: int | None = None) -> Workload:
        return _workload(name, {"image_size": image_size})

    return build


def _workload(name: str, options: dict[str, Any]) -> Workload:
    row = _table()[name]
    usual: dict[str, Any] = {option: row[option] for option in ("seq_len", "image_size") if option in row}
    asked = {option: value for option, value in options.items() if value is not None}
    return replace(from_fields(_with_nothing(row["config"]), name, {**usual, **asked}), weights=row["weights"])


def _with_nothing(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with None where TOML, which has no such value, says "none"."""
    return {name: _with_nothing(value) if isinstance(value, dict) else None if value == "none" else value for name, value in fields.items()}
