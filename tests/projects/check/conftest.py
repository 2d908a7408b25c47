# SPDX-License-Identifier: Apache-2.0
"""What pytest knows in this project."""

pytest_plugins = ["bsmodel.testing"]
