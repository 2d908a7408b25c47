# SPDX-License-Identifier: Apache-2.0
"""Where the work of a study is done: in this process, or in a pool of others that share one import of torch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_PRELOADED = {"transformers": ("transformers.modeling_utils",), "diffusers": ("diffusers.models.modeling_utils",)}
_FEW = 2  # cards that are answered for before a pool has started


class Here(Executor):
    """Does the work at once, in this process."""

    def submit(self, work: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """The future of work that is done already."""
        future: Future[_Result] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def pays(recordings: int, answers: int) -> bool:
    """Whether other processes are worth their start: they import torch again, unless this one has not yet."""
    if processors() < 2 or multiprocessing.parent_process() is not None:
        return False
    return recordings > 1 or answers > (8 if "torch" in sys.modules else _FEW)


def pool(libraries: Iterable[str] = (), workers: int | None = None) -> ProcessPoolExecutor:
    """Processes (default: one a processor), forked from a server that has imported torch and the models' libraries once.

    A script that starts them needs `if __name__ == "__main__":` around its work, as any that uses `multiprocessing`.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # no effect on a server that is running: its processes then import what is missing themselves
        preloaded = [module for name in libraries for module in _PRELOADED.get(name, ())]
        context.set_forkserver_preload(["bsmodel.studies.preload", "bsmodel.recording.tracing", *preloaded])
    return ProcessPoolExecutor(workers or processors(), context, initializer=_settle)


def _settle() -> None:
    """What a process does first: keeps stdout for answers, dies with whoever started it, and leaves the cores to its siblings."""
    os.dup2(2, 1)  # users' code may print
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
