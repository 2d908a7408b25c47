# SPDX-License-Identifier: Apache-2.0
"""Which line of the user's code, or of a library under it, an operation or an error comes from."""

from __future__ import annotations

import dis
import functools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGE = str(Path(__file__).parent.parent) + os.sep
_OUTERMOST = tuple(str(Path(__file__).with_name(name)) for name in ("loop.py", "placement.py", "tracing.py"))  # what calls the user's functions
# Between an operator and whoever asked for it.
_PLUMBING = tuple(_TORCH + name for name in ("_tensor.py", "_tensor_str.py", "overrides.py", "_ops.py", "functional.py", "utils" + os.sep))

_MOST_DETAIL = 240  # characters of another's message


@functools.cache
def _kind(filename: str) -> str:
    if filename.startswith(_OUTERMOST):
        return "outermost"
    if filename.startswith((_PACKAGE, "<", *_PLUMBING)):
        return "between"
    return "torch" if filename.startswith(_TORCH) else "user"


def calling_line() -> str | None:
    """File and line of the nearest running frame that belongs neither to torch nor to this package; None in a backward pass of torch's own."""
    frame = _nearest(sys._getframe(1), ("user", "outermost"))
    return _at(frame) if frame is not None and _kind(frame.f_code.co_filename) == "user" else None


def reading_line() -> str | None:
    """The same, for who reads a value; None where torch itself does (a loss scaler, an optimizer)."""
    frame = _nearest(sys._getframe(1), ("user", "outermost", "torch"))
    return _at(frame) if frame is not None and _kind(frame.f_code.co_filename) == "user" else None


def torch_line() -> str:
    """The same, where torch itself is meant."""
    frame = _nearest(sys._getframe(1), ("user", "outermost", "torch"))
    return "an unknown line" if frame is None else _at(frame)


def complaint(error: BaseException, asked: Sequence[str]) -> str | None:
    """The last of the lines that asked about a value in the file whose own Python code raised this error, as a check does; None where an operation did."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] not in ("RAISE_VARARGS", "RERAISE"):
        return None
    return next((line for line in reversed(asked) if line.rpartition(":")[0] == trace.tb_frame.f_code.co_filename), None)


def _nearest(frame: FrameType | None, kinds: tuple[str, ...]) -> FrameType | None:
    while frame is not None and _kind(frame.f_code.co_filename) not in kinds:
        frame = frame.f_back
    return frame


def _at(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def raising_line(error: BaseException) -> str | None:
    """File and line of the user's code, or of the library, that an error comes from; None where torch's backward raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _kind(frame.filename) == "user"]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def line_in(stack: str) -> str | None:
    """The innermost line of the user's code in a printed stack, such as anomaly detection warns with."""
    found = [(name, number) for name, number in re.findall(r'File "([^"]+)", line (\d+)', stack)]
    start = max((position for position, (name, _) in enumerate(found) if _kind(name) == "outermost"), default=-1)
    users = [f"{name}:{number}" for name, number in found[start + 1 :] if _kind(name) == "user"]
    return users[-1] if users else None


def first_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if len(lines[0]) <= _MOST_DETAIL else lines[0][: _MOST_DETAIL - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
