# SPDX-License-Identifier: Apache-2.0
"""What a card reaches at several lengths, as plain values, and the signs that tell cards apart without colours."""

from __future__ import annotations

from dataclasses import dataclass

from bsmodel.pages.looks import KINDS

SIGNS = "●■✚◆▲▼"


@dataclass(frozen=True)
class Reach:
    """At one length: a value and its likely upper end, above 0, and how much a step of it has in tokens or pixels."""

    length: int
    value: float
    likely: float
    size: float


@dataclass(frozen=True)
class Curve:
    """What is reached at each length, by the name of what reaches it."""

    name: str
    reached: tuple[Reach, ...]


def sign(place: int) -> tuple[int, int]:
    """The colour and the shape of the curve at a place: no two of the first 36 have both in common."""
    return place % KINDS, (place + place // KINDS) % len(SIGNS)


def signed(curves: tuple[Curve, ...]) -> tuple[tuple[int, str], ...]:
    """The colour of each curve, and its sign before its name: kinds of a drawing."""
    return tuple((sign(place)[0], f"{SIGNS[sign(place)[1]]} {curve.name}") for place, curve in enumerate(curves))
