# SPDX-License-Identifier: Apache-2.0
"""Whether a training still fits and is no worse than it was: pass or fail, in one line."""

from bsmodel.gate.allowance import Allowance
from bsmodel.gate.baseline import Baseline
from bsmodel.gate.verdict import Change, Growth, Required, Verdict, check

__all__ = ("Allowance", "Baseline", "Change", "Growth", "Required", "Verdict", "check")
