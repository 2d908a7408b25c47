# SPDX-License-Identifier: Apache-2.0
"""Holds predictions against a real CUDA device: measures, compares, reports, and calibrates a row of the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsmodel.validation.device import Measurement, is_out_of_memory, measure
    from bsmodel.validation.environment import card_here
    from bsmodel.validation.gradients import gradients_agree

__all__ = ("Measurement", "card_here", "gradients_agree", "is_out_of_memory", "measure")

_HOMES = {"Measurement": "device", "measure": "device", "is_out_of_memory": "device", "card_here": "environment", "gradients_agree": "gradients"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # what needs torch is imported when it is asked for
        import importlib

        return getattr(importlib.import_module(f"bsmodel.validation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bsmodel.validation' has no attribute {name!r}")
