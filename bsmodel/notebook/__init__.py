# SPDX-License-Identifier: Apache-2.0
"""What values show of themselves in a notebook: the tables that the command prints, and the charts of its pages."""

from bsmodel.notebook.showing import bundle, chart

__all__ = ("bundle", "chart")
