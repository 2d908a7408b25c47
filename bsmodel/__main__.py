# SPDX-License-Identifier: Apache-2.0
"""`python -m bsmodel`."""

import sys

from bsmodel.cli import run

sys.exit(run())
