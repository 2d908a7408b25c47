# SPDX-License-Identifier: Apache-2.0
"""What to change so that a model trains on a card: recipes from mild to drastic, each recorded, and the longest context of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import BsmodelError
from bsmodel.hardware import Gpu
from bsmodel.studies import executors
from bsmodel.studies.answering import answer, refused
from bsmodel.studies.grid import Goal, Recipe
from bsmodel.studies.recordings import tapes
from bsmodel.studies.remedies import TWO_MOMENTS
from bsmodel.studies.rows import Row
from bsmodel.studies.study import Watch, in_silence
from bsmodel.tape import Tape
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
    """What is asked for and every recipe of `RECIPES` on every card, card by card from mild to drastic.

    A recipe keeps what is asked for; where it is then another's, it is left out.

    Where none fits, the last one with half as long samples, and so on. A recipe that the model does not take (adapters where nothing is linear) is a row
    that says why. Raises what recording the first one raises.
    """
    hands = executor or executors.pool([source.library] if source.library else [])
    found: dict[str, list[Advice]] = {gpu.id: [] for gpu in gpus}

    def tried(change: dict[str, Any], cards: Sequence[Gpu], of: Source) -> list[Tape]:
        """Adds the rows of a recipe on some cards, and gives its recordings; none where it is refused."""
        asked = {name: value for name, value in {**changes, **change}.items() if name != "seq_len"}
        recorded: list[Tape] = []
        try:
            recorded = tapes(of, asked, cards, caching, watch, hands)
            rows = [answer(str(of), Recipe.of(asked), tape, gpu, [(devices, goal)])[0] for tape, gpu in zip(recorded, cards, strict=True)]
        except BsmodelError as error:
            if not change:
                raise
            rows = [refused(str(of), Recipe.of(asked), gpu, (devices, goal), error) for gpu in cards]
        for row in rows:
            found[row.gpu].append(Advice(change=change, row=row))
        return recorded

    try:
        first = tried({}, gpus, source)
        last: tuple[dict[str, Any], int] = ({}, first[0].tokens_per_sample)
        for change in _distinct(changes, first[0]):
            last = (change, last[1]) if tried(change, gpus, source) else last
        length = last[1] // 2
        while length >= _SHORTEST and (lacking := [gpu for gpu in gpus if not any(each.row.fits for each in found[gpu.id])]):
            tried({**last[0], "seq_len": length}, lacking, Source.of(source.name, **{**dict(source.options), "seq_len": length}))
            length //= 2
    finally:
        if executor is None:
            hands.shutdown(wait=False, cancel_futures=True)
    return [each for gpu in gpus for each in found[gpu.id]]


def _distinct(changes: Mapping[str, Any], first: Tape) -> list[dict[str, Any]]:
    """The recipes without what is asked for already, and without 8 bits for an optimizer that has no two moments; for a step of one's own there are none."""
    kept: list[dict[str, Any]] = [{}]
    for recipe in () if first.own_step else RECIPES:
        change = {name: value for name, value in recipe.items() if name not in changes and (name != "optimizer" or first.optimizer in TWO_MOMENTS)}
        adapted = changes.get("adapter") and "lora_rank" in change
        packed = "double_quant" in change and "weights" not in change
        if change not in kept and not (adapted or packed):
            kept.append(change)
    return kept[1:]
