# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: models, cases, and where the rows about them lie."""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"  # measured or published
RESULTS = Path(__file__).parent.parent / "results"  # computed from that


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
