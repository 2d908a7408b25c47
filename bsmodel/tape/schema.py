# SPDX-License-Identifier: Apache-2.0
"""What a saved tape holds, as a strict schema, and what its fields must have to do with one another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bsmodel.errors import BsmodelError, InvalidInputError, UnknownNameError
from bsmodel.hardware import KINDS, Gpu
from bsmodel.parallel import MOST_DEVICES
from bsmodel.tape.operations import COEFFICIENTS, COLUMNS, DTYPES, KEEPS, PHASES
from bsmodel.tape.polynomials import Polynomial
from bsmodel.tape.tape import AFTER, APART, BLOCKS, CATEGORIES, REPEATED, programs
from bsmodel.tape.workspaces import FORMULAS
from bsmodel.training import PRECISIONS, Training
from bsmodel.units import MOST_COUNT

SCHEMA_VERSION = 16
SIZES = ("fixed_bytes", "per_sample_bytes", "per_pair_bytes")
_EXPECTED = "expected none below zero, and none that falls, from batch 1 on"

Size = Annotated[int, Field(ge=-MOST_COUNT, le=MOST_COUNT)]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Positive = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Sizes = tuple[Size, Size, Size]  # a `Polynomial`
Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # times a batch and another still none that overflows
Numbers = tuple[tuple[Number, ...], ...]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Words(_Checked):
    """Text as positions in a list of words."""

    words: tuple[str, ...]
    index: tuple[Count, ...]


class SavedOperations(_Checked):
    """`Operations`, row by row."""

    operators: tuple[str, ...]
    modules: tuple[str, ...]
    phases: tuple[str, ...]
    kinds: tuple[str, ...]
    dtypes: tuple[str, ...]
    fixed: Numbers
    per_sample: Numbers
    per_pair: Numbers


class SavedTape(_Checked):
    """`Tape`, field by field."""

    name: str
    precision: str
    optimizer: str
    optimizer_family: Literal["sgd", "adam", "layerwise"]
    gpu: Gpu
    accumulation: Positive
    versions: dict[str, str]
    recorded_batches: tuple[Positive, ...] = Field(min_length=1)
    parameter_count: Count
    trained_parameter_count: Count
    tokens_per_sample: Positive
    fixed_bytes: tuple[Size, ...]
    per_sample_bytes: tuple[Size, ...]
    per_pair_bytes: tuple[Size, ...]
    operators: Words
    modules: Words
    phases: Words
    categories: Words
    terms: tuple[tuple[Count, str, tuple[Sizes, ...]], ...]
    workspaces: tuple[tuple[Count, str, Sizes], ...]
    streams: tuple[tuple[Count, Positive], ...]
    lent: tuple[tuple[Count, Annotated[tuple[Count, ...], Field(min_length=1)]], ...]
    waits: dict[str, tuple[tuple[Count, Count, Count], ...]]
    blocks: dict[str, tuple[int, ...]]
    reached: dict[str, tuple[Count, ...]]
    operations: SavedOperations
    uncounted_operators: tuple[str, ...]
    uncounted: tuple[str, ...]
    recipe: dict[str, JsonValue]
    options: dict[str, JsonValue]
    base_lr: Annotated[float, Field(gt=0)] | None
    base_batch: Positive | None
    remarks: tuple[str, ...]
    collectives: tuple[tuple[str, Sizes, Literal["forward", "backward", "step"], Count, Count, Positive, Positive], ...]
    own_step: bool
    parameters: dict[str, Count]
    worst: SavedTape | None
    same_path_up_to: Positive | None


class SavedPiece(_Checked):
    """`Piece`, but for its tapes: as many of the file's as it has lengths, after those of the piece before."""

    option: Literal["seq_len", "image_size"]
    lengths: tuple[Positive, ...] = Field(min_length=1)
    most: Positive
    step: Positive
    ends: str


class SavedTapes(_Checked):
    """A file: the recordings of one workload and recipe, one for each family of kernels, or pieces of several lengths for each."""

    schema_version: Literal[16]
    tapes: tuple[SavedTape, ...] = Field(min_length=1)
    pieces: tuple[SavedPiece, ...] = ()


def require_sound(saved: SavedTape, where: str) -> None:
    """Raises `InvalidInputError`, one line that names the field, where fields contradict one another or name what is not known."""
    for field, problem in _problems(saved):
        raise InvalidInputError(f"{where}: {field} {problem}")


def require_pieces(saved: SavedTapes, where: str) -> None:
    """Raises `InvalidInputError` where the pieces of several lengths are not those of the tapes, or of a polynomial."""
    if sum(len(piece.lengths) for piece in saved.pieces) != len(saved.tapes):
        raise InvalidInputError(f"{where}: pieces have {sum(len(piece.lengths) for piece in saved.pieces)} lengths and there are {len(saved.tapes)} tapes")
    for number, piece in enumerate(saved.pieces):
        expected = [piece.lengths[0] + piece.step * index for index in range(len(piece.lengths))]
        if [*piece.lengths] != expected or piece.most < piece.lengths[-1] or any(length % piece.step for length in (*piece.lengths, piece.most)):
            raise InvalidInputError(
                f"{where}: pieces.{number} has lengths {piece.lengths} up to {piece.most}; expected multiples of {piece.step}, next to next"
            )


