# SPDX-License-Identifier: Apache-2.0
"""Kernels that Triton compiles: launched, they do nothing. What they write into is allocated around them, in Python, which is recorded."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

UNCOUNTED = "the time and arithmetic of kernels that Triton compiles"


def launches(note: Callable[[str], object]) -> list[tuple[Any, str, Any]]:
    """What is to be replaced, where Triton is installed, for its kernels to be launched without a device; `note` is told that they were."""
    if importlib.util.find_spec("triton") is None:
        return []
    kernels = importlib.import_module("triton.runtime.jit").KernelInterface  # that is what tunes them, too

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            note(UNCOUNTED)

        return launch

    return [(kernels, "__getitem__", launcher)]
