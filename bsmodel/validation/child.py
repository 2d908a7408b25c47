# SPDX-License-Identifier: Apache-2.0
"""Runs one job in a process of its own, so that running out of memory or crashing there spoils nothing here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

MODULE = ("-m", "bsmodel.validation")


class ChildFailedError(Exception):
    """A job that gave no result; the message is one line that says why."""


class OutOfTimeError(ChildFailedError):
    """A job that was ended because it took too long."""


def start(python: Sequence[str] = ()) -> subprocess.Popen[str]:
    """A process that gets ready and waits for its job; `python` is the command to use instead of this interpreter.

    Started before its job is known, it imports its libraries while another one measures. Raises `ChildFailedError` where it cannot start.
    """
    command = [*(python or (sys.executable,)), *MODULE]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        raise ChildFailedError(f"cannot start {command[0]!r}: {error.strerror}") from None


def finish(process: subprocess.Popen[str], job: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
    """The result of a job, done by a process that `start` started.

    Raises `ChildFailedError` with one line where the process dies, says no result, or raises.
    """
    try:
        printed, errors = process.communicate(json.dumps(job) + "\n", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        stop(process)
        raise OutOfTimeError(f"took longer than {timeout_s:.0f} s") from None
    if process.returncode < 0:
        raise ChildFailedError(f"killed by {_signal_name(-process.returncode)}{_last_line(errors, ': ')}")
    if process.returncode:
        raise ChildFailedError(f"exit code {process.returncode}{_last_line(errors, ': ')}")
    try:
        answer = json.loads(printed.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise ChildFailedError("ended without a result") from None
    if not isinstance(answer, dict) or not ({"result", "failure"} & set(answer)):
        raise ChildFailedError("ended without a result")
    if "failure" in answer:
        raise ChildFailedError(str(answer["failure"]))
    result: dict[str, Any] = answer["result"]
    return result


def stop(process: subprocess.Popen[str]) -> None:
    """End a process, whatever it is doing."""
    process.kill()
    process.communicate()


def run(job: dict[str, Any], python: Sequence[str] = (), timeout_s: float | None = None) -> dict[str, Any]:
    """The result of a job in a process started for it."""
    return finish(start(python), job, timeout_s)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(text: str, before: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return before + lines[-1][:300] if lines else ""
