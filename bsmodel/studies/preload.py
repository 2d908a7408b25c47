# SPDX-License-Identifier: Apache-2.0
"""Imported first by the server that a pool's processes are forked from: garbage collection would take a tenth of its imports."""

import gc

gc.disable()
