# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin, `pytest_plugins = ["bsmodel.testing"]`: tests of how much memory a training takes, with baselines kept beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bsmodel.errors import InvalidInputError
from bsmodel.gate import Allowance, Baseline, Verdict, check
from bsmodel.hardware import Gpu
from bsmodel.memory import Fit, fit
from bsmodel.recording import new_tape, recorded
from bsmodel.tape import Tape, require_agreement
from bsmodel.units import shown
from bsmodel.workloads import Source, Workload

_RENEW = "--renew-baseline"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag that writes baselines."""
    parser.getgroup("bsmodel").addoption(_RENEW, action="store_true", help="write the baselines of training_memory anew, compare with none")


@dataclass(frozen=True)
class TrainingMemory:
    """The training of a workload, whose memory is tested. `place`: the test's file without its suffix, the folder of its baselines, and the test's name."""

    workload: str | Source | Workload | Tape
    changes: Mapping[str, Any]
    place: Path
    renew: bool
    compared: set[Path] = field(repr=False)  # baselines that this test has used
    _tapes: dict[tuple[int, int], Tape] = field(default_factory=dict, repr=False)

    def fits(self, gpu: str | Gpu, batch: int) -> Verdict:
        """Fails the test where micro-batch `batch` does not train on this card; else returns what was found."""
        __tracebackhide__ = True
        return _passed(check(self._fit(gpu), require_batch=batch))

    def no_worse_than_baseline(self, gpu: str | Gpu, batch: int, allow: str | Allowance = "1%") -> Verdict:
        """Fails the test where peak memory and step time at `batch`, or the largest batch, are worse than the baseline by more than `allow`, by default 1 %.

        The baseline is `test_file/test_name-gpu-batch.json` beside `test_file.py`; `pytest --renew-baseline` writes it. Raises `InvalidInputError` where
        it is of another workload, recipe or card.
        """
        __tracebackhide__ = True
        found = self._fit(gpu)
        path = self.place.with_name(f"{self.place.name}-{found.gpu.id}-{batch}.json")
        if path in self.compared:
            raise InvalidInputError(
                f"{self.place.name} compares two trainings at batch {batch} on {found.gpu.id}, and has one baseline for that; make it two tests"
            )
        self.compared.add(path)
        if self.renew:
            path.parent.mkdir(parents=True, exist_ok=True)
            Baseline.of(found, batch).save(path)
        elif not path.exists():
            pytest.fail(f"there is no baseline {path}; write it with pytest {_RENEW}, and commit it", pytrace=False)
        return _passed(check(found, against=Baseline.load(path), allow=allow))

    def _fit(self, gpu: str | Gpu) -> Fit:
        card = Gpu.named(gpu) if isinstance(gpu, str) else gpu
        if card.kernel_family not in self._tapes:
            self._tapes[card.kernel_family] = _tape(self.workload, self.changes, card)
        return fit(self._tapes[card.kernel_family], card)


@pytest.fixture
def training_memory(request: pytest.FixtureRequest) -> Callable[..., TrainingMemory]:
    """`training_memory(workload, optimizer="adamw", ...)`: a `Workload`, a name as `Workload.named` takes it, a `Source` or a `Tape`, and the fields of
    the recipe that are not its own.
    """
    place = request.path.with_suffix("") / _file_name(request.node.nodeid.partition("::")[2])
    compared = set[Path]()

    def of(workload: str | Source | Workload | Tape, **changes: Any) -> TrainingMemory:
        if not isinstance(workload, str | Source | Workload | Tape):
            raise InvalidInputError(f"training_memory is asked of {shown(workload)}; expected a bsmodel.Workload, a name, a Source or a Tape")
        return TrainingMemory(workload, changes, place, bool(request.config.getoption(_RENEW)), compared)

    return of


def _file_name(test: str) -> str:
    """Of `Class::test[id]` as `Class.test-id`, what no file name should have as in addresses, `%2F`: two tests never share one."""
    name, bracket, parameters = test.partition("[")
    return name.replace("::", ".") + (f"-{quote(parameters.removesuffix(']'), safe='')}" if bracket else "")


def _tape(workload: str | Source | Workload | Tape, changes: Mapping[str, Any], gpu: Gpu) -> Tape:
    if isinstance(workload, Tape):
        require_agreement(workload, changes)
        return workload
    return (
        new_tape(workload, changes, gpu)
        if isinstance(workload, Workload)
        else recorded(Source.of(workload) if isinstance(workload, str) else workload, changes, gpu)
    )


def _passed(found: Verdict) -> Verdict:
    """The verdict, which is the message of a test that fails."""
    __tracebackhide__ = True
    if not found.passes:
        pytest.fail(str(found), pytrace=True)
    return found
