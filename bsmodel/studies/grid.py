# SPDX-License-Identifier: Apache-2.0
"""The cells of a study in their order, and which of them can share a recording."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.hardware import Gpu
from bsmodel.parallel import KINDS, Parallel
from bsmodel.planning import MOST_EPOCHS, require_together
from bsmodel.prices import Price
from bsmodel.recording import key_of
from bsmodel.tape import Tape
from bsmodel.training import Training
from bsmodel.units import finite, whole
from bsmodel.workloads import Source, Workload

Subject = Source | Workload | Tape
Axis = str | Subject | Sequence[Tape]  # several tapes: the recordings of one workload, one for each family of kernels


@dataclass(frozen=True)
class Goal:
    """What is to be reached with a model on a card: samples per optimizer step, the run, the learning rate that is known, your prices.

    Raises `InvalidInputError` for counts that are no whole numbers of at least 1, and for what is no finite number above 0.
    `target_batch` is the largest micro-batch by default, `base_lr` at `base_batch` the published one of a named model; `prices` are by
    GPU id, of which a card may have several offers, and None says that it has none, not even the catalogue's. With `ladder`, the row also has
    the peak at every power of two up to the largest batch, which takes a replay each.
    """

    target_batch: int | None = None
    samples: int | None = None
    epochs: float | None = None
    base_lr: float | None = None
    base_batch: int | None = None
    prices: tuple[tuple[str, Price | None], ...] = ()
    ladder: bool = False

    def __post_init__(self) -> None:
        for name in ("target_batch", "samples", "base_batch"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value))
        for name, most in (("epochs", MOST_EPOCHS), ("base_lr", None)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, finite(name, value, above=0, most=most))
        require_together(epochs=self.epochs, samples=self.samples, base_batch=self.base_batch, base_lr=self.base_lr)
        for gpu, price in self.prices:
            if price is not None:
                finite(f"the price of {gpu}", price.usd_per_hour, above=0)

    def offers(self, gpu: str) -> list[Price] | None:
        """The prices of a card, by its id; None where nothing is said of it, and the catalogue's is meant."""
        given = [price for name, price in self.prices if name == gpu]
        return [price for price in given if price is not None] if given else None


@dataclass(frozen=True)
class Recipe:
    """The fields of a training recipe that are not the workload's own."""

    changes: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(given: Training | Mapping[str, object]) -> Recipe:
        """A whole recipe, or only what it changes; refused here where no model could be trained so."""
        changes: dict[str, Any] = dict(given)
        made = Training(**changes)
        changes |= {"parallel": made.parallel} if made.parallel is not None else {}  # of a file's table, too
        return Recipe(tuple(sorted(changes.items())))

    @property
    def document(self) -> dict[str, Any]:
        """As JSON can say it: an optimizer that is no name by where it is defined."""
        return {name: _as_json(value) for name, value in self.changes}

    def ways(self, counts: Iterable[int], kinds: Iterable[str]) -> Iterator[tuple[Recipe, int]]:
        """This recipe for each number of devices and kind of sharing the work, once each: for its own where it has one, and for one device without any."""
        own = dict(self.changes).get("parallel")
        asked = [(self, int(own.devices))] if own is not None else [self._shared(kind, count) for kind in kinds for count in counts]
        yield from dict.fromkeys(asked)

    def _shared(self, kind: str, count: int) -> tuple[Recipe, int]:
        if kind == "ddp" or count == 1:
            return self, count  # told of a recording of one device
        return Recipe.of({**dict(self.changes), "parallel": Parallel(kind=kind, devices=count)}), count


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value