Problems = Iterator[tuple[str, str]]


def _problems(saved: SavedTape) -> Problems:
    yield from _recipe(saved)
    yield from _allocations(saved)
    yield from _buffers(saved)
    yield from _collectives(saved)
    yield from _events(saved)
    yield from _operations(saved.operations)
    if saved.worst is not None:
        yield from _worst(saved.worst, saved)


def _worst(worst: SavedTape, saved: SavedTape) -> Problems:
    yield from ((f"worst.{field}", problem) for field, problem in _problems(worst))
    for name in ("name", "precision", "optimizer", "accumulation", "parameter_count"):
        if getattr(worst, name) != getattr(saved, name):
            yield f"worst.{name}", f"is {getattr(worst, name)!r}; expected {getattr(saved, name)!r}, as {name} says"
    if worst.worst is not None:
        yield "worst.worst", "is a recording; expected none"


def _recipe(saved: SavedTape) -> Problems:
    if saved.precision not in PRECISIONS:
        yield "precision", str(UnknownNameError("precision", saved.precision, PRECISIONS))
    if "torch" not in saved.versions:
        yield "versions", "has no torch; expected the version that recorded it"
    if saved.trained_parameter_count > saved.parameter_count:
        yield "trained_parameter_count", f"is {saved.trained_parameter_count}; expected at most the {saved.parameter_count} parameters there are"
    try:
        Training(**dict[str, Any](saved.recipe))
    except BsmodelError as error:
        yield "recipe", f"is none: {error}"
    for name in ("precision", "accumulation"):
        if saved.recipe.get(name, getattr(saved, name)) != getattr(saved, name):
            yield f"recipe.{name}", f"is {saved.recipe[name]!r}; expected {getattr(saved, name)!r}, as {name} says"


def _allocations(saved: SavedTape) -> Problems:
    count = len(saved.fixed_bytes)
    for name in SIZES:
        if len(getattr(saved, name)) != count:
            yield name, f"has {len(getattr(saved, name))} numbers; expected {count}, as fixed_bytes"
    for name in ("operators", "modules", "phases", "categories"):
        words: Words = getattr(saved, name)
        if len(words.index) != count:
            yield f"{name}.index", f"has {len(words.index)} numbers; expected {count}, as fixed_bytes"
        if max(words.index, default=-1) >= len(words.words):
            yield f"{name}.index", f"goes up to {max(words.index)}; expected at most {len(words.words) - 1}, the last of its words"
    for name, known in (("phases", PHASES), ("categories", CATEGORIES)):
        for word in getattr(saved, name).words:
            if word not in known:
                yield f"{name}.words", str(UnknownNameError(name, word, known))
    for number, size in enumerate(zip(*(getattr(saved, name) for name in SIZES), strict=False)):
        if not Polynomial(*size).is_size:
            yield f"{SIZES[-1] if size[-1] else SIZES[1]}.{number}", f"gives {_text(size)} bytes; {_EXPECTED}"
    for name in SIZES:
        if sum(map(abs, getattr(saved, name))) > MOST_COUNT:
            yield name, f"adds up to more than {MOST_COUNT}"


def _buffers(saved: SavedTape) -> Problems:
    count = len(saved.fixed_bytes)
    for name in ("terms", "workspaces", "streams", "lent"):
        numbers = [item[0] for item in getattr(saved, name)]
        if len(set(numbers)) < len(numbers) or max(numbers, default=-1) >= count:
            yield name, f"is of allocations {max(numbers)} and below; expected each of the {count} at most once"
    for position, (_, formula, parameters) in enumerate(saved.terms):
        yield from ((f"terms.{position}", problem) for problem in _term(formula, parameters))
    for position, (_, kind, excess) in enumerate(saved.workspaces):
        if kind not in KINDS:
            yield f"workspaces.{position}", str(UnknownNameError("kind", kind, KINDS))
        if not Polynomial(*excess).is_size:
            yield f"workspaces.{position}", f"may be {_text(excess)} bytes larger; {_EXPECTED}"


def _text(coefficients: Sequence[float]) -> str:
    fixed, per_sample, per_pair = (f"{number:.15g}" for number in coefficients)
    return f"{fixed} + {per_sample} b" + (f" + {per_pair} b(b-1)/2" if coefficients[-1] else "")


def _term(formula: str, parameters: Sequence[tuple[int, int, int]]) -> Iterator[str]:
    if formula not in FORMULAS:
        yield str(UnknownNameError("formula", formula, FORMULAS))
        return
    names = [*inspect.signature(FORMULAS[formula].size_bytes).parameters][1:]
    if len(parameters) != len(names):
        yield f"gives {formula!r} {len(parameters)} parameters; expected {len(names)}"
    for name, parameter in zip(names, parameters, strict=False):
        least, most = FORMULAS[formula].ranges.get(name, (0, MOST_COUNT))
        polynomial = Polynomial(*parameter)
        if not polynomial.is_size or not least <= polynomial(1) <= most or (any(parameter[1:]) and most < MOST_COUNT):
            yield f"gives {formula!r} {_text(parameter)} for {name}; expected from {least} to {most}"


