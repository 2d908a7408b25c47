# SPDX-License-Identifier: Apache-2.0
"""The recorded training step as plain data: allocations and releases in order, each size a polynomial in the micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bsmodel.errors import InvalidInputError
from bsmodel.hardware import Gpu
from bsmodel.tape.operations import Operations
from bsmodel.tape.polynomials import Coefficients, Polynomial, values
from bsmodel.tape.workspaces import buffer_bytes, is_taken
from bsmodel.training import no_float8
from bsmodel.units import MOST_COUNT

BLOCKS = ("init", "first", "first_step", "micro", "accumulate", "step")
# Of a tape of several devices whose last micro-step alone sums gradients over them, beside these: what there is of two micro-steps and more.
APART = ("open", "close", "open_step", "begin", "more", "last", "end")
REPEATED = ("micro", "accumulate", "step", "begin", "more", "last", "end")  # what all optimizer steps but the first are made of
AFTER = ("step", "end")  # of these, what comes after the micro-steps
WEIGHTS = ("parameter", "packed weight", "adapter")  # whole, with scales and codes where they are quantized, or trained in their place
CATEGORIES = (*WEIGHTS, "buffer", "gathered parameter", "gradient", "gradient bucket", "optimizer state", "batch", "saved", "temporary", "workspace")


def programs(apart: bool, micro_steps: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The blocks of the first optimizer step and of each further one; `apart`: whether only the last micro-step sums gradients over devices.

    The first one has then two micro-steps at most: more take no more.
    """
    if apart and micro_steps > 1:
        return ("init", "open", "close", "open_step"), optimizer_step(apart, min(micro_steps, 3))
    again = ("accumulate",) * (micro_steps > 1)
    return ("init", "first", *again, "first_step"), optimizer_step(apart, min(micro_steps, 2))


def optimizer_step(apart: bool, micro_steps: int) -> tuple[str, ...]:
    """The blocks of every optimizer step but the first, one for each micro-step and one for what comes after them."""
    if apart and micro_steps > 1:
        return ("begin", *("more",) * (micro_steps - 2), "last", "end")
    return ("micro", *("accumulate",) * (micro_steps - 1), "step")


@dataclass(frozen=True)
class Term:
    """The part of a buffer inside a kernel that is no polynomial in the batch: a formula of `bsmodel.tape.workspaces` over parameters that are."""

    formula: str
    parameters: tuple[Polynomial, ...]

    def __call__(self, batch: int, gpu: Gpu) -> int:
        """Bytes at a micro-batch on a device."""
        size = buffer_bytes(self.formula, tuple(parameter(batch) for parameter in self.parameters), gpu)
        if size > MOST_COUNT:
            raise InvalidInputError(f"a buffer takes {size:.1e} bytes at batch {batch}: more than can be counted")
        return size


class Workspace(NamedTuple):
    """A workspace whose size no rule tells: its kind, and how much more than the planner's first choice it may be."""

    kind: str
    excess: Polynomial


class Collective(NamedTuple):
    """What devices say to one another at once, counted in kernels of a micro-step, or of the optimizer step where its phase is that.

    It may begin when `after` kernels are done, and the next kernel after `before` of them waits for it. `size` is what each of them has of it when it is
    done, or had before it began; `ranks` take part, every `stride`-th of all.
    """

    kind: str
    size: Polynomial
    phase: str
    after: int
    before: int
    ranks: int
    stride: int


class Wait(NamedTuple):
    """Before the event at `position` of a block the host has waited: a stream is through with what was lent to it and released among the first `until`.

    0 are none of this block, and all of those before it.
    """

    position: int
    stream: int
    until: int


