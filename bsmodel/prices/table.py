# SPDX-License-Identifier: Apache-2.0
"""A table of offers as CSV or TOML: the user's own, and the one that `bsmodel prices update` keeps."""

from __future__ import annotations

import csv
import io
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.files import write_whole
from bsmodel.hardware import Gpu
from bsmodel.prices.price import Offers, Price
from bsmodel.prices.skypilot import changed_on

FOLDER_VARIABLE = "BSMODEL_DATA_DIR"
_HEADING = "# offers, kept by `bsmodel prices update`; safe to delete\n"


def _number(value: object) -> object:
    """A number that a CSV writes as text; what is none is refused as it stands."""
    if not isinstance(value, str):
        return value
    try:
        return int(value) if value.strip().isdecimal() else float(value)
    except ValueError:
        return value


class OfferRow(BaseModel):
    """One offer: an instance with `count` cards, at `usd_per_hour` for all of them; without a count one card, of as many as are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    gpu: str = Field(min_length=1)
    """Id or alias of a card."""
    usd_per_hour: Annotated[float, BeforeValidator(_number), Field(gt=0)]
    """US dollars an hour for the whole instance."""
    count: Annotated[int, BeforeValidator(_number), Field(ge=1)] | None = None
    """Cards in the instance, which is rented whole."""
    spot: Annotated[bool, BeforeValidator(lambda value: {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value)] = False
    """Whether it can be taken away."""
    cloud: str | None = None
    """Whose it is, lower case, as it is asked for."""
    region: str | None = None
    """Where it stands."""
    instance: str | None = None
    """What it is called there."""
    day: Annotated[date, BeforeValidator(lambda value: date.fromisoformat(value) if isinstance(value, str) else value)] | None = None
    """Of when the price is; the day the file was changed where it is not given."""
    source: str | None = None
    """Whose figure it is; the file where it is not given."""
    note: str = ""
    """What is not known of the card."""

    def price(self, source: str, day: date) -> Price:
        """As plans take it: for one card."""
        cloud = self.cloud.lower() if self.cloud else None
        place = (cloud, self.region, self.instance)
        return Price(self.usd_per_hour / (self.count or 1), self.source or source, *place, self.count, self.spot, self.day or day, self.note)


def load(path: str | Path, day: date | None = None) -> Offers:
    """The offers of a table, CSV or TOML by the name of its file, each as the id of a card and a `Price`; `Goal(prices=...)` takes them.

    A CSV has a heading, and any of the columns of `OfferRow`, of which `gpu` and `usd_per_hour` are needed; a TOML file has a table `[[offers]]` with
    the same keys for each. `day`: of prices that have none (default: the day the file was changed). Raises `InvalidInputError` with the line of the
    first row that is wrong.
    """
    path = Path(path)
    try:
        text, day = path.read_text(encoding="utf-8-sig"), day or changed_on(path)
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{str(path)!r} is no text: {error.reason}") from None
    rows = _of_toml(text, path) if path.suffix.lower() == ".toml" else _of_csv(text, path)
    ids: dict[str, str] = {}
    found = []
    for line, values in rows:
        try:
            row = _validated(values)
            name = ids.get(row.gpu) or ids.setdefault(row.gpu, Gpu.named(row.gpu).id)
            found.append((name, row.price(path.name, day)))
        except BsmodelError as error:
            raise InvalidInputError(f"{str(path)!r}, line {line}: {error}") from None
    if not found:
        raise InvalidInputError(f"{str(path)!r} has no offers; expected rows with gpu and usd_per_hour")
    return tuple(found)


def _of_csv(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    heading: list[str] = []
    try:
        for row in reader:
            if not row or row[0].startswith("#"):
                continue
            if not heading:
                heading = [name.strip() for name in row]
                _require_columns(heading, f"{str(path)!r}, line {reader.line_num}")
                continue
            if len(row) != len(heading):
                raise InvalidInputError(f"{str(path)!r}, line {reader.line_num}: {len(row)} fields; expected {len(heading)}: {', '.join(heading)}")
            yield reader.line_num, {name: text for name, value in zip(heading, row, strict=True) if (text := value.strip())}
    except csv.Error as error:
        raise InvalidInputError(f"{str(path)!r}, line {reader.line_num}: {error}") from None


def _require_columns(heading: list[str], where: str) -> None:
    for name in heading:
        if name not in OfferRow.model_fields:
            raise InvalidInputError(f"{where}: {UnknownNameError('column', name, OfferRow.model_fields)}")
        if heading.count(name) > 1:
            raise InvalidInputError(f"{where}: column {name} is there twice")
    for name in ("gpu", "usd_per_hour"):
        if name not in heading:
            raise InvalidInputError(f"{where}: no column {name}; expected a heading with gpu and usd_per_hour")


def _of_toml(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        values = tomllib.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{str(path)!r} is not TOML: {error}") from None
    for name in values:
        if name != "offers":
            raise InvalidInputError(f"{str(path)!r}: {UnknownNameError('key', name, ['offers'])}")
    offers = values.get("offers", [])
    if not isinstance(offers, list) or not all(isinstance(each, dict) for each in offers):
        raise InvalidInputError(f"{str(path)!r}: offers is no list of tables; expected [[offers]]")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.replace(" ", "").startswith("[[offers]]")]
    yield from zip(lines if len(lines) == len(offers) else [1] * len(offers), offers, strict=True)


def _validated(values: Mapping[str, Any]) -> OfferRow:
    try:
        return OfferRow.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        field = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise UnknownNameError("key", field, OfferRow.model_fields) from None
        if first["type"] == "missing":
            raise InvalidInputError(f"no {field}; expected gpu and usd_per_hour in every row") from None
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidInputError(f"{field} is {first['input']!r}; {said[0].lower()}{said[1:]}") from None


# -- the one that is kept ------------------------------------------------------------------------------------------------------------------


def kept_path() -> Path:
    """The table of `bsmodel prices update`: in `BSMODEL_DATA_DIR`, else in the system's folder for a user's data."""
    return Path(os.environ.get(FOLDER_VARIABLE) or platformdirs.user_data_dir("bsmodel", appauthor=False)) / "prices.csv"


def kept() -> Offers:
    """The offers that are kept, or none; raises `InvalidInputError` where their file cannot be read."""
    path = kept_path()
    return load(path) if path.exists() else ()


def keep(offers: Iterable[tuple[str, Price]]) -> Path:
    """Keep these in the place of what is kept, and return where; raises `InvalidInputError` where that cannot be written."""
    text, path = io.StringIO(), kept_path()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(OfferRow.model_fields)
    for gpu, price in offers:
        place = (price.cloud or "", price.region or "", price.instance or "")
        whole = (repr(price.instance_usd_per_hour), price.count or "", str(price.spot).lower())
        writer.writerow((gpu, *whole, *place, price.day.isoformat() if price.day else "", price.source, price.note))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot write the prices {str(path)!r}: {error.strerror}") from None
    write_whole(path, (_HEADING + text.getvalue()).encode(), "the prices")
    return path
