# SPDX-License-Identifier: Apache-2.0
"""Which options are given, and the refusal of those that say nothing beside the others: none is silently ignored."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable

from bsmodel.errors import InvalidInputError

EVERYWHERE = ("json", "debug", "cache")  # which change how an answer is printed or how soon it comes
OUTPUTS = ("html", "picture", "markdown", "trace", "snapshot", "memory_timeline", "save", "save_baseline", "out")  # options that name files to write
# Options that are not named as their fields are.
_SPELLED = {"workloads": "WORKLOAD", "upcast": "--no-upcast", "sync_each_micro_step": "--sync", "sources": "--from"}


def leave_out(options: argparse.Namespace, why: str, names: Iterable[str]) -> None:
    """Raises `InvalidInputError`, before any work, where one of these options is given, which `why` says have no effect."""
    found = [_SPELLED.get(name) or f"--{name.replace('_', '-')}" for name in names if name in options.given]
    if found:
        several = f"{', '.join(found[:-1])} and {found[-1]}" if found[1:] else found[0]
        raise InvalidInputError(f"{why}; leave out {several}")


def require_apart(options: argparse.Namespace) -> None:
    """Raises `InvalidInputError`, before any work, where two options name one file to write."""
    named: dict[str, str] = {}
    for name in OUTPUTS:
        if path := getattr(options, name, None):
            flag, file = f"--{name.replace('_', '-')}", os.path.realpath(path)
            if file in named:
                raise InvalidInputError(f"{named[file]} and {flag} both name {str(path)!r}; give each a file of its own")
            named[file] = flag


def all_but(options: argparse.Namespace, *kept: str) -> list[str]:
    """The options that are given besides these and those that every answer takes, as they stand on the command line."""
    return [name for name in options.given if name not in (*kept, *EVERYWHERE)]
