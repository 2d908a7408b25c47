# SPDX-License-Identifier: Apache-2.0
"""Holds predictions against a real CUDA device: measures, compares, reports, and calibrates a row of the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bsmodel.validation.cases import recipe_words

if TYPE_CHECKING:
    from bsmodel.validation.device import Measurement, is_out_of_memory, measure
    from bsmodel.validation.environment import card_here, environment_here
    from bsmodel.validation.gradients import gradients_agree

__all__ = ("Measurement", "card_here", "environment_here", "gradients_agree", "is_out_of_memory", "measure", "recipe_words")

_HOMES = {
    "Measurement": "device",
    "card_here": "environment",
    "environment_here": "environment",
    "gradients_agree": "gradients",
    "is_out_of_memory": "device",
    "measure": "device",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # what needs torch is imported when it is asked for
        import importlib

        return getattr(importlib.import_module(f"bsmodel.validation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bsmodel.validation' has no attribute {name!r}")
