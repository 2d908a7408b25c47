# SPDX-License-Identifier: Apache-2.0
"""Which runs are made: workloads x recipes x batches, the most informative first."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from bsmodel.errors import BsmodelError
from bsmodel.training import Training
from bsmodel.workloads import MADE_HERE, Workload

PRECISIONS = ("fp32", "bf16-mixed", "fp16-mixed")
SHARES = (Fraction(1, 2), Fraction(1), Fraction(1, 8))  # of the predicted largest batch


@dataclass(frozen=True)
class Case:
    """One run: what is trained, how, on which card, at a batch or at a share of the predicted largest one."""

    workload: str
    gpu: str
    training: Training
    share: Fraction | None = None
    batch: int | None = None
    capacity_bytes: int | None = None  # what the run may reserve, where that is less than the card's
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name that no other case has."""
        size = f"b={self.batch}" if self.batch is not None else f"share={self.share}" if self.share is not None else ""
        limit = f"capacity={self.capacity_bytes}" if self.capacity_bytes is not None else ""
        return " ".join(filter(None, (self.workload, self.gpu, size, limit, recipe_words(self.training, self.options))))

    @property
    def calibrates(self) -> bool:
        """Whether the case may be used for calibration; the others are those on which errors are reported."""
        return calibrates(self.key)


def calibrates(key: str) -> bool:
    """A fixed half of all cases, by the SHA-256 of the key."""
    return hashlib.sha256(key.encode()).digest()[0] % 2 == 0


def recipe_words(training: Training, options: dict[str, Any] | None = None) -> str:
    """`precision=... optimizer=...` and whatever else is not as in a plain loop."""
    fields = Training.model_fields
    values = {**{name: getattr(training, name) for name in fields}, "optimizer": training.optimizer_name}
    kept = {name: value for name, value in values.items() if name in ("precision", "optimizer") or value != fields[name].default}
    return " ".join(f"{name}={value}" for name, value in {**kept, **(options or {})}.items())


def recipes(own: Training, supports_bf16: bool) -> list[Training]:
    """The workload's own recipe, then the same in other precisions, each without and with checkpointing."""
    wanted = [own.precision, *(name for name in PRECISIONS if name != own.precision)]
    precisions = [name for name in wanted if supports_bf16 or not Training(precision=name).numerics.needs_bf16]
    return [own.model_copy(update={"precision": name, "checkpointing": saved}) for saved in (False, True) for name in precisions]


def available() -> list[str]:
    """The names whose libraries are installed; the others are said on stderr."""
    found = []
    for name in MADE_HERE:
        try:
            Workload.named(name)
            found.append(name)
        except BsmodelError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def matrix(
    names: Sequence[str],
    gpu: str,
    supports_bf16: bool,
    batches: Sequence[int] = (),
    options: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> list[Case]:
    """Every case of the workloads, in the order in which they say most.

    First every workload once, in its own recipe at half the largest batch; then at other batches; then in other recipes, workload by
    workload in turn. `changes` to the recipe leave only the recipe they make.
    """
    options = options or {}
    found: list[tuple[tuple[int, int, int], Case]] = []
    for position, name in enumerate(names):
        own = Workload.named(name, **options).training
        wanted = [Training(**{**dict(own), **changes})] if changes else recipes(own, supports_bf16)
        for rank, training in enumerate(wanted):
            sizes: list[dict[str, Any]] = [{"batch": batch} for batch in batches] or [{"share": share} for share in SHARES]
            for order, size in enumerate(sizes):
                found.append(((rank + order, rank, position), Case(name, gpu, training, options=options, **size)))
    return [case for _, case in sorted(found, key=lambda item: item[0])]


def quick(found: Sequence[Case]) -> list[Case]:
    """The first recipe of each workload only, at one share of the largest batch or at all batches given by number."""
    first: dict[str, Case] = {}
    for case in found:
        first.setdefault(case.workload, case)
    return [case for case in found if case.training == first[case.workload].training and (case.batch is not None or case is first[case.workload])]


def batch_at(share: Fraction, largest: int) -> int:
    """The batch at a share of the largest; 1 where nothing fits, to see it fail."""
    return max(1, int(share * largest))
