# SPDX-License-Identifier: Apache-2.0
"""What is written on the command line, read once; a mistake is one line of argparse's."""

from __future__ import annotations

import argparse

from bsmodel.units import parse_bytes


def price(text: str) -> tuple[str, float]:
    """`GPU=USD` as a name and a price an hour."""
    name, separator, figure = text.partition("=")
    try:
        value = float(figure)
    except ValueError:
        value = 0.0
    if not separator or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no price; expected GPU=USD, e.g. a100-40gb=1.29")
    return name, value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return value


def size(text: str) -> int:
    """A size such as `40GiB`, in bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
