# SPDX-License-Identifier: Apache-2.0
"""What to change where not one sample fits: recipes that are recorded and tried, from mild to drastic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bsmodel.hardware import Gpu
from bsmodel.parallel import Parallel
from bsmodel.studies.grid import Cell, Goal, Recipe
from bsmodel.studies.rows import Recorded, Row
from bsmodel.tape import Tape
from bsmodel.training import PRECISIONS, QUANTIZED, Training

# Checkpointing costs time, 8-bit state and bfloat16 weights some precision; adapters train something else.
_MILD_TO_DRASTIC: tuple[dict[str, Any], ...] = (
    {"checkpointing": True},
    {"checkpointing": True, "optimizer": "adamw-8bit"},
    {"checkpointing": True, "precision": "bf16"},
    {"checkpointing": True, "precision": "bf16", "optimizer": "adamw-8bit"},
    {"checkpointing": True, "precision": "bf16", "lora_rank": 16},
)
_LEAST_BYTES = {"fp16": 2, "bf16": 2, **{name: rule.bits // 8 for name, rule in QUANTIZED.items()}}  # of a weight in a format, in whole ones
TWO_MOMENTS = ("adam", "adamw", "adamw-fused", "adamw-forloop")  # float32 ones, of the algorithm that 8 bits are known for


def remedies(cell: Cell, row: Row) -> tuple[dict[str, Any], ...]:
    """Changes of recipe to try for a row in which not one sample fits; none where nothing can be recorded.

    What was asked for is kept, and what the recipe has already is not repeated.
    """
    if isinstance(cell.subject, Tape) or row.recorded is None or row.status != "does not fit" or row.largest_batch:
        return ()
    able = _able(row.recorded, cell.gpu) - _asked_for(cell.recipe)
    return tuple(_distinct({name: value for name, value in change.items() if name in able} for change in _MILD_TO_DRASTIC))


def _hopeless(cell: Cell, row: Row, change: dict[str, Any]) -> bool:
    """Whether even the states do not fit: then no recording is needed to know."""
    return row.recorded is not None and _states_bytes(row.recorded, change) // _shards(row.recorded) > cell.gpu.usable_bytes


def _shards(recorded: Recorded) -> int:
    """Among how many devices states are divided at the most."""
    parallel = recorded.recipe.get("parallel") or {"kind": "ddp"}
    return 1 if parallel["kind"] == "ddp" else int(parallel["devices"])


def _states_bytes(recorded: Recorded, change: dict[str, Any]) -> int:
    """What weights, gradients and moments take at the very least."""
    weight_bytes = 4 if PRECISIONS[change.get("precision", recorded.precision)].weights == "float32" else 2
    if (held := recorded.recipe.get("weights")) is not None:
        weight_bytes = _LEAST_BYTES.get(held, weight_bytes)
    trained = 0 if "lora_rank" in change else recorded.trained_parameters
    moment_bytes = 1 if "8bit" in change.get("optimizer", recorded.optimizer) else weight_bytes if recorded.optimizer in TWO_MOMENTS else 0
    return weight_bytes * (recorded.parameters + trained) + 2 * moment_bytes * trained


def _able(recorded: Recorded, gpu: Gpu) -> set[str]:
    """Fields of the recipe in which a change can help on this card."""
    precision = PRECISIONS[recorded.precision]
    helps = {
        "checkpointing": not recorded.own_step and not recorded.recipe.get("checkpointing"),
        "optimizer": recorded.optimizer in TWO_MOMENTS,
        "precision": not recorded.own_step and gpu.supports_bf16 and precision.weights == "float32",
        "lora_rank": not recorded.own_step and not recorded.recipe.get("lora_rank") and not recorded.recipe.get("frozen"),
    }
    return {name for name, able in helps.items() if able}


def _asked_for(recipe: Recipe) -> set[str]:
    """Fields that were given; of a whole recipe, those that are not as they would be by default."""
    given = dict(recipe.changes)
    if given.keys() < Training.model_fields.keys():
        return set(given)
    return {name for name, value in given.items() if value != Training.model_fields[name].default}


def written(change: dict[str, Any]) -> str:
    """A change as the command line takes it."""
    return " ".join(f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {_word(value)}" for name, value in change.items())


def _word(value: Any) -> str:
    if not isinstance(value, Parallel):
        return str(value)
    tensor = f" --tensor {value.tensor}" if 1 < value.tensor < value.devices else ""
    return f"{value.kind} --devices {value.devices}{tensor}"


def remedied(unfit: Sequence[tuple[Cell, Row]], work: Callable[[Sequence[Cell]], Iterable[tuple[Cell, Row]]]) -> Iterator[tuple[Cell, Row]]:
    """Each row with what makes it fit, the first of its remedies that does; all are tried side by side, a remedy at a time.

    `work` gives the rows of other cells. One whose states alone are too large is known to fail; one that cannot be recorded is passed over, and a
    field that cannot be changed left out.
    """
    waiting = []
    for cell, row in unfit:
        changes = remedies(cell, row)
        hopeless = [written(change) for change in changes if _hopeless(cell, row, change)]
        waiting.append((cell, row, [change for change in changes if written(change) not in hopeless], hopeless))
    while waiting:
        trials = [_trial(cell, left[0]) if left else cell for cell, _, left, _ in waiting]
        tried = {id(trial): found for trial, found in work([trial for trial, (*_, left, _) in zip(trials, waiting, strict=True) if left])}
        still = []
        for trial, (cell, row, left, failed) in zip(trials, waiting, strict=True):
            found = tried.get(id(trial))
            if found is not None and found.largest_batch:
                yield cell, replace(row, verdict=f"{row.verdict}; try {written(left[0])}: up to batch {found.largest_batch:,}")
            elif found is None:
                yield cell, replace(row, verdict=row.verdict + _in_vain(failed))
            else:
                refused = found.status == "refused"
                still.append((cell, row, _after(left, refused), failed if refused else [*failed, written(left[0])]))
        waiting = still


def _after(left: Sequence[dict[str, Any]], refused: bool) -> list[dict[str, Any]]:
    """What there is to try after the first of the remedies; a model that cannot be checkpointed is tried without."""
    first = left[0]
    impossible = {"checkpointing"} if refused and "checkpointing" in first else set(first) if refused and len(first) == 1 else set()
    rest = left if "checkpointing" in impossible else left[1:]
    return _distinct(({name: value for name, value in change.items() if name not in impossible} for change in rest), without=written(first))


def _distinct(changes: Iterable[dict[str, Any]], without: str = "") -> list[dict[str, Any]]:
    found = {written(change): change for change in changes if change}
    return [change for text, change in found.items() if text != without]


def _trial(cell: Cell, change: dict[str, Any]) -> Cell:
    return replace(cell, recipe=Recipe(tuple(sorted({**dict(cell.recipe.changes), **change}.items()))), goal=Goal())


def _in_vain(failed: Sequence[str]) -> str:
    if not failed:
        return ""
    return f"; {failed[0]} does not fit either" if len(failed) == 1 else f"; none of {', '.join(failed)} fits either"
