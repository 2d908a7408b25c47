# SPDX-License-Identifier: Apache-2.0
"""Tensors that a library caches from one call to the next: what one recording has left must not be there in another, which makes its own."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Iterable
from typing import Any

from bsmodel.errors import UntraceableError

_OTHERS = sys.stdlib_module_names | {"torch", "bsmodel"}  # whose caches hold no tensors of a model
_LEFT: dict[int, weakref.ref[Any]] = {}  # storages of earlier recordings that are still there
_met: list[bool] = []  # whether one has been met


class CachedError(UntraceableError):
    """A tensor of an earlier recording is used in this one."""


def leave(storages: Iterable[tuple[int, Any]]) -> None:
    """Remember storages that outlive a recording."""
    for key, storage in storages:
        _LEFT[key] = weakref.ref(storage, functools.partial(_LEFT.pop, key))


def refuse(key: int) -> None:
    """Raises `CachedError` for a storage of an earlier recording; from then on every recording begins without caches."""
    if key in _LEFT:
        _met.append(True)
        raise CachedError("a tensor of an earlier recording is kept in a cache that is no functools.lru_cache; clear it before the next")


def clear() -> None:
    """Empty the caches of functions (`functools.lru_cache`) of libraries and users, once one has been met. Looking through all objects takes 0.2 s."""
    for found in [each for each in gc.get_objects() if type(each) is functools._lru_cache_wrapper] if _met else ():
        root = (getattr(found, "__module__", None) or "").partition(".")[0]
        if root not in _OTHERS:
            found.cache_clear()
