# SPDX-License-Identifier: Apache-2.0
"""Workloads and modules from the user's own Python files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.workloads.faults import line_of, said
from bsmodel.workloads.workload import Workload


def attribute(name: str) -> Any:
    """What stands at `module:attribute` or `path.py:attribute`.

    Raises `InvalidInputError` for code that cannot be run, with its line, `UnknownNameError` for an attribute that is not there.
    """
    place, _, path = name.rpartition(":")
    found: Any = _imported(place)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UnknownNameError(f"attribute of {place}", part, [n for n in vars(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found


def from_attribute(name: str, options: dict[str, Any]) -> Workload:
    """The `Workload` at `module:attribute` or `path.py:attribute`, or what the function there returns for these options.

    Raises `InvalidInputError` for code that cannot be run or gives something else, and for options that nobody takes; `UnknownNameError` for
    an attribute that is not there.
    """
    found = attribute(name)
    if callable(found) and not isinstance(found, Workload) and not hasattr(found, "named_parameters"):
        found = _called(name, found, options)
    elif isinstance(found, Workload) and options:
        given = ", ".join(option.replace("_", "-") for option in options)
        raise InvalidInputError(f"{name} is a Workload, which takes no options; leave out {given}, or make it a function of {', '.join(options)}")
    if not isinstance(found, Workload):
        raise InvalidInputError(f"{name} gives {type(found).__name__}; expected a bsmodel.Workload (or give --input SHAPE for a bare module)")
    return found


def _called(name: str, function: Any, options: dict[str, Any]) -> Any:
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise InvalidInputError(f"{name} cannot be called with {options or 'no arguments'}: {error}") from None
    except ValueError:
        pass  # what is written in C may have no signature
    try:
        return function(**options)
    except BsmodelError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidInputError(f"{name} fails when it is called, at {line_of(error, _folder(name))}: {said(error)}") from None


def _folder(name: str) -> str:
    """Where the user's own lines are: the folder of a file; of a module, it is not known."""
    place = name.rpartition(":")[0] or name
    return str(Path(place).parent) if place.endswith(".py") else ""


def _imported(place: str) -> ModuleType:
    if place.endswith(".py") and not Path(place).is_file():
        raise InvalidInputError(f"no such file: {place!r}")
    first = str(Path(place).parent) if place.endswith(".py") else ""
    sys.path.insert(0, first)
    try:
        return _run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except BsmodelError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ImportError) and not place.endswith(".py") and f"{place}.".startswith(f"{error.name}."):
            raise InvalidInputError(f"cannot import {place!r}: {error}") from None
        ends = ", which ends the process" if isinstance(error, SystemExit) else ""
        raise InvalidInputError(f"{line_of(error, _folder(place))}: {place} fails to run: {said(error)}{ends}") from None
    finally:
        if first in sys.path:
            sys.path.remove(first)


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
