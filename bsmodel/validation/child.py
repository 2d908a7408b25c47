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


def run(job: dict[str, Any], python: Sequence[str] = (), timeout_s: float | None = None) -> dict[str, Any]:
    """The result of a job, run as `python -m bsmodel.validation JOB`; `python` is the command to use instead of this interpreter.

    Raises `ChildFailedError` with one line where the process dies, says no result, or raises.
    """
    command = [*(python or (sys.executable,)), *MODULE, json.dumps(job)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise OutOfTimeError(f"took longer than {timeout_s:.0f} s") from None
    except OSError as error:
        raise ChildFailedError(f"cannot start {command[0]!r}: {error.strerror}") from None
    if ended.returncode < 0:
        raise ChildFailedError(f"killed by {_signal_name(-ended.returncode)}{_last_line(ended.stderr, ': ')}")
    if ended.returncode:
        raise ChildFailedError(f"exit code {ended.returncode}{_last_line(ended.stderr, ': ')}")
    try:
        answer = json.loads(ended.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise ChildFailedError("ended without a result") from None
    if not isinstance(answer, dict) or not ({"result", "failure"} & set(answer)):
        raise ChildFailedError("ended without a result")
    if "failure" in answer:
        raise ChildFailedError(str(answer["failure"]))
    result: dict[str, Any] = answer["result"]
    return result


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(text: str, before: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return before + lines[-1][:300] if lines else ""
