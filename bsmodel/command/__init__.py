# SPDX-License-Identifier: Apache-2.0
"""Arguments in; tables, JSON and files out; no arithmetic and no orchestration of its own."""

from bsmodel.command.main import main, run

__all__ = ("main", "run")
