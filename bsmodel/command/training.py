# SPDX-License-Identifier: Apache-2.0
"""Progress of a trial on stderr: which run, its loss, its speed, and how long it still takes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from bsmodel.trials import Rung, Update, Watch


@contextlib.contextmanager
def training() -> Iterator[Watch]:
    """Shows each run of a trial as it goes on a terminal, and a line for each that is over, whether or not it made all its steps."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("trial", total=None)
        last: list[tuple[Rung, int, str]] = []

        def over() -> None:
            if last:
                console.print(last[0][2], markup=False)

        def watch(rung: Rung, seed: int, update: Update) -> None:
            speed = update.samples / update.seconds if update.seconds else 0.0
            said = f"batch {rung.batch:,}, seed {seed}: loss {update.loss:.4g}, {speed:,.4g} samples per s"
            bar.update(task, description=said, completed=update.step, total=rung.steps)
            if last and last[0][:2] != (rung, seed):  # another has begun
                over()
            last[:] = [(rung, seed, f"{said}, {update.step:,} steps, {update.seconds:.1f} s")]

        yield watch
        over()
