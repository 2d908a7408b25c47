# SPDX-License-Identifier: Apache-2.0
"""Bytes, seconds and FLOPs: multiply by a unit on the way in, divide on the way out. Numbers that callers give are read here."""

import contextlib
import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

KB = 1_000
MB = 1_000_000
GB = 1_000_000_000
TERA = 1_000_000_000_000

MOST_COUNT = 1 << 53  # up to which a double holds every whole number
_INTEGRAL, _REAL = (int, Integral), (float, int, Real)  # Python's own first: of them nothing is asked but their type


def format_bytes(size_bytes: float) -> str:
    """Render a number of bytes in the largest binary unit that keeps it above one, e.g. `23.64 GiB`."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if abs(size_bytes) >= unit:
            return f"{size_bytes / unit:.2f} {name}"
    return f"{size_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """Render a time in the unit that suits it: `12.3 ms`, `4.56 s`, `7.8 h`."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def parse_bytes(text: str) -> int:
    """Read `24GiB`, `40 GB`, `512MiB` or a plain number of bytes.

    Raises `InvalidInputError` where the text is not a positive number with one of those units.
    """
    units = {"GIB": GiB, "MIB": MiB, "KIB": KiB, "GB": GB, "MB": MB, "KB": KB, "B": 1, "": 1}
    stripped = text.strip()
    number = stripped.rstrip("BbGgIiKkMm ")
    unit = stripped[len(number) :].strip().upper()
    try:
        size_bytes = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size_bytes = 0
    if size_bytes <= 0:
        raise InvalidInputError(f"cannot read {text!r} as a size: expected a positive number with B, KiB, MiB, GiB, KB, MB or GB, e.g. 24GiB")
    return size_bytes


def whole(name: str, value: object, least: int = 1, most: int = MOST_COUNT) -> int:
    """`value` as an `int`: whole numbers of Python and numpy, and floats that are whole, from `least` to `most`.

    Raises `InvalidInputError`, one line that names `name`, for everything else: fractions, NaN, booleans, text.
    """
    number: Any = value
    if not isinstance(value, bool) and isinstance(value, _REAL) and (isinstance(number, _INTEGRAL) or math.isfinite(number)):
        if number == int(number) and least <= number <= most:
            return int(number)
        if number > most:
            raise InvalidInputError(f"{name} is {shown(value)}; expected a whole number from {least} to {most}")
    limit = f"of at least {least}" if most == MOST_COUNT else f"from {least} to {most}"
    raise InvalidInputError(f"{name} is {shown(value)}; expected a whole number {limit}")


def wholes(name: str, values: Any, least: int = 1, most: int = MOST_COUNT) -> NDArray[np.int64]:
    """One or several whole numbers, each as `whole` takes them, as an int64 array of their shape."""
    try:
        given = values if isinstance(values, np.ndarray) else np.asarray(values, object)  # numpy would take True for 1
    except (ValueError, TypeError):
        raise InvalidInputError(f"{name} is {shown(values)}; expected a whole number, or an array of them") from None
    if given.dtype.kind in "iu" and (not given.size or (least <= given.min() and given.max() <= most)):
        return given.astype(np.int64)
    each = [whole(name, item, least, most) for item in given.ravel().tolist()]
    return np.array(each, np.int64).reshape(given.shape)


def finite(name: str, value: object, least: float | None = None, above: float | None = None, most: float | None = None) -> float:
    """`value` as a `float`: a finite number of Python or numpy, of at least `least`, greater than `above` and at most `most`.

    Raises `InvalidInputError`, one line that names `name`, for everything else: infinities, NaN, booleans, text.
    """
    if not isinstance(value, bool) and isinstance(value, _REAL):
        with contextlib.suppress(OverflowError):
            number = float(value)
            if math.isfinite(number) and (least is None or number >= least) and (above is None or number > above) and (most is None or number <= most):
                return number
    limit = (f" of at least {least:g}" if least is not None else "") + (f" above {above:g}" if above is not None else "")
    limit += f"{' and' if limit else ' of'} at most {most:g}" if most is not None else ""
    raise InvalidInputError(f"{name} is {shown(value)}; expected a finite number{limit}")


def shown(value: object) -> str:
    """A value as an error quotes it: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # numbers of thousands of digits refuse to be text
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 60 else f"{text[:57]}..."
