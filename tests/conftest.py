# SPDX-License-Identifier: Apache-2.0
"""Fixtures: one recording of a small model, shared, and folders of their own."""

import functools
import json
import os
from multiprocessing import forkserver

import pytest
from hypothesis import settings

import bsmodel
from bsmodel.studies.executors import forking
from tests.models import SGD, workload

collect_ignore = ["projects"]  # of users, run as theirs by the tests

settings.register_profile("bsmodel", deadline=None)  # speed is a matter of benchmarks/
settings.load_profile("bsmodel")


@pytest.fixture(scope="session", autouse=True)
def own_surroundings(tmp_path_factory):
    """What is recorded is kept in folders of these tests, what others kept is not seen, and nobody's window decides how wide a table is.

    Processes that share the tests share what they record, and those that record for them have imported the models' libraries once.
    """
    run, shared = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("BSMODEL_CACHE_DIR", str((run.parent if shared else run) / "cache"))
        patch.setenv("BSMODEL_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        if shared:
            forking(("transformers", "diffusers"))
            forkserver.ensure_running()
        yield


@pytest.fixture(scope="session")
def a100():
    return bsmodel.Gpu.named("a100-40gb")


@pytest.fixture(scope="session")
def named_tape(a100):
    """The recording of a named workload with its own recipe, made once."""

    @functools.cache
    def record(name):
        workload = bsmodel.Workload.named(name)
        return bsmodel.trace(workload, workload.training, a100)

    return record


@pytest.fixture(scope="session")
def tape(a100):
    return bsmodel.trace(workload(), SGD, a100)


@pytest.fixture
def config(tmp_path):
    """Writes fields as a configuration and gives the folder that holds it."""

    def write(content, name="model"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return str(folder)

    return write
