# SPDX-License-Identifier: Apache-2.0
"""The command line: reads arguments, asks the library, prints the answer."""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import bsmodel
from bsmodel.command import advise, check, compare, documents, explain, gpus, models, plan, predict, prices, schema, study, trial, validate
from bsmodel.command.given import require_apart
from bsmodel.command.report import Answer, write_answer
from bsmodel.command.terminal import escaped, in_letters_of
from bsmodel.errors import BsmodelError, InternalError, InvalidInputError

FITS, DOES_NOT_FIT, BAD_USAGE, DEFECT, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
_COMMANDS: dict[str, tuple[Any, str]] = {
    "plan": (plan, "largest batch per GPU, and how to reach a target batch"),
    "advise": (advise, "what to change so that a model trains on a card, each tried"),
    "compare": (compare, "GPUs ranked by what a run costs and how long it takes"),
    "predict": (predict, "the peak at one batch, and whether it fits"),
    "check": (check, "pass or fail: a batch that has to train, and a baseline that must not get worse"),
    "explain": (explain, "where the bytes go at the binding moment, by category and module"),
    "study": (study, "many models, recipes, GPUs and numbers of devices at once"),
    "trial": (trial, "short real runs of several batches, and the one that is worth having"),
    "validate": (validate, "predictions against a real GPU: measure, report, calibrate"),
    "gpus": (gpus, "the GPUs of the catalogue"),
    "prices": (prices, "what cards cost where, from SkyPilot's catalogue or your own table"),
    "models": (models, "the models that have a name"),
    "schema": (schema, "the JSON schema of a command's --json"),
}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def _print_message(self, message: str, file: Any = None) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever reads it has left
            (file or sys.stderr).write(message)  # argparse's own says nothing where it cannot be written

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"bsmodel: {escaped(message)}; see {self.prog} --help\n")


class _Given(_Parser):
    """Reads what is given, and nothing for what is not."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        action.default = argparse.SUPPRESS if action.option_strings else None
        return action


def _given(words: Sequence[str]) -> tuple[str, ...]:
    """The names of what is given, also where it is what stands for nothing, as in `--seeds 1`."""
    found = vars(_parser(_Given).parse_args(words))
    return tuple(name for name, value in found.items() if name != "run" and value not in (None, []))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, or raises `SystemExit` as argparse does.

    0: it fits; 1: on none of the GPUs asked for; 2: bad usage, or what cannot be answered; 3: a defect of this package; 130: interrupted.
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # libtorch warns of devices that it does not know, which is nothing to whoever asks
    try:
        options = _parser().parse_args(given)
        options.given = _given(given)
        require_apart(options)
        return _answered(options.run(options), options)
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, debug="--debug" in given)


def _failed(error: BaseException, debug: bool) -> int:
    """Say in one line what went wrong, before it where if that is asked for; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        line, code = ("terminated", TERMINATED) if isinstance(error, _Terminated) else ("interrupted", INTERRUPTED)
    elif isinstance(error, BsmodelError | OSError):
        line, code = str(error), BAD_USAGE
    elif isinstance(error, ModuleNotFoundError) and error.name in ("torch", "fvcore"):
        line, code = f'this needs {error.name}, which is not installed; pip install "bsmodel[record]"', BAD_USAGE
    else:
        error = InternalError.of(error)
        line, code = str(error), DEFECT
    where = error.where if isinstance(error, InternalError) else "".join(traceback.format_exception(error))
    with contextlib.suppress(BrokenPipeError):  # nobody reads it
        print(f"{where if debug else ''}bsmodel: {escaped(line)}", file=sys.stderr)
    return code


def _answered(found: Answer | int, options: argparse.Namespace) -> int:
    if isinstance(found, int):
        return found
    write_answer(in_letters_of(sys.stdout.encoding, documents.text(found.document) if options.json and not found.plain else found.text))
    return FITS if found.fits else DOES_NOT_FIT


class _Terminated(KeyboardInterrupt):
    """Somebody wants this process to end: it cleans up as after Ctrl-C."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated


def run() -> NoReturn:
    """The command `bsmodel`: `main` in a process of its own.

    It ends at once: taking down torch object by object, here or in a pool, takes a second, and the system frees its memory anyway.
    """
    _open_standard_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main()
    except SystemExit as stop:  # argparse's: help, or bad usage
        code = stop.code if isinstance(stop.code, int) else BAD_USAGE
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what could not be written is not tried again at the end
        if not isinstance(error, BrokenPipeError):
            code = code or _failed(InvalidInputError(f"cannot write the answer: {error.strerror}"), debug=False)
    for child in multiprocessing.active_children():  # of a pool: nothing that they still do is of use
        child.kill()
    for thread in threading.enumerate():  # that of a pool, which sees its processes gone; at exit Python would write to the pipe that it closes
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(timeout=1)
    if "torch" in sys.modules:
        os._exit(code)
    sys.exit(code)


def _open_standard_streams() -> None:
    """See that no file of ours gets the number of a stream that is closed; without stdout there is nowhere to answer."""
    silent = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the processes of a pool have it too
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
    if silent:
        print("bsmodel: stdout is closed: there is nowhere to write the answer", file=sys.stderr)
        os._exit(BAD_USAGE)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _parser(kind: type[_Parser] = _Parser) -> _Parser:
    parser = kind(prog="bsmodel", description="Which batch trains on which GPU, before you rent it.")
    parser.add_argument("--version", action="version", version=f"bsmodel {bsmodel.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from (default: one line that says what it is)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module, summary) in _COMMANDS.items():
        _add(commands, name, module.add_arguments, module.run, summary)
    return parser


def _add(commands: Any, name: str, add_arguments: Callable[[argparse.ArgumentParser], None], run: Any, summary: str) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error comes from (default: one line)")
    if name != "schema":
        parser.add_argument("--json", action="store_true", help="print JSON, nothing else (default: tables)")
    add_arguments(parser)
