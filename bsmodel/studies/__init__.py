# SPDX-License-Identifier: Apache-2.0
"""Many workloads, recipes, cards and device counts asked at once, on any executor."""

from bsmodel.studies.advise import Advice, advise
from bsmodel.studies.by_length import ByLength, LengthRow, by_length, doublings, require_range
from bsmodel.studies.executors import pool
from bsmodel.studies.grid import Goal, for_card, one_of_each, require_asked_about
from bsmodel.studies.padded import Padded, PaddedRow, padded, padded_to_most, whole_steps
from bsmodel.studies.recordings import lengths, sides, tapes
from bsmodel.studies.remedies import written
from bsmodel.studies.rows import Recorded, Row, of_fit
from bsmodel.studies.study import Progress, Watch, study
from bsmodel.studies.tables import SCHEMA_VERSION, Study

__all__ = (
    "SCHEMA_VERSION",
    "Advice",
    "ByLength",
    "Goal",
    "LengthRow",
    "Padded",
    "PaddedRow",
    "Progress",
    "Recorded",
    "Row",
    "Study",
    "Watch",
    "advise",
    "by_length",
    "doublings",
    "for_card",
    "lengths",
    "of_fit",
    "one_of_each",
    "padded",
    "padded_to_most",
    "pool",
    "require_asked_about",
    "require_range",
    "sides",
    "study",
    "tapes",
    "whole_steps",
    "written",
)
