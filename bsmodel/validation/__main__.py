# SPDX-License-Identifier: Apache-2.0
"""`python -m bsmodel.validation JOB`: does one job, given as JSON, and prints its result as one line of JSON."""

from __future__ import annotations

import contextlib
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


if __name__ == "__main__":
    main(sys.argv[1])
