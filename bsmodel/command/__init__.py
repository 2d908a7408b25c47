# SPDX-License-Identifier: Apache-2.0
"""Arguments in; tables, JSON and files out; no arithmetic and no orchestration of its own."""

from bsmodel.command.explain import category_cells, module_cells
from bsmodel.command.gpus import gpu_cells
from bsmodel.command.main import main, run
from bsmodel.command.page_tables import written
from bsmodel.command.plan import plan_cells
from bsmodel.command.predict import peak_cells
from bsmodel.command.study import study_cells
from bsmodel.command.study_page import offers_of
from bsmodel.command.wording import time_cells, uncounted

__all__ = (
    "category_cells",
    "gpu_cells",
    "main",
    "module_cells",
    "offers_of",
    "peak_cells",
    "plan_cells",
    "run",
    "study_cells",
    "time_cells",
    "uncounted",
    "written",
)
