# SPDX-License-Identifier: Apache-2.0
"""The page of `bsmodel study`: grids of the largest batch, throughput and money, cost against hours for each workload, and every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bsmodel.command.compare import way_of
from bsmodel.command.compare_page import OF_RUN, gpus_of, offers
from bsmodel.command.page_tables import written
from bsmodel.command.study import study_cells, varied, word
from bsmodel.command.wording import split
from bsmodel.pages import KINDS, Drawing, Offer, Section, Table, Tile, brief, document, frontier, head, least_width, number, of_page
from bsmodel.studies import Row

_ROWS = "rows"  # the name of the table
_MOST_FINDINGS = 8  # workloads of which the ends of the frontier are told above
Priced = dict[str, list[Offer]]  # by model
Key = tuple[str, str, int, int | None, int]  # of a line: workload, recipe, devices, target, and its turn among those that are called alike


def page(rows: Sequence[Row], targets: Sequence[int], asked: Sequence[tuple[str, str]], said: Sequence[str]) -> str:
    """The study as one HTML page; `targets` are the target batches, `asked` is what was asked, by name, and `said` what the text says below its table."""
    shown = _Lines.of(rows, len(targets) > 1)
    workloads = list(dict.fromkeys(shown.models))
    priced, of = _priced(rows, shown)
    name = f"Study of {workloads[0]}" if len(workloads) == 1 else f"Study of {len(workloads)} models"
    top = head(("What was found", _findings(rows, priced, of)), ("What was asked", [*_axes(rows, workloads), *asked]), said)
    parts = [_grid(figure, rows, shown) for figure in _figures(of)]
    parts += [_costs(rows, priced, of), Section("Every row", (), table=_table(rows))]
    return document(name, top, parts)


def _axes(rows: Sequence[Row], workloads: Sequence[str]) -> list[tuple[str, str]]:
    """What the study goes through, by name."""
    recipes = {name: dict.fromkeys(word(row.recipe.get(name)) for row in rows) for name in varied(rows)}
    axes = {"Models": dict.fromkeys(workloads), "GPUs": dict.fromkeys(row.gpu for row in rows)}
    axes |= {name.replace("_", " ").capitalize(): values for name, values in recipes.items()}
    axes["Devices"] = dict.fromkeys(f"{row.devices:,}" for row in rows)
    return [(name, ", ".join(values)) for name, values in axes.items()]


# -- lines ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """The lines of the grids: of which model each is, what tells it from the others of that model, and its number by what its rows have in common."""

    models: list[str]
    ways: list[str]
    numbers: list[int]  # of the line of each row

    @staticmethod
    def of(rows: Sequence[Row], several_targets: bool) -> _Lines:
        keys = _keys(rows, several_targets)
        first: dict[Key, Row] = {}
        for key, row in zip(keys, rows):
            if key not in first or first[key].recorded is None:
                first[key] = row
        models = [_model(row, [*first.values()]) for row in first.values()]
        shared = len({(row.devices, way_of(row)) for row in rows}) > 1
        names = [_name(row, varied(rows), shared, key[3]) for key, row in first.items()]
        order = {key: number for number, key in enumerate(first)}
        return _Lines(models, _told_apart(models, names, [*first.values()]), [order[key] for key in keys])

    @property
    def named(self) -> list[tuple[str, str]]:
        """What each line is part of, and its name."""
        grouped = len(self.models) > len(set(self.models)) > 1
        return [(model, way) if grouped else ("", way or model) for model, way in zip(self.models, self.ways)]

    def model(self, place: int) -> str:
        """The model of a row."""
        return self.models[self.numbers[place]]


def _keys(rows: Sequence[Row], several_targets: bool) -> list[Key]:
    """What the rows of a line have in common. Recordings of one name are asked the same, one after the other: they are told apart by their turn."""
    turns: Counter[tuple[Any, ...]] = Counter()
    keys = []
    for row in rows:
        asked = row.workload, repr(row.recipe), row.devices, row.target_batch if several_targets else None
        keys.append((*asked, turns[*asked, row.gpu]))
        turns[*asked, row.gpu] += 1
    return keys


def _model(row: Row, lines: Sequence[Row]) -> str:
    """The workload, with the options in which recordings of that name differ."""
    several = [other.recorded.options for other in lines if other.workload == row.workload and other.recorded]
    return ", ".join([row.workload, *_differing(row.recorded.options if row.recorded else {}, several)])


def _told_apart(models: Sequence[str], names: Sequence[str], lines: Sequence[Row]) -> list[str]:
    """The names of lines; recordings that would be called alike say in which of the recipe's fields they differ."""
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    recipes = [row.recorded.recipe if row.recorded else {} for row in lines]
    for model, name, recipe in zip(models, names, recipes):
        alike.setdefault((model, name), []).append(recipe)
    return [", ".join(filter(None, [name, *_differing(recipe, alike[model, name])])) for model, name, recipe in zip(models, names, recipes)]


