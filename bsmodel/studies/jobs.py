# SPDX-License-Identifier: Apache-2.0
"""What there is to do in a study, in what order, and who does it."""

from __future__ import annotations

import contextlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import BsmodelError, InternalError
from bsmodel.recording import kept_tape, tape_path
from bsmodel.studies import executors
from bsmodel.studies.answering import answer, record, refused
from bsmodel.studies.grid import Cell
from bsmodel.studies.remedies import remedied, remedies
from bsmodel.studies.rows import Row
from bsmodel.tape import Tape
from bsmodel.workloads import Source


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work: record a family, or answer for the cells of one card from its tape."""

    cells: tuple[Cell, ...]
    tape: Tape | None = None

    def submit(self, executor: Executor, caching: bool | None) -> Future[Any]:
        first = self.cells[0]
        if self.tape is None:
            return executor.submit(record, first.subject, dict(first.recipe.changes), first.gpu, caching)  # type: ignore[arg-type]
        return executor.submit(answer, first.label, first.recipe, self.tape, first.gpu, [(cell.devices, cell.goal) for cell in self.cells])

    def refused(self, reason: BaseException | str) -> Iterator[tuple[Cell, Row]]:
        named = f"{self.cells[0].gpu.id} "  # of the card that stands for the family
        of_card = isinstance(reason, BsmodelError) and str(reason).startswith(named)
        for cell in self.cells:
            said = f"{cell.gpu.id} {str(reason).removeprefix(named)}" if of_card else reason
            yield cell, refused(cell.label, cell.recipe, cell.gpu, (cell.devices, cell.goal), said)

    def answers(self, tape: Tape) -> list[Job]:
        """A job for each card of the family, once its tape is there."""
        by_card: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_card.setdefault(cell.gpu.model_dump_json(), []).append(cell)
        return [Job(tuple(same), tape) for same in by_card.values()]


@dataclass(frozen=True)
class _Hands:
    """Who does the work: an executor, how many jobs it is given at once (None: all), and whether recordings are kept."""

    executor: Executor
    caching: bool | None
    most: int | None = None

    @staticmethod
    @contextlib.contextmanager
    def of(given: Executor | None, caching: bool | None, own: Callable[[], Executor]) -> Iterator[_Hands]:
        """The executor that is given, or one of our own for as long as it is needed."""
        if given is not None:
            yield _Hands(given, caching)
            return
        executor = own()
        try:  # with few jobs under way at once, answers do not wait for all recordings
            yield _Hands(executor, caching, most=2 * executors.processors())
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


Recorded = Callable[[Tape | None, BaseException | None], None]


def worked(missing: Sequence[Cell], given: Executor | None, caching: bool | None, tell: Recorded) -> Iterator[tuple[Cell, Row]]:
    """Each missing cell with its row, as they come; those in which nothing fits last, with what makes it fit.

    Where a card is asked about with several numbers of devices or ways to share, these are what may help, and nothing else is tried.
    """
    unfit: list[tuple[Cell, Row]] = []
    ways: dict[tuple[str, str], set[str]] = {}
    for cell in missing:
        ways.setdefault((cell.label, cell.gpu.id), set()).add(repr((cell.devices, dict(cell.recipe.changes).get("parallel"))))
    for cell, row in _answered(missing, given, caching, tell):
        if len(ways[cell.label, cell.gpu.id]) == 1 and remedies(cell, row):
            unfit.append((cell, row))
        else:
            yield cell, row

    def tell_made(tape: Tape | None, reason: BaseException | None) -> None:
        if reason is None:  # what a remedy fails for is nothing that was asked
            tell(tape, None)

    yield from remedied(unfit, lambda trials: _answered(trials, given, caching, tell_made))


def _answered(missing: Sequence[Cell], given: Executor | None, caching: bool | None, tell: Recorded) -> Iterator[tuple[Cell, Row]]:
    jobs, broken = list(_jobs(missing, caching)), list[Job]()
    with _Hands.of(given, caching, lambda: _own_executor(jobs)) as hands:
        yield from _run(jobs, hands, tell, broken)
    for job in broken:  # a process has died, and taken with it what others were at: each again, alone
        alone: list[Job] = []
        with _Hands.of(given, caching, executors.pool) as hands:
            yield from _run([job], hands, tell, alone)
        for lost in alone:
            yield from lost.refused(executors.LOST)


def _jobs(missing: Sequence[Cell], caching: bool | None) -> Iterator[Job]:
    """What there is to do first: a recording for each family, or its answers where that is there already."""
    families: dict[Any, list[Cell]] = {}
    for cell in missing:
        families.setdefault(cell.recording, []).append(cell)
    for same in families.values():
        job, subject = Job(tuple(same)), same[0].subject
        tape = subject if isinstance(subject, Tape) else _kept(same[0], caching)
        yield from [job] if tape is None else job.answers(tape)


def _kept(cell: Cell, caching: bool | None) -> Tape | None:
    if not isinstance(cell.subject, Source):
        return None
    return kept_tape(tape_path(cell.subject, dict(cell.recipe.changes), cell.gpu.kernel_family, caching))


def _own_executor(jobs: Sequence[Job]) -> Executor:
    recordings = [job for job in jobs if job.tape is None]
    answers = sum(len({cell.gpu.id for cell in job.cells}) for job in jobs)
    if not executors.pays(len(recordings), answers):
        return executors.Here()
    libraries = {job.cells[0].subject.library for job in recordings if isinstance(job.cells[0].subject, Source)}
    return executors.pool(sorted(filter(None, libraries)))


def _run(jobs: Iterable[Job], hands: _Hands, tell: Recorded, broken: list[Job]) -> Iterator[tuple[Cell, Row]]:
    """Submit jobs, and those that follow from them, until all are done; those whose process died are added to `broken`."""
    pending: dict[Future[Any], Job] = {}
    waiting = deque(jobs)
    while waiting or pending:
        while waiting and (hands.most is None or len(pending) < hands.most):
            job = waiting.popleft()
            pending[_submitted(job, hands)] = job
        wait(pending, return_when=FIRST_COMPLETED)
        for future in [future for future in pending if future.done()]:
            job = pending.pop(future)
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                broken.append(job)
            elif error is not None:
                reason = error if isinstance(error, BsmodelError) else InternalError.of(error)
                tell(None, reason)
                yield from job.refused(reason)
            elif job.tape is None:
                tell(future.result(), None)
                waiting.extendleft(reversed(job.answers(future.result())))  # before other recordings
            else:
                yield from zip(job.cells, future.result(), strict=True)


def _submitted(job: Job, hands: _Hands) -> Future[Any]:
    """The future of a job; a workload that cannot be sent elsewhere (functions within functions) is recorded here."""
    if job.tape is None and not isinstance(hands.executor, executors.Here) and not _can_be_sent(job):
        return job.submit(executors.Here(), hands.caching)
    try:
        return job.submit(hands.executor, hands.caching)
    except BrokenExecutor as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


def _can_be_sent(job: Job) -> bool:
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
        pickle.dumps((job.cells[0].subject, job.cells[0].recipe))
        return True
    return False