@dataclass(frozen=True)
class Cell:
    """One question of a study."""

    subject: Subject
    recipe: Recipe
    gpu: Gpu
    devices: int
    goal: Goal

    @property
    def label(self) -> str:
        """What the workload is called in a row."""
        return str(self.subject) if isinstance(self.subject, Source) else self.subject.name

    @property
    def recording(self) -> tuple[Any, ...]:
        """Equal for cells that share a recording. A tape is one already, whatever card it is asked about."""
        if isinstance(self.subject, Tape):
            return (id(self.subject), repr(self.recipe))
        return (self.subject if isinstance(self.subject, Source) else id(self.subject), repr(self.recipe), self.gpu.kernel_family)

    @cached_property
    def key(self) -> str:
        """A name that cells with another answer do not have."""
        return key_of(
            workload=_identity(self.subject),
            recipe=self.recipe.document,
            gpu=self.gpu.model_dump(mode="json"),
            devices=self.devices,
            goal=asdict(self.goal),
        )


def _identity(subject: Subject) -> Any:
    """What tells a workload from others: a name's meaning, a recording's content, or only what a workload of one's own is called."""
    if isinstance(subject, Source):
        return subject.identity(own=True) or str(subject)
    if isinstance(subject, Workload):
        return ["own", subject.name]
    content = hashlib.sha256(b"".join(sizes.tobytes() for sizes in (subject.fixed_bytes, subject.per_sample_bytes, subject.per_pair_bytes)))
    content.update(repr((subject.name, subject.recipe, subject.optimizer, subject.blocks)).encode())
    return content.hexdigest()


def cells(
    workloads: Iterable[Axis],
    trainings: Iterable[Training | Mapping[str, object]],
    gpus: Iterable[str | Gpu],
    devices: Iterable[int],
    parallel: Iterable[str],
    goals: Iterable[Goal],
) -> tuple[Cell, ...]:
    """Every combination, the workload changing slowest and the goal fastest.

    Raises `InvalidInputError` where an axis is empty, a number of devices is none, a card is named twice, a price is for a card that is not
    asked about, or two workloads of one's own are called the same.
    """
    subjects = [Source.of(item) if isinstance(item, str) else item for item in workloads]
    recipes = [Recipe.of(item) for item in trainings] or [Recipe()]
    cards = [Gpu.named(item) if isinstance(item, str) else item for item in gpus]
    counts, kinds, wanted = list(devices), list(parallel), list(goals)
    for axis, values in (("workloads", subjects), ("gpus", cards), ("devices", counts), ("parallel", kinds), ("goals", wanted)):
        if not values:
            raise InvalidInputError(f"a study needs at least one of {axis}")
    counts = [whole("devices", count) for count in counts]
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of parallel", kind, KINDS)
    _require_own_names(subjects)
    require_asked_about([name for goal in wanted for name, _ in goal.prices], one_of_each(cards))
    return tuple(
        Cell(subject if isinstance(subject, Subject) else for_card(subject, gpu), way, gpu, count, goal)
        for subject in subjects
        for recipe in recipes
        for gpu in cards
        for way, count in recipe.ways(counts, kinds)
        for goal in wanted
    )


def for_card(tapes: Sequence[Tape], gpu: Gpu) -> Tape:
    """Of the recordings of one workload the one for the kernels of this card; where there is none the first, which is refused in its place."""
    return next((tape for tape in tapes if tape.gpu.kernel_family == gpu.kernel_family), tapes[0])


def one_of_each(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The cards; `InvalidInputError` where two have one id, whose answers could not be told apart."""
    ids = [gpu.id for gpu in gpus]
    for number, name in enumerate(ids):
        if name in ids[:number]:
            raise InvalidInputError(f"GPU {name!r} is asked about twice; name it once, or give a row of your own another id")
    return [*gpus]


def require_asked_about(priced: Iterable[str], gpus: Sequence[Gpu]) -> None:
    """Raises `InvalidInputError` where a price is for none of these cards."""
    ids = [gpu.id for gpu in gpus]
    for name in priced:
        if name not in ids:
            raise InvalidInputError(f"the price of {name} is given, and it is not asked about; the cards are {', '.join(ids)}")


def _require_own_names(subjects: Sequence[Subject | Sequence[Tape]]) -> None:
    names = [subject.name for subject in subjects if isinstance(subject, Workload)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"two workloads are called {twice[0]!r}; give each a name=... of its own")
