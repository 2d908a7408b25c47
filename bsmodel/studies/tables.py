# SPDX-License-Identifier: Apache-2.0
"""The rows of a study in the forms that other tools read: JSON, CSV, Arrow, pandas."""

from __future__ import annotations

import csv
import importlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bsmodel.errors import InvalidInputError
from bsmodel.planning import ranked
from bsmodel.shown import Charted
from bsmodel.studies.kept import adapter
from bsmodel.studies.rows import Row

if TYPE_CHECKING:
    import pandas
    import pyarrow

SCHEMA_VERSION = 4
# Columns of flat forms: where each is in a row. What a row nests deeper (the closed form, ladders, phases) is in the JSON.
COLUMNS: dict[str, str] = {
    **{name: name for name in ("workload", "gpu", "devices", "target_batch", "status", "verdict")},
    **{name: f"recorded.{name}" for name in ("parameters", "trained_parameters", "precision", "optimizer", "torch_version")},
    **{name: name for name in ("usable_bytes", "largest_batch", "likely_batch", "power_of_two", "bounded", "binding", "headroom_bytes")},
    **{name: name for name in ("micro_batch", "accumulation", "effective_batch", "exact")},
    **{name: f"peak.{name}" for name in ("requested_bytes", "allocated_bytes", "reserved_bytes", "reserved_upper_bytes", "device_bytes")},
    **{f"step_{name}": f"timing.step.{name}" for name in ("seconds", "low_seconds", "high_seconds", "device_seconds", "host_seconds")},
    **{name: f"timing.{name}" for name in ("samples_per_s", "knee", "fastest_batch", "hours_per_epoch", "hours", "cost_usd")},
    "mfu": "timing.step.mfu",
    **{name: f"timing.price.{name}" for name in ("usd_per_hour", "source", "cloud", "region", "instance")},
    "instance_cards": "timing.price.count",
    **{name: f"timing.price.{name}" for name in ("spot", "day")},
    **{name: f"timing.{name}" for name in ("rented", "unpriced")},
    **{name: name for name in ("untimed", "learning_rate", "learning_rate_rule", "warmup_steps", "steps_per_epoch", "total_steps")},
}


@dataclass(frozen=True)
class Study(Charted):
    """The rows of a study, in the order of its axes."""

    rows: tuple[Row, ...]

    @property
    def plans(self) -> tuple[Row, ...]:
        """The rows that have a plan: what costs least first, then what is fastest."""
        return ranked(row for row in self.rows if row.fits)

    def to_json(self) -> str:
        """One document with everything, `{"schema_version": ..., "command": "study", "rows": [...]}`."""
        rows = b",\n".join(adapter().dump_json(row) for row in self.rows).decode()
        return f'{{"schema_version": {SCHEMA_VERSION}, "command": "study", "rows": [{rows}]}}\n'

    def records(self) -> list[dict[str, Any]]:
        """A flat dictionary per row: its recipe as `recipe_...`, and `COLUMNS`; None where there is nothing."""
        recipes = sorted({name for row in self.rows for name in row.recipe})
        return [
            {**{f"recipe_{name}": row.recipe.get(name) for name in recipes}, **{column: _at(row, path) for column, path in COLUMNS.items()}}
            for row in self.rows
        ]

    def to_csv(self) -> str:
        """A heading and a line per row."""
        records, text = self.records(), io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(records[0]) if records else list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue()

    def to_arrow(self) -> pyarrow.Table:
        """An Arrow table; needs pyarrow."""
        table: pyarrow.Table = _library("pyarrow").Table.from_pylist(self.records())
        return table

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame; needs pandas."""
        frame: pandas.DataFrame = _library("pandas").DataFrame.from_records(self.records())
        return frame


def _at(row: Row, path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidInputError(f'this form needs {name}, which cannot be imported ({error}); pip install "bsmodel[tables]"') from None
