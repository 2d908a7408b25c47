# SPDX-License-Identifier: Apache-2.0
"""Fixtures: one recording of a small model, shared."""

import pytest
from hypothesis import settings

import bsmodel
from tests.models import SGD, workload

settings.register_profile("bsmodel", deadline=None)  # speed is a matter of benchmarks/
settings.load_profile("bsmodel")


@pytest.fixture(scope="session")
def a100():
    return bsmodel.Gpu.named("a100-40gb")


@pytest.fixture(scope="session")
def tape(a100):
    return bsmodel.trace(workload(), SGD, a100)
