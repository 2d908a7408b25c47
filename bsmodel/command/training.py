# SPDX-License-Identifier: Apache-2.0
"""Progress of a trial on stderr: which run, its loss, its speed, and how long it still takes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from bsmodel.trials import Rung, Update, Watch


@contextlib.contextmanager
def training() -> Iterator[Watch]:
    """Shows each run of a trial as it goes on a terminal, and a line for each that is over."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("trial", total=None)

        def watch(rung: Rung, seed: int, update: Update) -> None:
            speed = update.samples / update.seconds if update.seconds else 0.0
            said = f"batch {rung.batch:,}, seed {seed}: loss {update.loss:.4g}, {speed:,.4g} samples per s"
            bar.update(task, description=said, completed=update.step, total=rung.steps)
            if update.step == rung.steps:
                console.print(f"{said}, {update.seconds:.1f} s", markup=False)

        yield watch
