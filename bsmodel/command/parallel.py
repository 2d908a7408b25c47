# SPDX-License-Identifier: Apache-2.0
"""Work beside other work: in a copy of this process, where one can be made."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_PATIENCE_S = 120.0  # what the copy has not delivered by then, counted from when it is asked for, is done here


def later(work: Callable[[], _Result]) -> Callable[[], _Result]:
    """The work itself: done when it is asked for, in this process."""
    return work


def beside(work: Callable[[], _Result]) -> Callable[[], _Result]:
    """Begin the work in a forked copy of this process; the function returned waits for its result.

    Only for a process of one thread, such as a command; and for a recording only where that has run no backward pass yet: torch's autograd
    refuses to work in copies of others. Where there is no second processor, no fork, or no result, the work is done here when it is asked for, and
    raises here what it raises.
    """
    if sys.platform != "linux" or threading.active_count() > 1 or len(os.sched_getaffinity(0)) < 2:
        return work
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that threads of numpy's are left behind
            copy = os.fork()
    except OSError:  # no room for another process
        os.close(reader)
        os.close(writer)
        return work
    if copy == 0:
        _work_and_exit(work, reader, writer)
    os.close(writer)

    def result() -> _Result:
        data = _received(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
        if not data:
            return work()
        found: _Result = pickle.loads(data)
        return found

    return result


def _work_and_exit(work: Callable[[], object], reader: int, writer: int) -> None:
    """What the copy does; it ends without a result where the work fails, and prints nothing."""
    try:
        os.close(reader)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # whoever waits for this command's output does not wait for its copy
            os.dup2(nowhere, stream)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)  # the threads of the original are not in the copy
        data = pickle.dumps(work())
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)


def _received(reader: int) -> bytes:
    """All that comes through the pipe until it is closed, or nothing where that takes too long."""
    parts: list[bytes] = []
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while select.select([stream], [], [], _PATIENCE_S)[0]:
            part = stream.read(1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return b""
