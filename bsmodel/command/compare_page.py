# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel compare`: what each way to run costs against how long it takes, with the efficient ones numbered, and the ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bsmodel.command.compare import compare_cells, way_of
from bsmodel.command.page_tables import written
from bsmodel.command.priced import rented, with_offers
from bsmodel.command.wording import title
from bsmodel.pages import KINDS, Drawing, Offer, Section, document, frontier, head, number, of_page
from bsmodel.studies import Recorded, Row

_ALONE = "alone"  # what a GPU that shares with no other is called
OF_RUN = "for the run"  # where samples and epochs are known


def page(recorded: Recorded, rows: Sequence[Row], left_out: Mapping[str, str], asked: Sequence[tuple[str, str]], said: Sequence[str]) -> str:
    """The ranking as one HTML page; `asked` is what was asked, by name, and `said` what the text says below its tables."""
    priced, of = offers(rows, gpus_of)
    drawn = [offer for _, offer in priced]
    top = head(("What is worth renting", _findings(drawn, of)), ("What was asked", [("Model", title(recorded)), *asked]), said)
    parts = [_drawn(rows, drawn, of)]
    if rows:
        parts.append(Section("Every GPU that trains it", (), table=written("gpus", "What costs least first, then what is fastest.", *compare_cells(rows))))
    if left_out:
        without = written("left-out", "GPUs that have no plan, and why.", (("GPU", ""), ("why", "")), [*left_out.items()])
        parts.append(Section("Left out", (), table=without))
    return document(f"GPUs for {recorded.name}", top, parts)


def offers(rows: Sequence[Row], named: Callable[[Row], str]) -> tuple[list[tuple[Row, Offer]], str]:
    """What each row that has a price takes, of the run where that is known, else of a million samples; and of which."""
    run = any(row.timing is not None and row.timing.hours is not None for row in rows)
    found = []
    for row in rows:
        timing = row.timing
        if timing is None or timing.usd_per_million is None:
            continue
        hours, usd = (timing.hours, timing.cost_usd) if run else (1e6 / timing.samples_per_s / 3600, timing.usd_per_million)
        if hours is not None and usd is not None:
            found.append((row, Offer(named(row), way_of(row) if row.devices > 1 else _ALONE, hours, usd)))
    return found, OF_RUN if run else "for a million samples"


def gpus_of(row: Row) -> str:
    """Which GPUs a row is of, and where they are rented."""
    several = f"{row.devices} × " if row.devices > 1 else ""
    return f"{several}{row.gpu}{f' ({rented(row)})' if with_offers([row]) else ''}"


def _findings(offers: Sequence[Offer], of: str) -> list[str]:
    """The efficient ones, one sentence each."""
    best = frontier(offers)
    names = [f"{offer.name}{'' if offer.way == _ALONE else f', by {offer.way}'}" for offer in best]
    found = [f"{place}. {name}: {number(offer.hours)} h and {number(offer.usd)} USD {of}." for place, (name, offer) in enumerate(zip(names, best), 1)]
    return [*found, "No other is both as fast and as cheap as one of these."] if found else ["No GPU has both a time and a price."]


def _drawn(rows: Sequence[Row], offers: Sequence[Offer], of: str) -> Section:
    from bsmodel.pages import costs

    name = "Cost against time"
    if not offers:
        return Section(name, ("There is no chart: no GPU has both a time and a price.",))
    missing = sorted({row.gpu for row in rows if row.timing is None or row.timing.price is None})
    said = [f"Not drawn, without a time or a price: {', '.join(missing)}."] if missing else []
    ways = list(dict.fromkeys(offer.way for offer in offers))
    kinds = tuple((place % KINDS, way) for place, way in enumerate(ways)) if len(ways) > 1 else ()
    caption = "The dashed line joins the efficient ones, numbered as above: what is above and to the right costs more and takes longer than one of them."
    return Section(name, tuple(said), (Drawing("costs", f"US dollars against hours, {of}", caption, costs(offers, of, of_page(0)), kinds),))
