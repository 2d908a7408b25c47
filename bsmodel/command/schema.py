# SPDX-License-Identifier: Apache-2.0
"""`bsmodel schema`: the JSON schema of what a command answers with `--json`."""

from __future__ import annotations

import argparse

from bsmodel.command.documents import DOCUMENTS, schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel schema`."""
    parser.add_argument("of", choices=sorted(DOCUMENTS), metavar="COMMAND", help=", ".join(sorted(DOCUMENTS)))


def run(options: argparse.Namespace) -> int:
    """Print the schema."""
    print(schema(options.of), end="")
    return 0
