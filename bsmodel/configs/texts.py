# SPDX-License-Identifier: Apache-2.0
"""Settings as the text of a file: YAML, JSON, arguments of a command line, or Python, each with what is said of them where it has comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")  # text that YAML reads as it stands, but for these words
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "none", "y", "n"}


def as_yaml(settings: Settings, said: Sequence[str]) -> str:
    """A YAML mapping, as versions 1.1 and 1.2 of it read the same, below its comments."""
    return _commented(said, _block(settings, ""))


def as_json(settings: Settings, said: Sequence[str]) -> str:
    """A JSON object, which has no room for what is said."""
    return json.dumps(settings, indent=2, allow_nan=False) + "\n"


def as_arguments(settings: Settings, said: Sequence[str]) -> str:
    """Arguments of a command line, one a line: `--name value`, `name=value`, or what stands alone; below their comments."""
    joined = ((name, " " if name.startswith("--") else "=", value) for name, value in settings.items())
    return _commented(said, (name if value is None else f"{name}{between}{_word(value)}" for name, between, value in joined))


def as_python(settings: Settings, said: Sequence[str]) -> str:
    """A module that sets one name to each of the settings, which are expressions, below its comments and imports."""
    return _commented(said, (line if name.startswith("import ") else f"{name} = {line}" for name, line in settings.items()))


def _commented(said: Sequence[str], lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in (*(f"# {_printed(' '.join(one.split()))}" for one in said), *lines))


def _printed(text: str) -> str:
    """Text with escapes for what is no letter of any kind, as YAML and Python have them."""
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" if ord(one) <= 0xFFFF else f"\\U{ord(one):08x}" for one in text)


def _block(settings: Settings, indent: str) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_scalar(name)}:"
            yield from _block(value, f"{indent}  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            yield f"{indent}{_scalar(name)}:"
            for one in value:
                first, *others = _block(one, f"{indent}    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from others
        else:
            yield f"{indent}{_scalar(name)}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    """A value on one line. Text stands in quotes unless no reader could take it for something else, and a float always has its point."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else _printed(json.dumps(value, ensure_ascii=False))
    if isinstance(value, float):
        digits, exponent, power = repr(value).partition("e")
        return digits + ("" if "." in digits else ".0") + exponent + power  # 1e-05 would be text
    if isinstance(value, list | tuple):
        return f"[{', '.join(_scalar(one) for one in value)}]"
    return json.dumps(value)


def _word(value: Any) -> str:
    """A value as one word of a command line."""
    return str(value).lower() if isinstance(value, bool) else f"[{','.join(value)}]" if isinstance(value, list | tuple) else str(value)
