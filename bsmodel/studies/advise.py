# SPDX-License-Identifier: Apache-2.0
"""What to change so that a model trains on a card: recipes from mild to drastic, each recorded, and the longest context of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import BsmodelError
from bsmodel.hardware import Gpu
from bsmodel.parallel import Parallel
from bsmodel.studies import executors
from bsmodel.studies.answering import Ask, answer, refused
from bsmodel.studies.grid import Goal, Recipe
from bsmodel.studies.recordings import tapes
from bsmodel.studies.remedies import TWO_MOMENTS
from bsmodel.studies.rows import Row
from bsmodel.studies.study import Watch, in_silence
from bsmodel.tape import Tape
from bsmodel.training import Training
from bsmodel.workloads import Source

# From mild to drastic: time for memory; moments and then weights of less precision; other things that are trained, and weights that are packed.
RECIPES: tuple[dict[str, Any], ...] = (
    {"checkpointing": True},
    {"checkpointing": True, "optimizer": "adamw-8bit"},
    {"checkpointing": True, "optimizer": "adamw-8bit", "precision": "bf16"},
    {"lora_rank": 16},
    {"lora_rank": 16, "checkpointing": True},
    {"lora_rank": 16, "checkpointing": True, "weights": "nf4", "double_quant": True},
)


_SHORTEST = 128  # tokens
Record = Callable[[Source, Mapping[str, Any], Sequence[Gpu]], list[Tape]]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One recipe on one card: what it changes, and the row that says whether and how it trains."""

    change: dict[str, Any]
    row: Row


def advise(
    source: Source,
    changes: Mapping[str, Any],
    gpus: Sequence[Gpu],
    goal: Goal,
    devices: int = 1,
    caching: bool | None = None,
    watch: Watch = in_silence,
    executor: Executor | None = None,
) -> list[Advice]:
    """What is asked for and every recipe of `RECIPES` on every card, card by card from mild to drastic; several devices share the work as fsdp2 does.

    A recipe keeps what is asked for; where it is then another's, it is left out.

    Where none fits, the last one with half as long samples, and so on. A recipe that the model does not take (adapters where nothing is linear) is a row
    that says why. Raises what recording the first one raises.
    """
    hands = executor or executors.pool([source.library] if source.library else [])

    def record(of: Source, asked: Mapping[str, Any], cards: Sequence[Gpu]) -> list[Tape]:
        return tapes(of, asked, cards, caching, watch, hands)

    try:
        return _advice(source, changes, gpus, (devices, goal), record)
    finally:
        if executor is None:
            hands.shutdown(wait=False, cancel_futures=True)


def _advice(source: Source, changes: Mapping[str, Any], gpus: Sequence[Gpu], ask: Ask, record: Record) -> list[Advice]:
    """The advice for every card, one after the other."""
    made, first = _tried(source, changes, {}, gpus, ask, record)
    last: dict[str, Any] = {}
    for change in _distinct(changes, first[0], _recipes(changes, ask[0])):
        more, recorded = _tried(source, changes, change, gpus, ask, record)
        made, last = made + more, change if recorded else last
    length = first[0].tokens_per_sample // 2
    while length >= _SHORTEST and (lacking := [gpu for gpu in gpus if not any(each.row.fits for each in made if each.row.gpu == gpu.id)]):
        made += _tried(source, changes, {**last, "seq_len": length}, lacking, ask, record)[0]
        length //= 2
    return [each for gpu in gpus for each in made if each.row.gpu == gpu.id]


def _tried(
    source: Source, changes: Mapping[str, Any], change: dict[str, Any], gpus: Sequence[Gpu], ask: Ask, record: Record
) -> tuple[list[Advice], list[Tape]]:
    """A recipe on some cards, and its recordings; none where it is refused."""
    of, asked = _asked(source, changes, change)
    recipe, label = Recipe(tuple(sorted(asked.items()))), str(of)
    try:
        recipe = Recipe.of(asked)
        recorded = record(of, asked, gpus)
    except BsmodelError as error:
        if not change:
            raise
        return [Advice(change=change, row=refused(label, recipe, gpu, ask, error)) for gpu in gpus], []
    rows = [answer(label, recipe, tape, gpu, [ask])[0] for tape, gpu in zip(recorded, gpus, strict=True)]
    return [Advice(change=change, row=row) for row in rows], recorded


def _asked(source: Source, changes: Mapping[str, Any], change: dict[str, Any]) -> tuple[Source, dict[str, Any]]:
    """The workload and the recipe that a change makes: a length is the workload's."""
    asked = {**changes, **change}
    length = asked.pop("seq_len", None)
    return source if length is None else Source.of(source.name, **{**dict(source.options), "seq_len": length}), asked


def _recipes(changes: Mapping[str, Any], devices: int) -> Sequence[dict[str, Any]]:
    """`RECIPES`, of which several devices hold shards but where weights are quantized: that changes nothing of what is trained, and comes first."""
    if devices == 1 or "parallel" in changes:
        return RECIPES
    shards = {"parallel": Parallel(kind="fsdp2", devices=devices)}
    try:
        Training(**{**changes, **shards})
    except BsmodelError:  # of what is asked for there are no shards
        return RECIPES
    return (shards, *(recipe if "weights" in recipe else {**shards, **recipe} for recipe in RECIPES))


def _distinct(changes: Mapping[str, Any], first: Tape, recipes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The recipes without what is asked for already, and without 8 bits for an optimizer that has no two moments; for a step of one's own there are none."""
    kept: list[dict[str, Any]] = [{}]
    for recipe in () if first.own_step else recipes:
        change = {name: value for name, value in recipe.items() if name not in changes and (name != "optimizer" or first.optimizer in TWO_MOMENTS)}
        adapted = changes.get("adapter") and "lora_rank" in change
        packed = "double_quant" in change and "weights" not in change
        if change not in kept and not (adapted or packed):
            kept.append(change)
    return kept[1:]
