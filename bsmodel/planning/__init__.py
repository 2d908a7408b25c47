# SPDX-License-Identifier: Apache-2.0
"""From the largest batch to what to run: the split, the learning rate, steps, hours and money."""

from bsmodel.planning.advice import EVENLY, LARGE_BATCH, trains_in_part
from bsmodel.planning.learning_rate import learning_rate, warmup_steps
from bsmodel.planning.money import Timing, ranked, why_untimed
from bsmodel.planning.noise import Endless, NoiseScale, noise_scale
from bsmodel.planning.plan import MOST_EPOCHS, Plan, Rung, ladder, peaks_around, plan, require_together
from bsmodel.planning.splits import Split, eligible, fastest, power_of_two_at_most, splits

__all__ = (
    "EVENLY",
    "LARGE_BATCH",
    "MOST_EPOCHS",
    "Endless",
    "NoiseScale",
    "Plan",
    "Rung",
    "Split",
    "Timing",
    "eligible",
    "fastest",
    "ladder",
    "learning_rate",
    "noise_scale",
    "peaks_around",
    "plan",
    "power_of_two_at_most",
    "ranked",
    "require_together",
    "splits",
    "trains_in_part",
    "warmup_steps",
    "why_untimed",
)
