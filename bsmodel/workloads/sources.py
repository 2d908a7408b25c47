# SPDX-License-Identifier: Apache-2.0
"""Workloads by name: what can be compared, sent to another process, and looked up before any library is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.units import shown, whole
from bsmodel.workloads.bare import LOSSES, bare_module
from bsmodel.workloads.configs import checked_config, config_file, config_name, from_config_file
from bsmodel.workloads.image_models import timm_workload, torchvision_workload
from bsmodel.workloads.libraries import ATTENTIONS
from bsmodel.workloads.named import KNOWN_RATES, MADE_HERE, NAMED, PUBLISHED
from bsmodel.workloads.own import from_attribute
from bsmodel.workloads.workload import Workload

_LIBRARIES = {"timm": timm_workload, "torchvision": torchvision_workload}
_MOST = {"seq_len": 1 << 20, "image_size": 1 << 14}  # what is trained is shorter and smaller: a batch of five has to fit on the host


@dataclass(frozen=True)
class Source:
    """The name of a workload and its options, as `Workload.named` takes them."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(name: str | os.PathLike[str], **options: object) -> Source:
        """A name with the options that are given; `None` is none.

        Raises `InvalidInputError` for an option whose value cannot be one, and `UnknownNameError` for a word that is none of its choices; the
        options of a function of your own are that function's matter.
        """
        if not isinstance(name, (str, os.PathLike)):
            raise InvalidInputError(f"model is {shown(name)}; expected a name")
        text, given = os.fspath(name), {option: value for option, value in options.items() if value is not None}
        if "input" in given or not _is_own(text):
            given = {option: _option(option, value) for option, value in given.items()}
        return Source(text, tuple(sorted(given.items())))

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{option}={value}" for option, value in self.options)])

    def workload(self) -> Workload:
        """The workload itself; see `Workload.named` for what is refused."""
        options = dict(Source.of(self.name, **dict(self.options)).options)
        made = self._made(dict(options))
        return replace(made, options=options) if options else made

    def _made(self, options: dict[str, Any]) -> Workload:
        name = self.name
        if "input" in options:
            shape = options.pop("input")
            if other := [option for option in options if option != "loss"]:
                raise InvalidInputError(f"{name} with --input has no option {other[0].replace('_', '-')!r}; it takes: loss")
            return bare_module(name, shape, **options)
        if name in NAMED:
            return _built(NAMED[name], name, options)
        family, _, architecture = name.partition(":")
        if family in _LIBRARIES and architecture:
            return _built(_LIBRARIES[family], name, options, architecture=architecture)
        if (file := config_file(name)) is not None:
            return from_config_file(file, options)
        if ":" in name:
            return from_attribute(name, options)
        raise UnknownNameError("model", name, NAMED)

    def check(self) -> None:
        """Raises what `workload` would, as far as that can be told without importing a library."""
        file, options = config_file(self.name), dict(self.options)
        if self.name in NAMED and self.name not in MADE_HERE and "input" not in options:
            _require_options(NAMED[self.name], self.name, options)
        elif self.name in NAMED or not (file or ":" in self.name or "input" in options):
            self.workload()
        elif "input" not in options and self.name.partition(":")[0] in _LIBRARIES:
            _require_options(_LIBRARIES[self.name.partition(":")[0]], self.name, options)
        elif file is not None and "input" not in options:
            checked_config(file, options)

    @property
    def library(self) -> str | None:
        """The library its model comes from, where that can be told without importing anything."""
        family = self.name.partition(":")[0]
        if family in _LIBRARIES:
            return family
        if (file := config_file(self.name)) is not None and self.name not in NAMED:
            return "diffusers" if b"_class_name" in _content(file) else "transformers"
        return next((row.library for row in PUBLISHED if row.name == self.name), None)

    def identity(self, own: bool = False) -> dict[str, Any] | None:
        """Everything that decides what the workload is, but for the versions of libraries; None where that cannot be told.

        The user's own Python is told by the content of its file, which does not show what the file imports: only where `own` says so.
        """
        found: dict[str, Any] = {"name": self.name, "options": list(self.options)}
        if self.name in NAMED or self.name.partition(":")[0] in _LIBRARIES:
            return found
        file = config_file(self.name)
        place = file or Path(self.name.rpartition(":")[0])
        if file is None and not (own and place.name.endswith(".py")):
            return None
        content = _content(place)
        if file is not None:
            found["name"] = config_name(file)
        return {**found, "content": hashlib.sha256(content).hexdigest()} if content else None


def _content(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except (OSError, ValueError):
        return b""  # said when the workload is asked for


def _is_own(name: str) -> bool:
    """Whether a name is of something in the user's own Python."""
    return ":" in name and name not in NAMED and name.partition(":")[0] not in _LIBRARIES and config_file(name) is None


def _option(name: str, value: object) -> Any:
    """An option as workloads take it: one of its words, or a count however it is written."""
    if name in _MOST:
        return whole(name.replace("_", "-"), value, most=_MOST[name])
    choices = {"attention": ATTENTIONS, "loss": LOSSES}.get(name)
    if choices is not None and value not in choices:
        raise UnknownNameError(name, value if isinstance(value, str) else shown(value), choices)
    if name == "input" and isinstance(value, (tuple, list)):
        return "x".join(map(str, value))
    if name == "input" and not isinstance(value, str):
        raise InvalidInputError(f"input is {shown(value)}; expected the sizes of one sample such as 3x224x224, or 128:long for token ids")
    return value


def _require_options(builder: Callable[..., Workload], name: str, options: dict[str, Any], made_here: tuple[str, ...] = ("architecture",)) -> None:
    """Raises `InvalidInputError` for an option that this workload does not take."""
    accepted = builder.__code__.co_varnames[: builder.__code__.co_argcount + builder.__code__.co_kwonlyargcount]
    known = [option.replace("_", "-") for option in accepted if option not in made_here]
    for option in options:
        if option not in accepted or option in made_here:
            raise InvalidInputError(f"{name} has no option {option.replace('_', '-')!r}; it takes: {', '.join(known) or 'none'}")


def _built(builder: Callable[..., Workload], name: str, options: dict[str, Any], **made_here: str) -> Workload:
    _require_options(builder, name, options)
    rate, batch, _ = KNOWN_RATES.get(name, (None, None, ""))
    return replace(builder(**made_here, **options), name=name, base_lr=rate, base_batch=batch)
