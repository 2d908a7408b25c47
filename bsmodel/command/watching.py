# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a line for each recording, and on a terminal what is left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from bsmodel.command.terminal import escaped
from bsmodel.errors import InternalError
from bsmodel.studies import Progress, Watch


@contextlib.contextmanager
def watching(what: str = "answers") -> Iterator[Watch]:
    """Shows what a study has recorded, and where stderr is a terminal how many rows are left and for how long."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console, started = Console(stderr=True, highlight=False, soft_wrap=True), time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)

        def watch(progress: Progress) -> None:
            tape = progress.recorded
            if tape is not None:
                seconds = time.perf_counter() - started
                family = f"{escaped(tape.name)} ({tape.precision}, {tape.optimizer}) for compute capability {tape.gpu.compute_capability}"
                console.print(f"recorded {family}: {len(tape.categories):,} allocations, {seconds:.1f} s after the start", markup=False)
            bar.update(task, completed=progress.done, total=progress.total)

        yield watch


def until_a_defect(watch: Watch) -> Watch:
    """Watches, and raises the first defect of this package: what is asked of one model then has no answer."""

    def stops(progress: Progress) -> None:
        if isinstance(progress.reason, InternalError):
            raise progress.reason
        watch(progress)

    return stops
