# SPDX-License-Identifier: Apache-2.0
"""Imported first by the server that a pool's processes are forked from."""

import gc
import os
import sys
from types import TracebackType

from bsmodel.workloads import silence

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its remarks on configurations would stand in the middle of progress
silence()  # so would those of other libraries
gc.disable()  # collecting would take a tenth of the imports that follow


def _unless_abandoned(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Errors as usual, but for a process whose starter has gone meanwhile, taking its semaphores with it."""
    if not issubclass(kind, FileNotFoundError):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _unless_abandoned