def _differing(own: Mapping[str, Any], several: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of fields that are not the same in all, what this one has."""
    fields = dict.fromkeys(name for each in several for name in each)
    return [_said(name, own[name]) for name in fields if name in own and len({repr(each.get(name)) for each in several}) > 1]


def _name(row: Row, several: Sequence[str], ways: bool, target: int | None) -> str:
    """What tells a line from the others of its workload: the fields of the recipe that vary, the devices, the target."""
    parts = [_said(name, row.recipe.get(name)) for name in several if name != "parallel"]
    parts += [f"{row.devices:,} × {way_of(row)}" if row.devices > 1 else "1 GPU"] if ways else []
    return ", ".join([*parts, *([] if target is None else [f"target {target:,}"])])


def _said(name: str, value: object) -> str:
    title = name.replace("_", " ")
    if value is None:
        return f"own {title}"
    if isinstance(value, bool):
        return title if value else f"no {title}"
    return value if isinstance(value, str) else f"{title} {word(value)}"


# -- grids ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figure:
    """A number of every row: how it is called, and what it is, or None; which end of a line is outlined, and the place of its colour."""

    name: str
    title: str
    unit: str
    of: Callable[[Row], float | None]
    colour: int
    best: Callable[[Sequence[float]], float]
    which: str


def _figures(of: str) -> list[_Figure]:
    speed = _Figure("samples", "Throughput", "samples a second, of all devices", _samples_per_s, 2, max, "the fastest")
    largest = _Figure("largest", "Largest micro-batch", "samples on each device, surely", lambda row: row.largest_batch or None, 0, max, "the largest")
    money = _Figure("usd", "Money", f"US dollars {of}", _usd_of_run if of == OF_RUN else _usd_of_million, 1, min, "the cheapest")
    return [largest, speed, money]


def _samples_per_s(row: Row) -> float | None:
    return row.timing.samples_per_s if row.timing else None


def _usd_of_run(row: Row) -> float | None:
    return row.timing.cost_usd if row.timing else None


def _usd_of_million(row: Row) -> float | None:
    return row.timing.usd_per_million if row.timing else None


def _grid(figure: _Figure, rows: Sequence[Row], shown: _Lines) -> Section:
    from bsmodel.pages import grid

    values = [figure.of(row) for row in rows]
    best: dict[int, float] = {}
    for line, value in zip(shown.numbers, values):
        if value is not None:
            best[line] = figure.best([value, best.get(line, value)])
    columns = list(dict.fromkeys(row.gpu for row in rows))
    several = len(columns) > 1
    tiles = [
        _tile(figure, row, shown, place, several and value is not None and value == best[shown.numbers[place]])
        for place, (row, value) in enumerate(zip(rows, values))
    ]
    look, title = of_page(0), f"{figure.title}: {figure.unit}"
    spec = grid(shown.named, columns, tiles, look.kinds[figure.colour], f"{title}; a line for each way to train, a column for each GPU", look)
    least = least_width([name for _, name in shown.named], columns)
    caption = _caption(figure, tiles, several, " among those of its model" if any(part for part, _ in shown.named) else "")
    return Section(figure.title, (), (Drawing(figure.name, title, caption, spec, least=least, table=_ROWS),))


def _tile(figure: _Figure, row: Row, shown: _Lines, place: int, best: bool) -> Tile:
    value, line = figure.of(row), shown.numbers[place]
    lacks = "" if value is not None else _lacks(row)
    why = _why(row)
    told = {"model": shown.model(place), "trained": shown.named[line][1], "GPU": row.gpu, figure.unit: lacks if value is None else f"{value:,.6g}"}
    told |= {"likely": f"{row.likely_batch:,}" if row.likely_batch else "-", "micro × accumulation × devices": split(row).replace(" x ", " × "), "why": why}
    return Tile(line, row.gpu, lacks or brief(value or 0), value, tuple(told.items()), place, lacks == _OOM, best)


def _why(row: Row) -> str:
    """Why there is no plan, no time or no price of what is asked."""
    return row.verdict if not row.fits else row.timing.unpriced if row.timing else row.untimed or ""


_OOM = "OOM"
_REASONS = {
    _OOM: "not one sample fits",
    "refused": "it cannot be answered, and the table says why",
    "no split": "no number of samples makes the target",
    "no time": "no time is predicted for this GPU",
    "no price": "the catalogue has no price of this GPU; give one with --price",
    "no offer": "of the offers that are asked for none is for this plan, and the table says why",
}


def _lacks(row: Row) -> str:
    """Why a figure is not there, in a word or two: keys of `_REASONS`."""
    if row.status == "refused":
        return "refused"
    if row.status == "does not fit":
        return "no split" if row.largest_batch else _OOM
    return "no time" if row.timing is None else "no offer" if row.timing.unpriced else "no price"


def _caption(figure: _Figure, tiles: Sequence[Tile], several: bool, among: str) -> str:
    found = [f"The deeper the colour, the larger{among}, on a logarithmic scale", *([f"outlined: {figure.which} of its line"] if several else [])]
    found += [f"{word}: {reason}" for word, reason in _REASONS.items() if any(tile.text == word for tile in tiles)]
    return f"{'; '.join(found)}."


# -- money ---------------------------------------------------------------------------------------------------------------------------------


def _priced(rows: Sequence[Row], shown: _Lines) -> tuple[Priced, str]:
    """What can be compared by money and time, of each workload, named by GPU and way to train."""
    places = {id(row): place for place, row in enumerate(rows)}
    found, of = offers(rows, lambda row: ", ".join(filter(None, [row.gpu, shown.named[shown.numbers[places[id(row)]]][1]])))
    several: Priced = {}
    for row, offer in found:
        several.setdefault(shown.model(places[id(row)]), []).append(offer)
    return several, of


def offers_of(rows: Sequence[Row]) -> tuple[list[Offer], str]:
    """What each plan takes, named by model where there are several, GPUs and what varies of the recipe; and of which, as `offers` says."""
    questions = [(row.workload, row.recorded and (row.recorded.options, row.recorded.recipe), row.recipe, row.devices, row.gpu) for row in rows]
    shown = _Lines.of(rows, several_targets=len({*map(repr, questions)}) < len(rows))
    several, places = len({*shown.models}) > 1, {id(row): place for place, row in enumerate(rows)}
    found, of = offers(rows, gpus_of)
    lines = [(shown.model(places[id(row)]), shown.ways[shown.numbers[places[id(row)]]], offer) for row, offer in found]
    named = [(model, ", ".join(filter(None, [model if several else "", offer.name, way])), offer) for model, way, offer in lines]
    return [replace(offer, name=name, model=model) for model, name, offer in named], of


def _findings(rows: Sequence[Row], priced: Mapping[str, Sequence[Offer]], of: str) -> list[str]:
    """How many rows there are of each kind, and the cheapest and the fastest way to train each workload."""
    counts = {status: sum(row.status == status for row in rows) for status in ("plan", "does not fit", "refused")}
    found = [f"{len(rows):,} answers: {counts['plan']:,} have a plan, {counts['does not fit']:,} do not fit, {counts['refused']:,} are refused."]
    for workload, several in [*priced.items()][:_MOST_FINDINGS]:
        fastest, *_, cheapest = frontier(several) * 2  # where there is one, it is both
        ends = [("cheapest", cheapest)] if cheapest == fastest else [("cheapest", cheapest), ("fastest", fastest)]
        told = [f"{end} on {offer.name}, {number(offer.usd)} USD in {number(offer.hours)} h" for end, offer in ends]
        found.append(f"{workload}, {of}: {'; '.join(told)}{' and fastest' if len(ends) == 1 else ''}.")
    return found


def _costs(rows: Sequence[Row], priced: Mapping[str, Sequence[Offer]], of: str) -> Section:
    """A chart of cost against hours for each workload: hours of one say nothing about another."""
    from bsmodel.pages import costs

    name = "Cost against time"
    if not priced:
        return Section(name, ("There is no chart: no row has both a time and a price.",))
    without = sorted({row.gpu for row in rows if row.fits and (row.timing is None or row.timing.price is None)})
    said = [f"Not drawn, without a time or a price: {', '.join(without)}."] if without else []
    caption = "What is above and to the right of the dashed line costs more and takes longer than one of the numbered ways."
    drawings = []
    for place, (workload, several) in enumerate(priced.items()):
        ways = list(dict.fromkeys(offer.way for offer in several))
        kinds = tuple((number % KINDS, way) for number, way in enumerate(ways)) if len(ways) > 1 else ()
        drawings.append(Drawing(f"costs-{place}", f"{workload}: US dollars against hours, {of}", caption, costs(several, of, of_page(0)), kinds))
    return Section(name, tuple(said), tuple(drawings))


def _table(rows: Sequence[Row]) -> Table:
    columns, lines = study_cells(rows)
    caption = "Every row, in the order of the axes: what was asked, what fits, and how long and how much that takes."
    return written(_ROWS, caption, [*columns, ("why", "")], [[*line, _why(row) or "-"] for line, row in zip(lines, rows)])
