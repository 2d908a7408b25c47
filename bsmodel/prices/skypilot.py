# SPDX-License-Identifier: Apache-2.0
"""SkyPilot's catalogue, `<cloud>/vms.csv`, as offers of the cards that are known here, with every row accounted for."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.prices.instances import CARDS, LEAST_BIDS, MACHINES, MEMORY_OF_ALL, family_form, forms_in
from bsmodel.prices.price import Offers, Price, undercut
from bsmodel.units import MiB

NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region")
EXAMPLE = "SkyPilot's catalogue, e.g. ~/.sky/catalogs/v8"
_NEAR = 0.1  # of a card's memory: nominal and reported sizes differ by less, cards by more
_SIZE = re.compile(r"SizeInMiB['\"]?\s*:\s*([0-9.]+)", re.IGNORECASE)  # of a dictionary as Python or JSON writes it, which is not evaluated
_NAME = re.compile(r"['\"]Name['\"]\s*:\s*['\"]([^'\"]*)", re.IGNORECASE)
_GB_BELOW = 1024  # a `SizeInMiB` below this holds GB: RunPod's and Shadeform's


@dataclass
class Account:
    """What became of the rows of one file: `used` by the id of a card, `left_out` by the reason; `assumed` counts used rows by what they do not say."""

    cloud: str
    day: date
    rows: int = 0
    offers: int = 0
    used: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    assumed: Counter[str] = field(default_factory=Counter)


class _LeftOutError(Exception):
    """Why a row is no offer."""


def read_catalogue(folder: Path, day: date | None = None, gpus: Iterable[Gpu] | None = None) -> tuple[Offers, tuple[Account, ...]]:
    """The offers of every `<cloud>/vms.csv` in a folder, and what became of each row.

    Of offers that differ in zone or host only, the cheapest in a region is kept. `day`: of the prices (default: the day each file was changed);
    `gpus`: the cards that are known (default: the catalogue's). Raises `InvalidInputError` where there is no such file, or one without its columns.
    """
    files = sorted(folder.glob("*/vms.csv"))
    if not files:
        deeper = sorted({str(path.parent.parent) for path in folder.glob("*/*/vms.csv")})
        hint = f"; nearest: {', '.join(deeper[-3:])}" if deeper else ""
        raise InvalidInputError(f"no <cloud>/vms.csv in {str(folder)!r}; expected {EXAMPLE}{hint}")
    known = _by_name(Gpu.all() if gpus is None else gpus)
    found = [_read_file(path, day, known) for path in files]
    return tuple(offer for offers, _ in found for offer in offers), tuple(account for _, account in found)


def changed_on(path: Path) -> date:
    """The day that a file was last written, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).date()


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _by_name(gpus: Iterable[Gpu]) -> dict[str, list[Gpu]]:
    """Cards by each name that SkyPilot gives them, those that it usually means first, and of these the SXM one."""
    found: dict[str, list[tuple[int, bool, str, Gpu]]] = {}
    for gpu in gpus:
        for place, name in enumerate(gpu.skypilot_names):
            found.setdefault(_folded(name), []).append((min(place, 1), "SXM" not in gpu.name, gpu.id, gpu))
    return {name: [gpu for *_, gpu in sorted(each, key=lambda entry: entry[:3])] for name, each in found.items()}


