# SPDX-License-Identifier: Apache-2.0
"""The command line: reads arguments, asks the library, prints the answer."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import bsmodel
from bsmodel.command import compare, documents, explain, gpus, plan, predict, schema, study, validate
from bsmodel.command.report import Answer
from bsmodel.errors import BsmodelError

FITS, DOES_NOT_FIT, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
_COMMANDS: dict[str, tuple[Any, str]] = {
    "plan": (plan, "largest batch per GPU, and how to reach a target batch"),
    "compare": (compare, "GPUs ranked by what a run costs and how long it takes"),
    "predict": (predict, "the peak at one batch, and whether it fits"),
    "explain": (explain, "where the bytes go at the binding moment, by category and module"),
    "study": (study, "many models, recipes, GPUs and numbers of devices at once"),
    "validate": (validate, "predictions against a real GPU: measure, report, calibrate"),
    "gpus": (gpus, "the GPUs of the catalogue"),
    "schema": (schema, "the JSON schema of a command's --json"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"bsmodel: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fits, 1 fits on none of the GPUs asked for, 2 bad usage or untraceable."""
    options = _parser().parse_args(arguments)
    try:
        code = _answered(options.run(options), options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("bsmodel: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the answer has left
        return FITS
    except (BsmodelError, OSError) as error:
        print(f"bsmodel: {error}", file=sys.stderr)
        return BAD_USAGE
    return code


def _answered(found: Answer | int, options: argparse.Namespace) -> int:
    if isinstance(found, int):
        return found
    sys.stdout.write(documents.text(found.document) if options.json and not found.plain else found.text)
    return FITS if found.fits else DOES_NOT_FIT


def run() -> NoReturn:
    """The command `bsmodel`: `main` in a process of its own.

    It ends at once: taking down torch object by object, here or in a pool, takes a second, and the system frees its memory anyway.
    """
    code = main()
    with contextlib.suppress(OSError):  # said already
        sys.stdout.flush()
    for child in multiprocessing.active_children():  # of a pool: nothing that they still do is of use
        child.kill()
    if "torch" in sys.modules:
        os._exit(code)
    sys.exit(code)


def _parser() -> _Parser:
    parser = _Parser(prog="bsmodel", description="Which batch trains on which GPU, before you rent it.")
    parser.add_argument("--version", action="version", version=f"bsmodel {bsmodel.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, summary) in _COMMANDS.items():
        _add(commands, name, module.add_arguments, module.run, summary)
    return parser


def _add(commands: Any, name: str, add_arguments: Callable[[argparse.ArgumentParser], None], run: Any, summary: str) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    if name != "schema":
        parser.add_argument("--json", action="store_true", help="print JSON, nothing else (default: tables)")
    add_arguments(parser)