def _collectives(saved: SavedTape) -> Problems:
    for position, (_, size, _, after, before, ranks, stride) in enumerate(saved.collectives):
        if not Polynomial(*size).is_size:
            yield f"collectives.{position}", f"has {_text(size)} bytes; {_EXPECTED}"
        if after > before:
            yield f"collectives.{position}", f"begins after {after} kernels and is waited for after {before}; expected as many or more"
        if ranks * stride > MOST_DEVICES:
            yield f"collectives.{position}", f"is of {ranks} ranks, every {stride}th; expected them among {MOST_DEVICES} devices"


def _events(saved: SavedTape) -> Problems:
    count = len(saved.fixed_bytes)
    expected = (*BLOCKS, *APART) if set(saved.blocks) & set(APART) else BLOCKS
    if set(saved.blocks) != set(expected):
        yield "blocks", f"are {', '.join(sorted(saved.blocks))}; expected {', '.join(expected)}"
        return
    for name, events in saved.blocks.items():
        if events and not (-count <= min(events) and max(events) < count):
            yield f"blocks.{name}", f"goes from {min(events)} to {max(events)}; expected events of the {count} allocations there are"
            return
    yield from _waits(saved)
    yield from _reached(saved)
    for first, further in dict.fromkeys(programs(expected != BLOCKS, micro_steps) for micro_steps in (2, 1, 3)):
        yield from _released_too_early(saved.blocks, (*first, *further, *further), count)


def _waits(saved: SavedTape) -> Problems:
    streams = {stream for _, users in saved.lent for stream in users}
    for name, waits in saved.waits.items():
        if name not in BLOCKS:
            yield f"waits.{name}", f"is no block; expected {', '.join(BLOCKS)}"
            return
        for index, (position, stream, until) in enumerate(waits):
            if position > len(saved.blocks[name]) or until > position:
                yield f"waits.{name}.{index}", f"is at {position}, for the first {until}; expected at most as many, of {len(saved.blocks[name])} events"
            if stream not in streams:
                yield f"waits.{name}.{index}", f"is for stream {stream}; expected one that something is lent to"


def _reached(saved: SavedTape) -> Problems:
    expected = [name for name in REPEATED if name in saved.blocks]
    if set(saved.reached) != set(expected):
        yield "reached", f"is of {', '.join(saved.reached) or 'no block'}; expected {', '.join(expected)}"
        return
    counts = [sum((phase == "step") == after for phase in saved.operations.phases if phase not in KEEPS) for after in (False, True)]
    for name, places in saved.reached.items():
        if len(places) != len(saved.blocks[name]):
            yield f"reached.{name}", f"has {len(places)} numbers; expected {len(saved.blocks[name])}, as blocks.{name}"
        elif sorted(places) != [*places] or max(places, default=0) > counts[name in AFTER]:
            yield f"reached.{name}", f"goes up to {max(places)}; expected numbers of kernels in order, at most the {counts[name in AFTER]} there are"


def _released_too_early(blocks: dict[str, tuple[int, ...]], program: Sequence[str], count: int) -> Problems:
    alive = [0] * count
    for name in program:
        for position, event in enumerate(blocks[name]):
            if event >= 0:
                alive[event] += 1
            elif alive[~event]:
                alive[~event] -= 1
            else:
                yield f"blocks.{name}.{position}", f"releases allocation {~event}, which is not there then"
                return


def _operations(saved: SavedOperations) -> Problems:
    count = len(saved.operators)
    for name in ("modules", "phases", "kinds", "dtypes", *COEFFICIENTS):
        if len(getattr(saved, name)) != count:
            yield f"operations.{name}", f"has {len(getattr(saved, name))} rows; expected {count}, as operators"
    for name, known in (("phases", PHASES), ("dtypes", DTYPES)):
        for word in sorted(set(getattr(saved, name)) - set(known)):
            yield f"operations.{name}", str(UnknownNameError(name.removesuffix("s"), word, known))
    for name in COEFFICIENTS:
        for number, row in enumerate(getattr(saved, name)):
            if len(row) != len(COLUMNS):
                yield f"operations.{name}.{number}", f"has {len(row)} numbers; expected {len(COLUMNS)}: {', '.join(COLUMNS)}"
                return
    for number, rows in enumerate(zip(*(getattr(saved, name) for name in COEFFICIENTS), strict=False)):
        for column, *numbers in zip(COLUMNS, *rows, strict=True):
            fixed, per_sample, per_pair = numbers
            if fixed + per_sample < 0 or per_sample + per_pair < 0 or per_pair < 0:
                yield f"operations.{'per_pair' if per_pair else 'per_sample'}.{number}", f"gives {_text(numbers)} {column}; {_EXPECTED}"
                return
