# SPDX-License-Identifier: Apache-2.0
"""What cards cost: the flags that say whose prices, and what an answer says of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bsmodel.command.given import leave_out
from bsmodel.command.terminal import Cell
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.prices import SPOT, Offers, Price, among, kept, load, price_line, undercut
from bsmodel.studies import Row, require_asked_about
from bsmodel.units import finite

OFFERS = ("prices", "cloud", "region", "spot")  # the options that ask about offers
HOW = "bsmodel prices update --from DIR keeps SkyPilot's catalogue (e.g. of ~/.sky/catalogs/v8)"


def price(text: str) -> tuple[str, float]:
    """`GPU=USD` as a name and a price an hour."""
    name, separator, figure = text.partition("=")
    try:
        return name, finite("price", float(figure if separator else "nan"), above=0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no price; expected GPU=USD, e.g. a100-40gb=1.29") from None


def names(text: str) -> list[str]:
    """Names with commas between, of which there is one at least."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names none; expected e.g. aws,gcp")
    return found


def add_price(parser: argparse.ArgumentParser) -> None:
    """Prices of the user's own."""
    text = "your price an hour, repeatable (default: offers that are kept, else the catalogue's)"
    parser.add_argument("--price", type=price, action="append", default=[], metavar="GPU=USD", help=text)


def add_offers(parser: argparse.ArgumentParser) -> None:
    """Whose offers are asked about."""
    text = "your table of offers, CSV or TOML (default: the one that `bsmodel prices update` keeps)"
    parser.add_argument("--prices", type=Path, metavar="FILE", help=text)
    parser.add_argument("--cloud", type=names, action="extend", default=[], metavar="NAMES", help="only offers of these clouds (default: all)")
    parser.add_argument("--region", action="append", default=[], metavar="NAME", help="only offers in this region, repeatable (default: all)")
    parser.add_argument("--spot", action="store_true", help="instances that can be taken away (default: on demand)")


def offers_asked(options: argparse.Namespace) -> Offers:
    """The offers that the flags ask about; raises `InvalidInputError` where there is no table, `UnknownNameError` for a cloud or region of none."""
    offers = load(options.prices) if options.prices else kept()
    if not offers and (named := _asked(options)):
        raise InvalidInputError(f"there is no table of offers {named}: {HOW}; or give --prices FILE")
    return among(offers, options.cloud, options.region, options.spot)


def prices(options: argparse.Namespace, given: Sequence[tuple[str, float]], gpus: Sequence[Gpu]) -> tuple[tuple[str, Price | None], ...]:
    """Prices by the ids of the cards that are asked about: the user's own, else the cheapest offers by count and cloud; none, where offers are asked about."""
    own, ids = _own(given, gpus), [gpu.id for gpu in gpus]
    if own.keys() >= {*ids}:
        leave_out(options, f"your own price is given for every card, {', '.join(ids)}, and goes before offers", OFFERS)
    found = undercut([(card, each) for card, each in offers_asked(options) if card in ids and card not in own])
    unoffered = set(ids) - {*own, *dict(found)} if _asked(options) else ()
    return (*own.items(), *found, *((card, None) for card in ids if card in unoffered))


def _own(given: Sequence[tuple[str, float]], gpus: Sequence[Gpu]) -> dict[str, Price]:
    ids = [gpu.id for gpu in gpus]
    found: dict[str, Price] = {}
    for name, usd in given:
        card = name if name in ids else Gpu.named(name).id
        require_asked_about([card], gpus)
        if found.setdefault(card, Price(usd, "yours")).usd_per_hour != usd:
            raise InvalidInputError(f"two prices of {card} are given, {found[card].usd_per_hour:g} and {usd:g}; give one")
    return found


def _asked(options: argparse.Namespace) -> str:
    """What is asked of offers, in words; nothing where any on demand will do."""
    if not (options.cloud or options.region or options.spot):
        return ""
    of, where = (f" {word} {', '.join(found)}" if found else "" for word, found in (("of", options.cloud), ("in", options.region)))
    return f"{'at spot prices' if options.spot else 'on demand'}{of}{where}"


# -- what is said of them ------------------------------------------------------------------------------------------------------------------


def offer_notes(options: argparse.Namespace) -> list[str]:
    """Notes of what was asked of offers, and of what spot prices are."""
    asked = _asked(options)
    return [*([f"offers are those {asked}"] if asked else []), *([SPOT] if options.spot else [])]


def hours_notes(rows: Sequence[Row]) -> list[str]:
    """A note where samples are given without epochs, and nothing else that is printed says anything of them."""
    alone = any(row.timing and row.timing.hours_per_epoch is not None and row.timing.hours is None for row in rows)
    return ["hours and cost are of a whole run: with --samples N give --epochs N, too"] if alone else []


def with_offers(rows: Sequence[Row]) -> bool:
    """Whether a table has a column for what is rented."""
    return any(row.timing.price.is_offer for row in rows if row.timing and row.timing.price)


def rented(row: Row) -> Cell:
    """What is rented for a plan, where and at whose price of which day: `2 x 8 aws us-east-1, 2026-11-20`."""
    timing = row.timing
    if timing is None or timing.price is None or not timing.price.is_offer:
        return "-"
    count, left = timing.price.count, timing.rented - row.devices
    cards = f"{timing.rented}" if count is None else f"{timing.rented // count} x {count}"
    day, spot = f", {timing.price.day}" if timing.price.day else "", ", spot" if timing.price.spot else ""
    return f"{cards} {timing.price.place or timing.price.source}{day}{spot}{f', {left} unused' if left else ''}"


def price_lines(rows: Sequence[Row]) -> list[str]:
    """A sentence for each card: whose price, of what, and of which day; or why there is none."""
    return sorted({price_line(row.gpu, row.timing.price, row.timing.unpriced) for row in rows if row.timing} - {""})


def offer_lines(rows: Sequence[Row]) -> list[str]:
    """Those of `price_lines` that are of offers."""
    return price_lines([row for row in rows if row.timing and (row.timing.unpriced or (row.timing.price and row.timing.price.is_offer))])
