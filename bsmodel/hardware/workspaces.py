# SPDX-License-Identifier: Apache-2.0
"""Which workspaces that cuDNN's planner wants for a convolution a card really takes: `workspaces.toml`."""

from __future__ import annotations

import fnmatch
import functools
import itertools
from datetime import date
from typing import Literal

from pydantic import Field

from bsmodel.hardware.rows import HardwareRow, catalogue_folder, read

_LAYOUTS, _ARITHMETICS = ("contiguous", "channels-last"), ("half", "tf32")
_SHAPES, _DIRECTIONS = ("dense", "first-layer", "grouped", "pointwise", "depthwise"), ("forward", "input gradient", "filter gradient")
# What a workspace is called: layout, arithmetic, shape of the filters, and which of a convolution's three kernels wants it.
PLANNED = tuple(" ".join(words) for words in itertools.product(_LAYOUTS, _ARITHMETICS, _SHAPES, _DIRECTIONS))
# With those that cards show and the planner does not want.
KINDS = (*PLANNED, *(f"contiguous {name} {shape} filter gradient" for name in ("fp32", "tf32") for shape in ("winograd", "narrow-winograd")))


class WorkspaceRule(HardwareRow):
    """What cards show of some kinds of workspace."""

    kinds: str = Field(examples=["contiguous tf32 *"])
    """A kind, or a pattern of kinds with `*`; the first rule that matches counts."""
    capabilities: tuple[str, ...] = Field(default=(), strict=False)
    """The compute capabilities it holds for; all where there is none."""
    taken: bool
    """Whether cards take it."""
    source: str = Field(min_length=1)
    """Where it was seen."""
    checked: date = Field(examples=[date(2026, 11, 1)])
    """The day it was looked up."""
    kind: Literal["measured", "reported", "derived"]
    """`derived`: concluded from other figures, see `note`."""
    note: str | None = None
    """How it was concluded, or what limits it."""


class _WorkspaceRules(HardwareRow):
    rules: tuple[WorkspaceRule, ...] = Field(strict=False)


@functools.cache
def rule_of(kind: str, capability: str) -> WorkspaceRule:
    """What is known of a kind of workspace, of `KINDS`, on cards of a compute capability."""
    rules = read(_WorkspaceRules, catalogue_folder() / "workspaces.toml").rules
    return next(rule for rule in rules if fnmatch.fnmatchcase(kind, rule.kinds) and capability in (rule.capabilities or (capability,)))