def _read_file(path: Path, day: date | None, known: Mapping[str, Sequence[Gpu]]) -> tuple[Offers, Account]:
    rows, account = _rows(path), Account(path.parent.name.lower(), day or changed_on(path))
    machines = {
        (row["InstanceType"], row.get("AvailabilityZone") or row["Region"]): row for _, row in rows if row["InstanceType"] and not row["AcceleratorName"]
    }
    there: dict[tuple[str | None, bool], list[tuple[str, Price]]] = {}
    for line, row in rows:
        account.rows += 1
        try:
            gpu, note, made = _offered(line, row, account, known, machines)
        except _LeftOutError as reason:
            account.left_out[str(reason)] += 1
            continue
        account.used[gpu.id] += 1
        account.assumed.update([note] if note else [])
        for price in made:
            there.setdefault((price.region, price.spot), []).append((gpu.id, price))
    cheapest = tuple(offer for same in there.values() for offer in undercut(same))
    account.offers = len(cheapest)
    return cheapest, account


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a file, each with the line it ends on; one with too many or too few fields has none of them but its instance."""
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        heading = next(reader, [])
        if missing := [name for name in NEEDED if name not in heading]:
            raise InvalidInputError(f"{str(path)!r} has no column {missing[0]}; expected {EXAMPLE}")
        empty = dict.fromkeys(heading, "")
        return [
            (reader.line_num, dict(zip(heading, row, strict=True)) if len(row) == len(heading) else {**empty, "fields": str(len(row))}) for row in reader if row
        ]
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{str(path)!r} is no CSV of text: {error}") from None


# -- one row -------------------------------------------------------------------------------------------------------------------------------


def _offered(
    line: int, row: Mapping[str, str], account: Account, known: Mapping[str, Sequence[Gpu]], machines: Mapping[tuple[str, str], Mapping[str, str]]
) -> tuple[Gpu, str, list[Price]]:
    """The card of a row, what is assumed of it, and its prices; raises `_LeftOutError`."""
    if "fields" in row:
        raise _LeftOutError(f"unreadable: line {line} has {row['fields']} fields")
    name, cloud = row["AcceleratorName"].strip(), account.cloud
    if not name:
        raise _LeftOutError("no accelerator")
    if name.startswith("tpu-"):
        raise _LeftOutError("TPU")
    if cloud in LEAST_BIDS:
        raise _LeftOutError("its price is the least bid of an auction")
    count = _count(line, row)
    if (right := CARDS.get((cloud, row["InstanceType"]), count)) != count:
        raise _LeftOutError(f"{row['InstanceType']} has {right} cards, and not {count}")
    gpu, note = _card(row, name, count, cloud, known)
    if not row["Region"].strip():
        raise _LeftOutError("offered in no region")
    figures = _figures(line, row), _figures(line, row, "SpotPrice")
    instance = row["InstanceType"]
    if not instance:
        instance, figures = _with_machine(line, row, name, count, machines, figures)
    if figures == (None, None):
        raise _LeftOutError("no price")
    source, region = f"SkyPilot's catalogue, {cloud}/vms.csv", row["Region"].strip()
    try:
        made = [
            Price(usd / count, source, cloud, region, instance, count, spot, account.day, note)
            for spot, usd in zip((False, True), figures, strict=True)
            if usd is not None
        ]
    except InvalidInputError as error:  # figures beyond what a double holds
        raise _LeftOutError(f"unreadable: line {line}: {error}") from None
    return gpu, note, made


def _count(line: int, row: Mapping[str, str]) -> int:
    try:
        count = float(row["AcceleratorCount"])
    except ValueError:
        count = math.nan
    if not math.isfinite(count) or count <= 0:
        raise _LeftOutError(f"unreadable: line {line} has {row['AcceleratorCount']!r} accelerators")
    if count != int(count):
        raise _LeftOutError("a part of a card")
    return int(count)


def _figures(line: int, row: Mapping[str, str], column: str = "Price") -> float | None:
    """A price of the instance; None where there is none, which some clouds write as 0."""
    text = row[column].strip()
    if not text:
        return None
    try:
        usd = float(text)
    except ValueError:
        usd = math.nan
    if not math.isfinite(usd) or usd < 0:
        raise _LeftOutError(f"unreadable: line {line} has the {column} {text!r}")
    return usd or None


def _card(row: Mapping[str, str], name: str, count: int, cloud: str, known: Mapping[str, Sequence[Gpu]]) -> tuple[Gpu, str]:
    """The card that is meant: by its name, of those the ones with its memory, of those the one in its form; what is not said is noted."""
    about = row.get("GpuInfo") or ""
    candidates = known.get(_folded(name))
    if not candidates:
        raise _LeftOutError(f"{name} is not among the cards known here")
    memory = _memory_mib(about, count, cloud)
    if memory:
        candidates = [gpu for gpu in candidates if abs(gpu.memory_bytes / MiB - memory) <= _NEAR * memory]
        if not candidates:
            raise _LeftOutError(f"{name} of {memory / 1024:.0f} GiB is not among the cards known here")
    told = _NAME.search(about)
    said = forms_in(" ".join((name, row["InstanceType"], row.get("UpstreamCloudId") or "", told[1] if told else "")))
    if len(said) > 1:
        raise _LeftOutError(f"{name} is called both {' and '.join(sorted(said))}")
    form = next(iter(said), None) or family_form(cloud, row["InstanceType"] or next(iter(MACHINES.get((name, count), ())), ""))
    if form is None:
        usual = "".join(forms_in(candidates[0].name))
        return candidates[0], f"its form is not said: counted as {usual}" if usual else ""
    fitting = [gpu for gpu in candidates if form in (forms_in(gpu.name) or (form,))]
    if not fitting:
        raise _LeftOutError(f"{name} as {form} is not among the cards known here")
    return fitting[0], ""


def _memory_mib(about: str, count: int, cloud: str) -> float:
    """The memory of one card in MiB; 0 where it is not said. Some clouds write GB, or that of all cards together."""
    size = _SIZE.search(about)
    memory = float(size[1]) if size else 0.0
    memory *= 1024 if memory < _GB_BELOW else 1
    return memory / count if cloud in MEMORY_OF_ALL else memory


def _with_machine(
    line: int,
    row: Mapping[str, str],
    name: str,
    count: int,
    machines: Mapping[tuple[str, str], Mapping[str, str]],
    figures: tuple[float | None, float | None],
) -> tuple[str, tuple[float | None, float | None]]:
    """The cheapest machine that cards without one are rented with, and the price of both; raises `_LeftOutError` where none is known."""
    names = MACHINES.get((name, count))
    if names is None:
        raise _LeftOutError("priced without its machine, which can be one of many")
    place = row.get("AvailabilityZone") or row["Region"]
    found = [
        (usd, each, _figures(line, machine, "SpotPrice"))
        for each in names
        if (machine := machines.get((each, place))) is not None and (usd := _figures(line, machine)) is not None
    ]
    if not found:
        raise _LeftOutError("priced without its machine, which has no price there")
    usd, machine_name, spot = min(found, key=lambda each: each[:2])
    return machine_name, (figures[0] + usd if figures[0] else None, figures[1] + spot if figures[1] and spot else None)
