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
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from bsmodel.errors import UntraceableError

_Result = TypeVar("_Result")
_PRELOADED = {"transformers": ("transformers.modeling_utils",), "diffusers": ("diffusers.models.modeling_utils",)}
_FEW = 2  # cards that are answered for before a pool has started
LOST = (
    "the process that worked on it ended while it was recorded: no memory was left, the code that is recorded ends its process, "
    'or a script starts the study outside of `if __name__ == "__main__":`'
)


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


class Processes(Executor):
    """Processes, forked from a server that has imported torch once; where one has died, new ones for what comes next.

    Whatever the code that they record does, it ends no more than its own process, and answers once.
    """

    def __init__(self, libraries: Iterable[str], workers: int) -> None:
        self._libraries, self._workers = tuple(libraries), workers
        self._pool = _forked(self._libraries, workers)

    def submit(self, work: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """The future of work that one of the processes does."""
        try:
            return self._pool.submit(_apart, work, *args, **kwargs)
        except BrokenExecutor:
            self._pool = _forked(self._libraries, self._workers)
            return self._pool.submit(_apart, work, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As any executor's."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def pool(libraries: Iterable[str] = (), workers: int | None = None) -> Processes:
    """Processes (default: one a processor) that record and answer; they have imported torch and the models' libraries.

    A script that starts them needs `if __name__ == "__main__":` around its work, as any that uses `multiprocessing`.
    """
    return Processes(libraries, workers or processors())


def _forked(libraries: Iterable[str], workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, forking(libraries), initializer=_settle, initargs=(dict(os.environ),))


def forking(libraries: Iterable[str]) -> BaseContext:
    """How processes are started: from a server that has imported torch and these libraries, where the system has such servers."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # no effect on a server that is running: its processes then import what is missing themselves
        preloaded = [module for name in libraries for module in _PRELOADED.get(name, ())]
        context.set_forkserver_preload(["bsmodel.studies.preload", "bsmodel.recording.tracing", *preloaded])
    return context


def _apart(work: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> _Result:
    """Work whose code may end its process or fork it: the first is an error, and of two processes only the first answers."""
    process = os.getpid()
    try:
        return work(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise UntraceableError(f"the code that is recorded ended the process while it was recorded: {said}") from None
    finally:
        if os.getpid() != process:
            os._exit(0)


def _settle(environment: dict[str, str]) -> None:
    """What a process does first: keeps stdout for answers, dies with whoever started it, and leaves the cores to its siblings."""
    os.dup2(2, 1)  # users' code may print
    os.environ.update(environment)  # the server that it comes from may be older
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
