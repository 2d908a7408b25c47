# SPDX-License-Identifier: Apache-2.0
"""Workloads from the user's own Python files and modules."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.workloads.workload import Workload


def bare_module(name: str, shape: str) -> Workload:
    """A workload around the `nn.Module` (class, factory or instance) at `module:attribute` or `path.py:attribute`.

    `shape` is one sample's, e.g. `3x224x224` (float32) or `128:long` (token ids below 2). The loss is the mean of the first output.
    Raises `InvalidInputError` for a shape that cannot be read or an attribute that gives no module.
    """
    import torch

    sizes, _, kind = shape.partition(":")
    if not all(size.isdigit() and int(size) > 0 for size in sizes.split("x")) or kind not in ("", "float", "long"):
        raise InvalidInputError(f"--input {shape!r} cannot be read; expected sizes of one sample such as 3x224x224, or 128:long for token ids")
    sample = tuple(int(size) for size in sizes.split("x"))
    if ":" not in name:
        raise InvalidInputError(f"--input is for a module of your own, given as path.py:attribute; {name!r} is not")
    found = _attribute(name)

    def build() -> Any:
        module = found if isinstance(found, torch.nn.Module) else found()
        if not isinstance(module, torch.nn.Module):
            raise InvalidInputError(f"{name} gives {type(module).__name__}; expected a torch.nn.Module")
        return module

    def loss(model: Any, batch: Any) -> Any:
        outputs = model(batch)
        first = next(leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))
        return first.float().mean(), outputs

    def make(size: int) -> Any:
        return torch.zeros(size, *sample, dtype=torch.long if kind == "long" else torch.float32)

    return Workload(build, make, loss, name=name.rpartition(":")[2])


def _attribute(name: str) -> Any:
    place, _, attribute = name.rpartition(":")
    found: Any = _imported(place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"attribute of {place}", part, [n for n in vars(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found


def from_attribute(name: str, options: dict[str, Any]) -> Workload:
    """The `Workload` at `module:attribute` or `path.py:attribute`, or what the function there returns for these options.

    Raises `InvalidInputError` for code that cannot be run or gives something else, `UnknownNameError` for an attribute that is not there.
    """
    found = _attribute(name)
    if callable(found) and not isinstance(found, Workload) and not hasattr(found, "named_parameters"):
        try:
            found = found(**options)
        except TypeError as error:
            raise InvalidInputError(f"{name} cannot be called with {options or 'no arguments'}: {error}") from None
    if not isinstance(found, Workload):
        raise InvalidInputError(f"{name} gives {type(found).__name__}; expected a bsmodel.Workload (or give --input SHAPE for a bare module)")
    return found


def _imported(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise InvalidInputError(f"cannot import {place!r}: {error}") from None
        finally:
            sys.path.remove("")
    path = Path(place)
    if not path.is_file():
        raise InvalidInputError(f"no such file: {place!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BsmodelError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{place} fails to run: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(path.parent))
    return module
