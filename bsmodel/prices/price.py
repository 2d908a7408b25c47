# SPDX-License-Identifier: Apache-2.0
"""What a card costs an hour, as it is rented, and which of several offers is the cheapest for so many cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from bsmodel.units import finite, whole

SPOT = "spot prices are of instances that can be taken away at any time; what is lost with one is not counted"


@dataclass(frozen=True)
class Price:
    """US dollars for one card and hour, above 0, whose figure it is, and what has to be rented for it.

    `count` cards come together as one `instance`, which is paid whole; None: cards come one by one, or by the node where there are several.
    `spot`: whether the instance can be taken away. `day`: of when the figure is. `note`: what is not known of the card.
    """

    usd_per_hour: float
    source: str
    cloud: str | None = None
    region: str | None = None
    instance: str | None = None
    count: int | None = None
    spot: bool = False
    day: date | None = None
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "usd_per_hour", finite("price per hour", self.usd_per_hour, above=0))
        if self.count is not None:
            object.__setattr__(self, "count", whole("count", self.count))

    @property
    def place(self) -> str:
        """Cloud and region, as far as they are known."""
        return " ".join(part for part in (self.cloud, self.region) if part)

    @property
    def is_offer(self) -> bool:
        """Whether it is of what a cloud has, or of a whole instance, and not of any card anywhere."""
        return self.count is not None or self.cloud is not None

    @property
    def instance_usd_per_hour(self) -> float:
        """US dollars an hour for all that is rented together."""
        return self.usd_per_hour * (self.count or 1)


def price_line(gpu: str, price: Price | None, unpriced: str = "") -> str:
    """A sentence: whose price of a card, of what, and of which day; or why there is none, and nothing where nobody knows."""
    if price is None:
        return f"No price of {gpu}: {unpriced}." if unpriced else ""
    if not price.is_offer:
        return f"Price of {gpu}: {price.source}."
    cards = "a card" if price.count is None else f"{price.instance or 'an instance'} with {price.count} card{'s' if price.count > 1 else ''}"
    spot, note = " at spot price" if price.spot else "", f"; {price.note}" if price.note else ""
    figure = f"{price.instance_usd_per_hour:,.4g} USD an hour{spot}{f' on {price.day}' if price.day else ''}"
    return f"Price of {gpu}: {cards}{f', {price.place}' if price.place else ''}, {figure} ({price.source}){note}."


Offers = tuple[tuple[str, Price], ...]  # by the id of a card, which may have several


def instances_for(count: int, nodes: int, cards: int) -> int:
    """Instances of `count` cards that hold so many nodes, each of which takes `cards`: 0 where an instance is less than a node.

    An instance holds `count // cards` whole nodes; what is left of the last one is paid, too.
    """
    return -(-nodes // (count // cards)) if count >= cards else 0


def cheapest(paid: Iterable[tuple[int, Price]]) -> Price | None:
    """Of prices, each with the cards that are paid at it, the one that costs least in all; None where none has any."""
    found = [(cards * price.usd_per_hour, *_name(price), price) for cards, price in paid if cards]
    return min(found, key=lambda each: each[:-1])[-1] if found else None


def _name(price: Price) -> tuple[int, str, str, str]:
    """What decides between offers that cost the same: fewer cards at once, then the alphabet."""
    return price.count or 1, price.cloud or "", price.region or "", price.instance or ""


def undercut(offers: Sequence[tuple[str, Price]]) -> Offers:
    """The cheapest offer of each card, count and cloud, of which a network is of one, in their order: no plan pays another."""
    best: dict[tuple[str, int | None, str | None], Price] = {}
    for gpu, price in offers:
        key = gpu, price.count, price.cloud
        known = best.setdefault(key, price)
        if (price.usd_per_hour, *_name(price)) < (known.usd_per_hour, *_name(known)):
            best[key] = price
    return tuple((gpu, price) for (gpu, *_), price in best.items())
