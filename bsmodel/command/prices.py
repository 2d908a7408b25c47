# SPDX-License-Identifier: Apache-2.0
"""`bsmodel prices`: offers of cards by cloud, region and day, and `bsmodel prices update`, which reads them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from bsmodel.command.documents import FileAccount, Offered, PricesDocument, UpdateDocument
from bsmodel.command.priced import HOW, add_offers, offers_asked
from bsmodel.command.report import Answer
from bsmodel.command.terminal import Part, render, table
from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.prices import SPOT, Account, Offers, Price, keep, kept_path, load, read_catalogue

_MOST = 8  # reasons of a file that are written out


def day(text: str) -> date:
    """A day, `2026-11-29`."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day; expected e.g. 2026-11-29") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `bsmodel prices`."""
    parser.add_argument("action", nargs="?", choices=("update",), help="read and keep offers (default: list those that are kept)")
    text = "with update: SkyPilot's catalogue, a folder with <cloud>/vms.csv, or a table of your own; repeatable (needed)"
    parser.add_argument("--from", dest="sources", action="append", default=[], type=Path, metavar="DIR|FILE", help=text)
    parser.add_argument("--day", type=day, metavar="DAY", help="with update: of when the prices are (default: the day each file was changed)")
    parser.add_argument("--gpu", action="append", metavar="GPU", help="id or TOML file, repeatable (default: every card)")
    add_offers(parser)


def run(options: argparse.Namespace) -> Answer:
    """The offers that are asked about, or what became of those that are read."""
    if options.action == "update":
        return _update(options)
    if options.sources or options.day:
        raise InvalidInputError("--from and --day are for `bsmodel prices update`; it lists what is kept")
    if not options.prices and not kept_path().exists():
        raise InvalidInputError(f"no offers are kept: {HOW}; or give --prices FILE")
    asked = {Gpu.named(name).id for name in options.gpu or ()}
    found = sorted(
        ((gpu, price) for gpu, price in offers_asked(options) if not asked or gpu in asked),
        key=lambda offer: (offer[0], offer[1].usd_per_hour, offer[1].count or 1, offer[1].cloud or "", offer[1].region or ""),
    )
    rows = tuple(Offered(gpu=gpu, instance_usd_per_hour=price.instance_usd_per_hour, price=price) for gpu, price in found)
    notes = (SPOT,) if any(price.spot for _, price in found) else ()
    return Answer(PricesDocument(command="prices", notes=notes, offers=rows), _listed(tuple(found), notes), fits=bool(found))


def _listed(found: Offers, notes: Sequence[str]) -> str:
    """The cheapest of each card, count and cloud, and in how many regions that cloud has it."""
    first: dict[tuple[str, int | None, str | None], int] = {}
    regions: Counter[tuple[str, int | None, str | None]] = Counter()
    for place, (gpu, price) in enumerate(found):
        key = gpu, price.count, price.cloud
        first.setdefault(key, place)
        regions[key] += 1
    if not found:
        return render("There is no such offer.")
    headings = ("cards", "USD an hour", "a card")
    columns = (("GPU", ""), *((heading, "right") for heading in headings), ("cloud", ""), ("region", ""), ("instance", ""), ("day", ""), ("offers", "right"))
    lines = [_cells(*found[place], regions[key]) for key, place in first.items()]
    unsure = sorted({f"{gpu}: {price.note}" for place in first.values() for gpu, price in [found[place]] if price.note})
    sources = sorted({price.source.partition(",")[0] for _, price in found})
    parts: list[Part] = [table(*columns, rows=lines), "", "Each line is the cheapest of so many offers of that cloud, in its regions."]
    return render(*parts, f"From {'; '.join(sources)}.", *(f"Note: {line}." for line in [*unsure, *notes]))


def _cells(gpu: str, price: Price, offers: int) -> list[str]:
    figures = [f"{price.count or 1}", f"{price.instance_usd_per_hour:,.4g}", f"{price.usd_per_hour:,.4g}"]
    return [gpu, *figures, price.cloud or "-", price.region or "-", price.instance or "-", f"{price.day}", f"{offers}"]


# -- update --------------------------------------------------------------------------------------------------------------------------------


def _update(options: argparse.Namespace) -> Answer:
    if not options.sources:
        raise InvalidInputError("nothing to read; give --from DIR of SkyPilot's catalogue (e.g. ~/.sky/catalogs/v8), or --from FILE of your own")
    if options.gpu or options.cloud or options.region or options.spot or options.prices:
        raise InvalidInputError("update keeps all offers of its sources; ask for some of them with `bsmodel prices`, without update")
    read = [_read(path, options.day) for path in options.sources]
    offers = tuple(offer for found, _ in read for offer in found)
    if not offers:
        raise InvalidInputError("none of these rows is an offer of a card that is known here; nothing was kept")
    files = tuple(account for _, accounts in read for account in accounts)
    path = keep(offers)
    return Answer(UpdateDocument(command="prices", kept=str(path), offers=len(offers), files=files), _accounted(files, len(offers), path))


def _read(path: Path, of: date | None) -> tuple[Offers, list[FileAccount]]:
    if path.is_dir():
        offers, accounts = read_catalogue(path, of)
        return offers, [_of_account(account) for account in accounts]
    offers = load(path, of)
    days = [price.day for _, price in offers if price.day]
    used = Counter(gpu for gpu, _ in offers)
    return offers, [FileAccount(file=path.name, day=max(days), rows=len(offers), offers=len(offers), used=dict(used), left_out={}, assumed={})]


def _of_account(account: Account) -> FileAccount:
    counts = {"used": dict(account.used), "left_out": dict(account.left_out), "assumed": dict(account.assumed)}
    return FileAccount(file=f"{account.cloud}/vms.csv", day=account.day, rows=account.rows, offers=account.offers, **counts)


def _accounted(files: Sequence[FileAccount], offers: int, path: Path) -> str:
    parts: list[Part] = []
    for each in files:
        used, out = sum(each.used.values()), sum(each.left_out.values())
        parts.append(f"{each.file} of {each.day}: {each.rows:,} rows, {used:,} used for {each.offers:,} offers, {out:,} left out")
        parts += [f"  used: {_counted(each.used)}"] if used else []
        parts += [f"  left out: {_counted(each.left_out)}"] if out else []
        parts += [f"  of those used: {_counted(each.assumed)}"] if each.assumed else []
    rows, used = sum(each.rows for each in files), sum(sum(each.used.values()) for each in files)
    total = f"{len(files)} files, {rows:,} rows: {used:,} used, {rows - used:,} left out. {offers:,} offers kept in {path}"
    return render(*parts, "", f"{total}; of rows that differ in zone or host only, the cheapest in a region.")


def _counted(counts: dict[str, int]) -> str:
    """`30 h100-80gb, 12 l4-24gb`, the most frequent first; --json has all of them."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {sum(count for _, count in most[_MOST:]):,} for {len(most) - _MOST} other reasons or cards" if len(most) > _MOST else ""
    return ", ".join(f"{count:,} {name}" for name, count in most[:_MOST]) + more
