# SPDX-License-Identifier: Apache-2.0
"""The Chromium that is installed here, for tests, benchmarks and pictures of pages."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)  # or None where there is none
