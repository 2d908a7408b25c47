# SPDX-License-Identifier: Apache-2.0
"""A prediction beside what was measured, and where the measurement lies in the interval that was predicted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """One figure of one case, predicted and measured, in one unit. `low` and `high` are the ends of what was predicted, None where none is said."""

    case: str
    figure: str
    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def lies(self) -> str:
        """Where the measurement lies: "inside" the interval, "below" or "above" it; "" where there is none. An end that is not said is open."""
        if self.low is None and self.high is None:
            return ""
        if self.high is not None and self.measured > self.high:
            return "above"
        return "below" if self.low is not None and self.measured < self.low else "inside"
