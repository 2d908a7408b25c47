# SPDX-License-Identifier: Apache-2.0
"""Many workloads, recipes, cards, device counts and goals at once: rows in a defined order, on any executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from bsmodel.hardware import Gpu, defaults
from bsmodel.studies.grid import Axis, Goal, cells
from bsmodel.studies.jobs import worked
from bsmodel.studies.kept import Ledger
from bsmodel.studies.tables import Study
from bsmodel.tape import Tape
from bsmodel.training import Training


@dataclass(frozen=True)
class Progress:
    """How far a study is: rows that are known, of how many, and what has just been recorded, if anything."""

    done: int
    total: int
    recorded: Tape | None = None
    reason: BaseException | None = None  # why a recording failed


Watch = Callable[[Progress], None]


def study(
    workloads: Iterable[Axis],
    trainings: Iterable[Training | Mapping[str, object]] = (),
    gpus: Iterable[str | Gpu] | None = None,
    devices: Iterable[int] = (1,),
    goals: Iterable[Goal] = (Goal(),),
    *,
    parallel: Iterable[str] = ("ddp",),
    executor: Executor | None = None,
    out: str | Path | None = None,
    caching: bool | None = None,
    watch: Watch | None = None,
) -> Study:
    """A row for every combination of workload, recipe, GPU, number of devices, kind of sharing the work, and goal; workloads change slowest, goals fastest.

    `workloads`: names as `Workload.named` takes them, `Source.of(name, seq_len=...)`, `Workload`s, recorded tapes, or
    for several families of kernels a list of tapes (`bsmodel.tape.load_all`). `trainings`: whole
    recipes, or mappings of the fields that differ from the workload's own (default: its own); one with a `parallel` is for its devices.
    `parallel`: kinds of `bsmodel.parallel.KINDS` with PyTorch's defaults, for each number of `devices` above one. `gpus`: names or rows (default: the four of
    the catalogue). What cannot be answered is a row with its reason, not the end.

    A recording is made once for all cards that run the same kernels. Work goes to `executor`, any `concurrent.futures.Executor`
    (`dask.distributed`'s `Client.get_executor()`, Ray's, MPI's); by default to a pool of processes where that pays, else it is done here.
    `out`: a file of JSON lines, appended to as rows come; a study that was interrupted goes on from it. `caching`: keep recordings and
    answers in the user's cache folder (None: but for the user's own Python files; False: neither keep nor look up).
    Raises `InvalidInputError` for an empty axis, a GPU that is named twice or a number that is none, `UnknownNameError` for a GPU that is none.
    """
    asked = cells(workloads, trainings, defaults() if gpus is None else gpus, devices, parallel, goals)
    ledger = Ledger.of(asked, out, caching)
    missing = [cell for cell in asked if cell.key not in ledger.rows]
    tell = watch or in_silence
    tell(Progress(len(ledger.rows), len(ledger.asked)))
    for cell, row in worked(missing, executor, caching, lambda tape, reason: tell(Progress(len(ledger.rows), len(ledger.asked), tape, reason))):
        ledger.add(cell, row)
        tell(Progress(len(ledger.rows), len(ledger.asked)))
    return Study(tuple(ledger.rows[cell.key] for cell in asked))


def in_silence(progress: Progress) -> None:
    """For callers who do not watch."""
