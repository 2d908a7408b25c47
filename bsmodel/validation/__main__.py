# SPDX-License-Identifier: Apache-2.0
"""`python -m bsmodel.validation`: reads one job, a line of JSON on stdin, does it, and prints its result as one line of JSON."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys

from bsmodel.validation.jobs import JOBS


def main(text: str) -> None:
    """Do the job; an error of any kind becomes one line, for the row that reports it."""
    job = json.loads(text)
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print; the last line on stdout is the answer
        try:
            answer: dict[str, object] = {"result": JOBS[job["do"]](job)}
        except Exception as error:  # whatever the user's model or a library raises
            lines = str(error).strip().splitlines() or [""]
            answer = {"failure": f"{type(error).__name__}: {lines[0]}"[:400]}
    print(json.dumps(answer))


def get_ready() -> None:
    """Import what most jobs need, while the job before may still be running; nothing here touches the device."""
    for name in ("torch", "transformers.modeling_utils", "diffusers"):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):  # the job says what it misses
            importlib.import_module(name)


if __name__ == "__main__":
    get_ready()
    if line := sys.stdin.readline():
        main(line)