@dataclass(frozen=True)
class Tape:
    """Everything later questions need, and nothing of torch.

    Allocation `k` asks for `fixed_bytes[k] + per_sample_bytes[k] * b + per_pair_bytes[k] * b (b - 1) / 2` bytes, and `terms[k]` on top where it has one;
    `streams[k]` is the stream whose blocks it takes where that is not the default one. `workspaces[k]` says what it is where a library sizes it by
    rules nobody publishes: so much is what its planner wants first, and whether the library of a card takes it depends on the kind. `lent[k]` are further
    streams that use it: its memory can be taken again when they are through, which the host knows of a lagging device only after `waits`. `blocks` holds
    the events of each part of a run: `k` allocates number k, `~k` releases its oldest living instance. A run of n steps with a micro-steps each is
    `init`, `first`, (`accumulate` x (a-1)), `first_step`, then n-1 times `micro`, (`accumulate` x (a-1)), `step`. Where only the last micro-step sums
    its gradients over devices, and there are two or more: `init`, `open`, `close`, `open_step`, then n-1 times `begin`, (`more` x (a-2)), `last`, `end`.
    `reached` says of each event of a repeated block how many kernels come before it, counted as those of a `Collective` are.
    """

    name: str
    precision: str
    optimizer: str
    optimizer_family: str
    gpu: Gpu
    accumulation: int
    versions: dict[str, str]  # of torch and of the libraries that the model's modules come from
    recorded_batches: tuple[int, ...]
    parameter_count: int
    trained_parameter_count: int
    tokens_per_sample: int
    fixed_bytes: NDArray[np.int64]
    per_sample_bytes: NDArray[np.int64]
    per_pair_bytes: NDArray[np.int64]
    operators: tuple[str, ...]
    modules: tuple[str, ...]
    phases: tuple[str, ...]
    categories: tuple[str, ...]
    terms: dict[int, Term]
    workspaces: dict[int, Workspace]
    streams: dict[int, int]  # of allocations that are not of the default stream's blocks: whose
    blocks: dict[str, tuple[int, ...]]
    reached: dict[str, tuple[int, ...]]
    operations: Operations
    uncounted_operators: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)  # of the workload, as they were given when it was recorded
    base_lr: float | None = None  # known to train it, at an effective batch of base_batch
    base_batch: int | None = None
    remarks: tuple[str, ...] = ()  # what an answer rests on that nobody asked for, a sentence each
    lent: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of allocations that streams beside their own use: which
    waits: dict[str, tuple[Wait, ...]] = field(default_factory=dict)  # by block, in order
    collectives: tuple[Collective, ...] = ()  # of a micro-step, in order, and of an optimizer step
    own_step: bool = False  # whether the workload's own step does all that a loop would
    parameters: dict[str, int] = field(default_factory=dict)  # how many each module has itself
    worst: Tape | None = None  # the same step as it takes the most, where its values or its samples' sizes may turn out otherwise than is likely
    same_path_up_to: int | None = None  # the last batch that takes the recorded path, where a larger one was found to take another

    @property
    def devices(self) -> int:
        """How many there are, of which it is one's; one where no recipe says how they share the work."""
        return int((self.recipe.get("parallel") or {}).get("devices", 1))

    @property
    def tensor(self) -> int:
        """How many of them share each micro-batch."""
        return int((self.recipe.get("parallel") or {}).get("tensor", 1))

    def __repr__(self) -> str:  # its arrays would fill pages
        return f"Tape({self.name!r}, {self.precision}, {self.optimizer}, {self.gpu.id}, {len(self.categories)} allocations)"

    def coefficients(self, gpu: Gpu | None = None) -> Coefficients:
        """Bytes of every allocation as `gpu` (default: the recorded one) likely has them, but for the terms: fixed, per sample and per pair, a row each."""
        coefficients = self._coefficients()
        coefficients[:, self._absent(gpu or self.gpu)] = 0
        return coefficients

    def sizes(self, batch: int, gpu: Gpu | None = None) -> NDArray[np.int64]:
        """Requested bytes of every allocation at micro-batch `batch`, as `gpu` (default: the recorded one) likely has them."""
        sizes = self._planned(batch, gpu or self.gpu)
        sizes[self._absent(gpu or self.gpu)] = 0
        return sizes

    def upper_sizes(self, batch: int, gpu: Gpu | None = None) -> NDArray[np.int64]:
        """`sizes`, with every workspace that a library sizes by rules nobody publishes as large as it may be."""
        sizes = self._planned(batch, gpu or self.gpu)
        for number, workspace in self.workspaces.items():
            sizes[number] += workspace.excess(batch)
        return sizes

    def lower_sizes(self, batch: int, gpu: Gpu | None = None) -> NDArray[np.int64]:
        """`sizes`, without the workspaces that a library sizes by rules nobody publishes."""
        sizes = self._planned(batch, gpu or self.gpu)
        sizes[list(self.workspaces)] = 0
        return sizes

    def mixed_sizes(self, batch: int, gpu: Gpu | None = None) -> NDArray[np.int64]:
        """`upper_sizes`, without every second of those workspaces: fragments are then most unlike."""
        sizes = self.upper_sizes(batch, gpu)
        for events in self.blocks.values():
            sizes[[event for event in events if event in self.workspaces][1::2]] = 0
        return sizes

    def _planned(self, batch: int, gpu: Gpu) -> NDArray[np.int64]:
        """The bytes of every allocation, workspaces as the library's planner wants them first."""
        sizes = values(self._coefficients(), batch)
        for number, term in self.terms.items():
            sizes[number] += term(batch, gpu)
        return sizes

    def _coefficients(self) -> Coefficients:
        return np.stack([self.fixed_bytes, self.per_sample_bytes, self.per_pair_bytes])

    def _absent(self, gpu: Gpu) -> list[int]:
        """The workspaces that the library of this card likely does without."""
        return [number for number, workspace in self.workspaces.items() if not is_taken(workspace.kind, gpu)]

    def program(self, steps: int = 2, accumulation: int | None = None) -> Iterable[tuple[str, tuple[int, ...]]]:
        """The blocks of a run of `steps` optimizer steps; further micro-steps add nothing new to two, or to three where they differ from the last."""
        first, further = programs("begin" in self.blocks, self.accumulation if accumulation is None else accumulation)
        for name in (*first, *further * (steps - 1)):
            yield name, self.blocks[name]

    def optimizer_step(self, accumulation: int | None = None) -> tuple[str, ...]:
        """The blocks of every optimizer step but the first, all of its micro-steps one by one."""
        return optimizer_step("begin" in self.blocks, self.accumulation if accumulation is None else accumulation)

    def save(self, path: str | Path) -> None:
        """Write the tape as gzipped JSON, all or nothing, whatever else writes there; `InvalidInputError` where it cannot be written."""
        from bsmodel.tape.saved import save_all

        save_all([self], path)

    @staticmethod
    def load(path: str | Path) -> Tape:
        """Read a saved tape; raises `InvalidInputError` for a file that is none, breaks the schema, or holds several (see `load_all`)."""
        from bsmodel.tape.saved import load_all

        found = load_all(path)
        if len(found) > 1:
            families = " and ".join(tape.gpu.compute_capability for tape in found)
            raise InvalidInputError(f"the tape {str(path)!r} holds recordings for compute capability {families}: read them with bsmodel.tape.load_all")
        return found[0]


def require_same_kernels(tape: Tape, gpu: Gpu) -> None:
    """Raises `InvalidInputError` where the tape was recorded for kernels that this GPU does not run, or for arithmetic that it has not."""
    if tape.gpu.capability[0] != gpu.capability[0]:
        raise InvalidInputError(
            f"the tape was recorded for compute capability {tape.gpu.compute_capability}, {gpu.id} has {gpu.compute_capability}: trace again with this GPU"
        )
    if tape.recipe.get("float8") and not gpu.supports_float8:
        raise InvalidInputError(no_float8(gpu))
