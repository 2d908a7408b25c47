# SPDX-License-Identifier: Apache-2.0
"""Ways to run, by what they cost and how long they take, and those that none other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """One way to run: its name, how devices share the work, and what it takes, of the run or of a million samples; and of which model, of several."""

    name: str
    way: str
    hours: float
    usd: float
    model: str = ""


def frontier(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Of each model those than which none is both as fast and as cheap, and better in one; the fastest first."""
    return tuple(offer for model in dict.fromkeys(offer.model for offer in offers) for offer in _best([each for each in offers if each.model == model]))


def _best(offers: Sequence[Offer]) -> list[Offer]:
    found: list[Offer] = []
    for offer in sorted(offers, key=lambda offer: (offer.hours, offer.usd)):
        if not found or offer.usd < found[-1].usd or (offer.hours, offer.usd) == (found[-1].hours, found[-1].usd):
            found.append(offer)
    return found
