# SPDX-License-Identifier: Apache-2.0
"""What is wrong with code that is not ours, in one line: whose it is, where it stands, and what mends it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

_OURS = str(Path(__file__).parent.parent)
_COMPILED_FOR_TORCH = ("torchvision", "torchaudio", "torchtext")
_MOST_LETTERS = 300


def said(error: BaseException) -> str:
    """The type of an error and its message, on one line, cut where it is long."""
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message if len(message) <= _MOST_LETTERS else f'{message[:_MOST_LETTERS]}...'}"


def line_of(error: BaseException, folder: str = "") -> str:
    """`file:line` an error comes from: the deepest line in `folder`, else outside of this package and of Python's importing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    foreign = [place for place in places if not place[0].startswith((_OURS, "<"))]
    inside = [place for place in foreign if place[0].startswith(folder)]
    return "{}:{}".format(*(inside or foreign)[-1]) if foreign else "an unknown line"


def broken_import(error: BaseException) -> str | None:
    """Which package fails to import, and the remedy, where that is what an error comes from; None where it is not.

    Libraries import each other lazily, and say that they themselves fail where another one does: the innermost error tells whose code was
    running when it was raised, at the deepest line that a module runs while it is imported.
    """
    for cause in _causes(error):
        modules = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_name == "<module>"]
        foreign = [name.partition(".")[0] for name in modules if name.partition(".")[0] not in ("", "__main__", "bsmodel", "torch")]
        if foreign:
            return _remedy(foreign[-1], cause)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it comes from, the innermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    yield from reversed(chain)


def _remedy(package: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != package:
        return f"{package} fails to import here: it needs {error.name.partition('.')[0]}, which is not installed"
    if package in _COMPILED_FOR_TORCH:
        import torch

        version = torch.__version__.partition("+")[0]
        reason = f"its version does not match torch {version}; reinstall the one made for it, or pip uninstall {package}"
        return f"{package} fails to import here ({said(error)}): {reason}"
    return f"{package} fails to import here ({said(error)}); reinstall it, or pip uninstall {package} where nothing needs it"
