# SPDX-License-Identifier: Apache-2.0
"""What comes back for one cell of a study, as plain data that can be written, read and sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bsmodel.memory import Fit, Footprint, Peak, footprint
from bsmodel.planning import Plan, Split, Timing, power_of_two_at_most
from bsmodel.shown import Shown
from bsmodel.tape import Tape


@dataclass(frozen=True)
class Recorded:
    """The workload and recipe that a recording is of.

    `recipe` has all fields of `Training`, `versions` those of the libraries that recorded it; `uncounted` names what it saw and could not count, `remarks` what
    it assumed; `own_step`: whether the step is the workload's own; `tokens_per_sample` is 1 where a sample is no text; `options` are the workload's, as given.
    """

    name: str
    parameters: int
    trained_parameters: int
    precision: str
    optimizer: str
    recipe: dict[str, Any]
    versions: dict[str, str]
    uncounted: tuple[str, ...]
    remarks: tuple[str, ...]
    own_step: bool = False  # whether the step is the workload's own
    tokens_per_sample: int = 1  # 1 where a sample is no text
    options: dict[str, Any] = field(default_factory=dict)  # of the workload, as they were given

    @property
    def torch_version(self) -> str:
        """The version of torch that recorded it."""
        return self.versions["torch"]

    @staticmethod
    def of(tape: Tape) -> Recorded:
        """The head of a tape."""
        same = ("name", "precision", "optimizer", "uncounted", "remarks", "own_step", "tokens_per_sample")
        fields: dict[str, Any] = {name: getattr(tape, name) for name in same}
        fields |= {name: dict(getattr(tape, name)) for name in ("recipe", "versions", "options")}
        return Recorded(parameters=tape.parameter_count, trained_parameters=tape.trained_parameter_count, **fields)


@dataclass(frozen=True)
class Row(Shown):
    """The answer for one workload, recipe, GPU, number of devices and goal; what is not known or does not apply is None.

    `status`: "plan"; "does not fit", where no batch trains or none reaches the target; or "refused", where the question cannot be
    answered. `verdict` says why, in a sentence. `largest_batch` is the safe one and `likely_batch` what probably runs too;
    `bounded` whether memory is what limits it; `binding` is the moment that does, `headroom_bytes` what it leaves of the card (below zero:
    what is missing). The split is
    `micro_batch` x `accumulation` x `devices` / `tensor` = `effective_batch`, of which `peak` is the memory and `timing` the time;
    `fewest` is the split with the fewest micro-steps. `closed_form` is that of the split's micro-steps, without one that of the recording;
    `ladder` are the peaks at powers of two with the recipe's own.
    """

    workload: str
    recipe: dict[str, Any]  # as asked: the fields that are not the workload's own
    gpu: str
    devices: int
    target_batch: int | None
    status: Literal["plan", "does not fit", "refused"]
    verdict: str
    recorded: Recorded | None = None
    closed_form: Footprint | None = None
    usable_bytes: int | None = None
    largest_batch: int | None = None
    likely_batch: int | None = None
    power_of_two: int | None = None
    bounded: bool | None = None
    binding: str | None = None
    headroom_bytes: int | None = None
    largest_peak: Peak | None = None
    micro_batch: int | None = None
    accumulation: int | None = None
    effective_batch: int | None = None
    exact: bool | None = None
    fewest: Split | None = None
    peak: Peak | None = None
    timing: Timing | None = None
    untimed: str | None = None
    learning_rate: float | None = None
    learning_rate_rule: str | None = None
    warmup_steps: int | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    advice: tuple[str, ...] = ()
    ladder: tuple[Peak, ...] = field(default=())

    @staticmethod
    def of(plan: Plan) -> Row:
        """The row of a plan."""
        fit, found = plan.fit, of_fit(plan.fit) | of_plan(plan)
        return Row(fit.tape.name, {}, fit.gpu.id, plan.split.devices, status="plan", verdict=fit.verdict, recorded=Recorded.of(fit.tape), **found)

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.status == "plan"

    @property
    def split(self) -> Split | None:
        """The split of a plan."""
        if self.micro_batch is None or self.accumulation is None:
            return None
        return Split(self.micro_batch, self.accumulation, self.devices, self.tensor)

    @property
    def tensor(self) -> int:
        """How many of the devices share each micro-batch."""
        parallel = self.recorded.recipe.get("parallel") if self.recorded is not None else None
        return int((parallel or {}).get("tensor", 1))


def of_fit(fit: Fit) -> dict[str, Any]:
    """The fields of a row that tell of the largest batch."""
    return {
        "usable_bytes": fit.gpu.usable_bytes,
        "largest_batch": fit.batch,
        "likely_batch": fit.likely_batch,
        "power_of_two": power_of_two_at_most(fit.batch),
        "bounded": fit.bounded,
        "binding": fit.binding,
        "headroom_bytes": fit.headroom_bytes,
        "largest_peak": fit.peak,
    }


def of_plan(plan: Plan) -> dict[str, Any]:
    """The fields of a row that tell of a plan."""
    same = ("exact", "fewest", "peak", "timing", "learning_rate", "warmup_steps", "steps_per_epoch", "total_steps", "advice")
    return {
        "closed_form": footprint(plan.fit.tape, plan.micro_steps, plan.fit.gpu),
        "target_batch": plan.target_batch,
        "micro_batch": plan.split.micro_batch,
        "accumulation": plan.split.accumulation,
        "effective_batch": plan.split.effective_batch,
        "untimed": plan.untimed or None,
        "learning_rate_rule": plan.learning_rate_rule or None,
        **{name: getattr(plan, name) for name in same},
    }
