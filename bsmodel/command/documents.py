# SPDX-License-Identifier: Apache-2.0
"""What each command answers with `--json`, as types with a published schema."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from bsmodel.gate import Baseline, Verdict
from bsmodel.hardware import Gpu
from bsmodel.memory import Footprint, Peak
from bsmodel.planning import NoiseScale
from bsmodel.prices import Price
from bsmodel.studies import SCHEMA_VERSION, LengthRow, PaddedRow, Recorded, Row
from bsmodel.tape import ModuleRow, OperatorRow
from bsmodel.trials import RateRange, Recommendation, StepsLaw, TrialRow
from bsmodel.workloads import ModelRow

Notes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The head of every answer. Numbers are bytes unless their name says otherwise; what is unknown is null."""

    command: str
    schema_version: int = SCHEMA_VERSION
    notes: Notes = ()  # figures that the user measured, cards that a recording leaves out, versions other than those installed


@dataclass(frozen=True, kw_only=True)
class PlanDocument(Document):
    """`bsmodel plan`: a row for each GPU."""

    workload: Recorded
    gpus: tuple[Row, ...]
    uncounted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LengthsDocument(Document):
    """`bsmodel plan --seq-len N:M` or `--image-size N:M`: a row for each length and GPU, and the longest that trains alone on each GPU, of at most `limits`."""

    workload: Recorded
    option: str
    rows: tuple[LengthRow, ...]
    longest: dict[str, int]
    limits: dict[str, int]
    limit: int


@dataclass(frozen=True, kw_only=True)
class PaddedDocument(Document):
    """`bsmodel plan --lengths FILE`: a row for each GPU, of batches of samples of these lengths."""

    workload: Recorded
    gpus: tuple[PaddedRow, ...]
    samples: int | None
    mean_len: float
    longest: int


@dataclass(frozen=True, kw_only=True)
class CompareDocument(Document):
    """`bsmodel compare`: rows that have a plan, cheapest first, and why other GPUs, or other ways to share the work on these, have none."""

    workload: Recorded
    gpus: tuple[Row, ...]
    left_out: Annotated[dict[str, str], Field(serialization_alias="not")]


@dataclass(frozen=True, kw_only=True)
class CardPeak(Peak):
    """The peak on one GPU."""

    gpu: str
    usable_bytes: int


@dataclass(frozen=True, kw_only=True)
class PredictDocument(Document):
    """`bsmodel predict`: the peak at one batch on each GPU."""

    workload: Recorded
    gpus: tuple[CardPeak, ...]
    uncounted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CheckDocument(Document):
    """`bsmodel check`: whether it passes, the line that says so, the verdict where anything was checked, and the baseline where one was written."""

    workload: Recorded
    passes: bool
    line: str
    verdict: Verdict | None
    saved: Baseline | None
    uncounted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CountedForm:
    """The formula of every tutorial, `states_bytes + activation_bytes b`, and `pair_bytes` for each of the `b (b - 1) / 2` pairs of samples."""

    states_bytes: int
    activation_bytes: int
    pair_bytes: int


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Who holds the bytes at the binding moment on one GPU; `allocated_bytes` is the replay's peak."""

    gpu: str
    moment: str
    total_bytes: int
    by_category: dict[str, int]
    by_module: dict[str, int]
    closed_form: Footprint
    counted_form: CountedForm
    allocated_bytes: int


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the devices say to one another in one phase of a step: a kind of collective, how often, and its bytes on each of them in all; of which GPUs."""

    phase: str
    kind: str
    count: int
    total_bytes: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExplainDocument(Document):
    """`bsmodel explain`: bytes by category and module for each GPU, or with `--by` the modules or operators of one recording."""

    workload: Recorded
    batch: int
    gpus: tuple[Explained, ...] = ()
    modules: tuple[ModuleRow, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    collectives: tuple[Said, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GpusDocument(Document):
    """`bsmodel gpus`: rows of the catalogue."""

    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, kw_only=True)
class StudyDocument(Document):
    """`bsmodel study`: a row for every cell."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Advised:
    """One recipe on one GPU: the flags that it adds, its fields, whether it is the mildest that fits there, and the plan or why there is none."""

    recipe: str
    change: dict[str, Any]
    mildest: bool
    row: Row


@dataclass(frozen=True, kw_only=True)
class AdviseDocument(Document):
    """`bsmodel advise`: recipes from mild to drastic, GPU by GPU."""

    workload: Recorded
    recipes: tuple[Advised, ...]


@dataclass(frozen=True, kw_only=True)
class ModelsDocument(Document):
    """`bsmodel models`: what has a name."""

    models: tuple[ModelRow, ...]


@dataclass(frozen=True, kw_only=True)
class Offered:
    """One offer: a card, the price of all cards of the instance, and that of one, with where and of when it is."""

    gpu: str
    instance_usd_per_hour: float
    price: Price


@dataclass(frozen=True, kw_only=True)
class PricesDocument(Document):
    """`bsmodel prices`: the offers that are asked about, by card and then by the price of one card."""

    offers: tuple[Offered, ...]


@dataclass(frozen=True, kw_only=True)
class FileAccount:
    """What became of the rows of one file: used, by card; left out, by reason; and used though something is not said, by what."""

    file: str
    day: date
    rows: int
    offers: int
    used: dict[str, int]
    left_out: dict[str, int]
    assumed: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class UpdateDocument(Document):
    """`bsmodel prices update`: where the offers are kept, how many, and what became of every row that was read."""

    kept: str
    offers: int
    files: tuple[FileAccount, ...]


@dataclass(frozen=True, kw_only=True)
class TrialDocument(Document):
    """`bsmodel trial`: what was asked, a row for each batch, and what follows: `elsewhere` for cards that it did not run on, by prediction."""

    question: dict[str, Any]
    rows: tuple[TrialRow, ...]
    noise_scale: NoiseScale | None
    law: StepsLaw | None
    critical_batch: float | None
    recommended: Recommendation | None
    elsewhere: dict[str, Recommendation]


@dataclass(frozen=True, kw_only=True)
class RatesDocument(Document):
    """`bsmodel trial --lr-range LOW:HIGH`: the loss as the learning rate rises, and the two rates that are read from it."""

    curve: RateRange
    steepest: float | None
    diverged_at: float | None
    tenth_of_divergence: float | None


DOCUMENTS: dict[str, Any] = {
    "plan": PlanDocument | LengthsDocument | PaddedDocument,
    "advise": AdviseDocument,
    "compare": CompareDocument,
    "predict": PredictDocument,
    "check": CheckDocument,
    "explain": ExplainDocument,
    "gpus": GpusDocument,
    "models": ModelsDocument,
    "prices": PricesDocument | UpdateDocument,
    "study": StudyDocument,
    "trial": TrialDocument | RatesDocument,
}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def text(document: Document) -> str:
    """The document as `--json` prints it."""
    return _adapter(type(document)).dump_json(document, indent=2, by_alias=True).decode() + "\n"


def schema(command: str) -> str:
    """The JSON schema of a command's document."""
    return json.dumps(_adapter(DOCUMENTS[command]).json_schema(mode="serialization"), indent=2) + "\n"
