# SPDX-License-Identifier: Apache-2.0
"""`python -m bsmodel`."""

from bsmodel.cli import run

run()
