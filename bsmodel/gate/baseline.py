# SPDX-License-Identifier: Apache-2.0
"""What a training took at one batch on one card, kept in a file to be compared with later."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from bsmodel.errors import BsmodelError, InvalidInputError
from bsmodel.files import write_whole
from bsmodel.memory import Fit, breakdown, footprint, predict, spelled
from bsmodel.planning import why_untimed
from bsmodel.tape import Tape
from bsmodel.timing import step_time
from bsmodel.training import Training
from bsmodel.units import MOST_COUNT, format_bytes, shown

Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Positive = Annotated[int, Field(ge=1, le=MOST_COUNT)]
_MOST_BYTES = 64 << 20  # of a file: a thousand modules take a tenth of a megabyte


class Baseline(BaseModel):
    """What was asked, and what the training took: `allocated_bytes` and `seconds` of a step at micro-batch `batch`, and the largest batch on the card.

    `allocated_bytes` is the peak, `torch.cuda.max_memory_allocated()`. `by_module` and `by_category` are the bytes requested that are alive at the moment
    that binds, `moment`, as `breakdown` has them; module "" is the step itself. `seconds` is None where the card's row has no rates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True)

    schema_version: Literal[1] = 1
    workload: str
    """Its name."""
    options: dict[str, JsonValue]
    """Its options, such as `seq_len`."""
    recipe: dict[str, JsonValue]
    """The fields of `Training`."""
    gpu: str
    """The card's id."""
    memory_bytes: Positive
    """What the card has."""
    context_bytes: Count
    """What the CUDA context takes of it."""
    headroom_bytes: Count
    """What is left to others."""
    allocator: str
    """Settings of the caching allocator, as `PYTORCH_CUDA_ALLOC_CONF` has them; empty for PyTorch's own."""
    network: str | None
    """What connects its nodes, where that was said."""
    devices: Positive
    """How many devices share the work."""
    batch: Positive
    """The micro-batch that memory and time are of."""
    versions: dict[str, str]
    """Of bsmodel, torch and the libraries that the model comes from."""
    allocated_bytes: Count
    """The peak."""
    largest_batch: Count
    """The largest micro-batch that trains."""
    seconds: Annotated[float, Field(gt=0)] | None
    """Of an optimizer step."""
    moment: str
    """When the bytes below are alive."""
    by_category: dict[str, Count]
    """Bytes."""
    by_module: dict[str, Count]
    """Bytes."""

    @staticmethod
    def of(fit: Fit, batch: int) -> Baseline:
        """The figures of a fit's training at micro-batch `batch`; raises `InvalidInputError` as `predict` does."""
        tape, gpu = fit.tape, fit.gpu
        peak = predict(tape, gpu, batch, fit.accumulation, fit.settings)
        shares = breakdown(tape, batch, fit.accumulation, gpu)
        return Baseline(
            **question(fit, peak.batch),
            versions=_versions(tape),
            allocated_bytes=peak.allocated_bytes,
            largest_batch=fit.batch,
            seconds=None if why_untimed(tape, gpu) else _rounded(step_time(tape, gpu, batch, fit.accumulation).seconds),
            moment=str(footprint(tape, fit.accumulation, gpu).binding(peak.batch)),
            by_category=dict(sorted(shares.by_category.items())),
            by_module=dict(sorted(shares.by_module.items())),
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, modules by name, so that the same figures are the same file.

        Raises `InvalidInputError` for a micro-batch that does not train, which nothing could be held against, and where it cannot be written.
        """
        if self.batch > self.largest_batch:
            trains = f"{self.workload} does not train at a micro-batch of {self.batch:,} on {self.gpu} (largest {self.largest_batch:,})"
            raise InvalidInputError(f"{trains}: no baseline is written; give a batch that trains")
        write_whole(path, (self.model_dump_json(indent=2) + "\n").encode(), "the baseline")

    @staticmethod
    def load(path: str | Path) -> Baseline:
        """Read what `save` wrote; raises `InvalidInputError`, one line that names the field, for anything else."""
        where = f"the baseline {str(path)!r}"
        try:
            with Path(path).open("rb") as stream:
                content = stream.read(_MOST_BYTES)
        except FileNotFoundError:
            raise InvalidInputError(f"there is no baseline {str(path)!r}; write it with --save-baseline {path}") from None
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from None
        try:
            return Baseline.model_validate_json(content)
        except ValidationError as error:
            raise InvalidInputError(f"{where}: {_reason(error)}; expected what bsmodel check --save-baseline wrote") from None

    def require_same(self, options: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None, **asked: object) -> None:
        """Raises `InvalidInputError` where what is asked is not what the baseline is of: all options, some fields of the recipe, some of its own."""
        for name, value in asked.items():
            write = format_bytes if name.endswith("_bytes") else None
            _require_equal(name.removesuffix("_bytes"), getattr(self, name), value, write)
        for name in sorted({*self.options, *options}) if options is not None else ():
            _require_equal(name, self.options.get(name), (options or {}).get(name))
        known = _whole(self.recipe)
        for name, value in (recipe or {}).items():
            _require_equal(name, known.get(name), value)


def _require_equal(name: str, kept: Any, asked: Any, write: Callable[[Any], str] | None = None) -> None:
    if kept != asked:
        before, after = (write(value) if write else _word(value) for value in (kept, asked))
        if before == after:  # sizes that round alike
            before, after = f"{kept:,} bytes", f"{asked:,} bytes"
        label = name.replace("_", "-")
        raise InvalidInputError(f"the baseline has {label} {before}, and {after} is asked: that is another question; ask the same, or write it anew")


def _word(value: Any) -> str:
    return {None: "none", True: "on", False: "off"}[value] if value is None or isinstance(value, bool) else shown(value)


def question(fit: Fit, batch: int) -> dict[str, Any]:
    """The fields of a baseline that say what was asked."""
    tape, gpu = fit.tape, fit.gpu
    return {
        "workload": tape.name,
        "options": dict(tape.options),
        "recipe": _whole({**tape.recipe, "accumulation": fit.accumulation, "optimizer": tape.optimizer}),
        "gpu": gpu.id,
        "memory_bytes": gpu.memory_bytes,
        "context_bytes": gpu.context_bytes,
        "headroom_bytes": gpu.headroom_bytes,
        "allocator": spelled(fit.settings),
        "network": gpu.network.id if gpu.network else None,
        "devices": devices_of(tape),
        "batch": batch,
    }


def devices_of(tape: Tape) -> int:
    """How many devices share a step: as its recipe says, or else as many as sum its gradients."""
    return max([tape.devices, *(each.ranks for each in tape.collectives)])


def _whole(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with the fields that the version which wrote it did not know, at their defaults; one that is none here is left as it is."""
    try:
        found = Training(**{name: value for name, value in recipe.items() if name != "optimizer"}).model_dump(mode="json")
    except BsmodelError:
        return recipe
    return {**found, "optimizer": recipe.get("optimizer")}


def _versions(tape: Tape) -> dict[str, str]:
    package = importlib.import_module("bsmodel")  # which is made of all rooms, so that none can import it
    return {"bsmodel": package.__version__, **tape.versions}


def _rounded(seconds: float) -> float:
    """To nine digits: sums of doubles differ in the last ones from machine to machine."""
    return float(f"{seconds:.9g}")


def _reason(error: ValidationError) -> str:
    """One line for the first problem."""
    first = error.errors(include_url=False)[0]
    field, message = ".".join(map(str, first["loc"])), first["msg"].replace("Input should be", "expected")
    return f"{field} is {shown(first['input'])}; {message}" if field else message
