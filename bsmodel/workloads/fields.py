# SPDX-License-Identifier: Apache-2.0
"""The fields of a `config.json`: read within bounds, and refused by name where no model could be built from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.units import MiB, format_bytes, shown

MOST_BYTES = 4 * MiB  # the names of 22,000 classes take 1.5 MiB
MOST_DEPTH = 16  # a configuration in a configuration is three deep
# What a field may be at most, by what it is called: the deepest network published has a thousand layers (Wang 2022, arXiv 2203.00555), libraries
# make a name for every label, and no other size comes near 2^24; the widest published layers have 2^17 columns, the longest context 10^7 positions.
_BOUNDS = (
    (re.compile(r"layers?(_per_block)?$|depths?$"), 1000),
    (re.compile(r"(num|n)_(labels|classes)$"), 1 << 20),
    (re.compile(r"theta|seed|_id$|_ids$"), 1 << 62),
    (re.compile(""), 1 << 24),
)
UNKNOWN = object()  # the usual value of a field that a model does not read
_SIGNED = re.compile(r"_ids?$|index|indices|window|axis$|offset|shift")  # -1 and the like have a meaning


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a configuration file. Raises `InvalidInputError` for a file that cannot be read, is too large, or holds no JSON object."""
    name = repr(str(path))
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise InvalidInputError(f"{name} is no configuration: it is larger than {format_bytes(MOST_BYTES)}")
    try:
        fields = json.loads(content, parse_constant=_constant)
    except RecursionError:
        raise InvalidInputError(f"{name} is no configuration: it is nested deeper than {MOST_DEPTH} levels") from None
    except ValueError as error:
        raise InvalidInputError(f"{name} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{name} holds {shown(fields)}; expected the fields of a transformers or diffusers model")
    if _depth(fields) > MOST_DEPTH:
        raise InvalidInputError(f"{name} is no configuration: it is nested deeper than {MOST_DEPTH} levels")
    return fields


def _constant(text: str) -> float:
    """Infinity is a limit in some configurations; NaN is nothing."""
    if text == "NaN":
        raise ValueError("NaN is no value of a field")
    return float(text)


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; a level too many is enough to know."""
    depth, level = 0, [value]
    while level and depth <= MOST_DEPTH:
        depth += 1
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, (dict, list))]
    return depth


def require_sizes(fields: Mapping[str, Any], default: Callable[[str], Any], where: str, prefix: str = "") -> None:
    """Raises `InvalidInputError` for a number that no model of this kind has: negative, or absurdly large.

    `default` gives a field's usual value, `UNKNOWN` for one that the model does not read.
    """
    for name, value in fields.items():
        usual = default(name)
        if isinstance(value, dict) and not isinstance(usual, (int, float)):
            inner = usual if isinstance(usual, dict) else getattr(usual, "__dict__", {})
            require_sizes(value, lambda key, inner=inner: inner.get(key, UNKNOWN), where, f"{prefix}{name}.")  # type: ignore[misc]
        elif usual is not UNKNOWN:
            _require_size(f"{prefix}{name}", value, usual, where)


def _require_size(name: str, value: Any, usual: Any, where: str) -> None:
    numbers = list(_integers(value))
    most = next(most for pattern, most in _BOUNDS if pattern.search(name))
    if (sum(numbers) if name.endswith("depths") else max(numbers, default=0)) > most:
        raise InvalidInputError(f"{where}: {name} is {shown(value)}; expected at most {most}")
    if min(numbers, default=0) < 0 and min(_integers(usual), default=-1) >= 0 and not _SIGNED.search(name):
        raise InvalidInputError(f"{where}: {name} is {shown(value)}; expected no negative number")
    if isinstance(value, bool) and isinstance(usual, int) and not isinstance(usual, bool):
        raise InvalidInputError(f"{where}: {name} is {value}; expected a whole number such as {usual}")


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _integers(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def zeros_among(fields: Mapping[str, Any], default: Callable[[str], Any]) -> str:
    """A hint at fields that are zero and usually are not; empty where there are none."""
    names = [name for name, value in fields.items() if value == 0 and not isinstance(value, bool) and isinstance(default(name), int) and default(name) > 0]
    return f" ({', '.join(f'{name} is 0' for name in names)})" if names else ""
