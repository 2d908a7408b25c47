# SPDX-License-Identifier: Apache-2.0
"""Workloads by name: what can be compared, sent to another process, and looked up before any library is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.workloads.configs import config_name, from_config_file
from bsmodel.workloads.libraries import timm_workload, torchvision_workload
from bsmodel.workloads.named import KNOWN_RATES, NAMED
from bsmodel.workloads.own import bare_module, from_attribute
from bsmodel.workloads.workload import Workload

_LIBRARIES = {"timm": timm_workload, "torchvision": torchvision_workload}


@dataclass(frozen=True)
class Source:
    """The name of a workload and its options, as `Workload.named` takes them."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(name: str, **options: object) -> Source:
        """A name with the options that are given; `None` is none."""
        return Source(name, tuple(sorted((option, value) for option, value in options.items() if value is not None)))

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{option}={value}" for option, value in self.options)])

    def workload(self) -> Workload:
        """The workload itself; see `Workload.named` for what is refused."""
        name, options = self.name, dict(self.options)
        if "input" in options:
            return bare_module(name, options["input"])
        if name in NAMED:
            return _built(NAMED[name], name, options)
        family, _, architecture = name.partition(":")
        if family in _LIBRARIES and architecture:
            return _built(_LIBRARIES[family], name, {"architecture": architecture, **options})
        if name.endswith(".json"):
            return from_config_file(Path(name), options)
        if ":" in name:
            return from_attribute(name, options)
        raise UnknownNameError("model", name, NAMED)

    def check(self) -> None:
        """Raises what `workload` would, as far as that can be told without importing a library."""
        if self.name in NAMED or not (self.name.endswith(".json") or ":" in self.name or "input" in dict(self.options)):
            self.workload()

    @property
    def library(self) -> str | None:
        """The library its model comes from, where that can be told without importing anything."""
        family = self.name.partition(":")[0]
        if family in _LIBRARIES:
            return family
        if self.name.endswith(".json"):
            return "diffusers" if b"_class_name" in _content(self.name) else "transformers"
        return ("diffusers" if self.name == "sd15-unet" else "transformers") if self.name in NAMED else None

    def identity(self, own: bool = False) -> dict[str, Any] | None:
        """Everything that decides what the workload is, but for the versions of libraries; None where that cannot be told.

        The user's own Python is told by the content of its file, which does not show what the file imports: only where `own` says so.
        """
        found: dict[str, Any] = {"name": self.name, "options": list(self.options)}
        if self.name in NAMED or self.name.partition(":")[0] in _LIBRARIES:
            return found
        place = self.name if self.name.endswith(".json") else self.name.rpartition(":")[0]
        if not place.endswith(".json") and not (own and place.endswith(".py")):
            return None
        content = _content(place)
        if place.endswith(".json"):
            found["name"] = config_name(Path(place))
        return {**found, "content": hashlib.sha256(content).hexdigest()} if content else None


def _content(place: str) -> bytes:
    try:
        return Path(place).read_bytes()
    except OSError:
        return b""  # said when the workload is asked for


def _built(builder: Callable[..., Workload], name: str, options: dict[str, Any]) -> Workload:
    accepted = builder.__code__.co_varnames[: builder.__code__.co_argcount + builder.__code__.co_kwonlyargcount]
    for option in options:
        if option not in accepted:
            raise InvalidInputError(f"{name} has no option {option.replace('_', '-')!r}; it takes: {', '.join(accepted) or 'none'}")
    rate, batch, _ = KNOWN_RATES.get(name, (None, None, ""))
    return replace(builder(**options), name=name, base_lr=rate, base_batch=batch)
