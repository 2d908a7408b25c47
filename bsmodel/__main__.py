# SPDX-License-Identifier: Apache-2.0
"""`python -m bsmodel`."""

from bsmodel.command import run

if __name__ == "__main__":  # processes of a pool read this file too
    run()
