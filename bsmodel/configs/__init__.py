# SPDX-License-Identifier: Apache-2.0
"""A plan as ready-made configurations: the files and arguments that those who train or rent machines read, written as text without any of them."""

from bsmodel.configs.frameworks import FRAMEWORKS, Emitted, FrameworkRule, emit, require_settings, rule_of

__all__ = ("FRAMEWORKS", "Emitted", "FrameworkRule", "emit", "require_settings", "rule_of")
