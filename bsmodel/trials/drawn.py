# SPDX-License-Identifier: Apache-2.0
"""What the charts of a trial draw, as rows of plain numbers, and how its numbers read; nothing here knows how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bsmodel.errors import InvalidInputError
from bsmodel.pages import number, short
from bsmodel.planning import NoiseScale
from bsmodel.trials.curves import smoothed, validated
from bsmodel.trials.results import Recommendation, Spread, Trial
from bsmodel.trials.values import Run, noise_of
from bsmodel.units import GiB

Rows = list[dict[str, Any]]

BY_MONEY = "money, "  # what a recommendation by money begins its `by` with
QUARTERS = 4  # of a run, over which the noise scale is followed
_POINTS, _FEWEST_POINTS, _ALL_POINTS = 240, 40, 2000  # of a curve, and of all of them: a page stays small however long the runs are
_LAW_POINTS = 48
_APART, _BEFORE = 8, 30  # times farther, where an even axis would hide the shorter curves; and how much of their beginning is left out on the other
_BROKEN = ("diverged", "out of memory")


# -- numbers as text -----------------------------------------------------------------------------------------------------------------------


def spread(found: Spread | None, unit: float = 1.0) -> str:
    """A mean over seeds, with the least and the most where they differ."""
    if found is None:
        return "–"
    mean, low, high = (number(value / unit) for value in (found.mean, found.low, found.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def interval(found: NoiseScale | None) -> str:
    """A noise scale with its interval."""
    if found is None:
        return "–"
    return f"{number(found.samples)} ({number(found.low)} to {number(found.high)})"


# -- loss ----------------------------------------------------------------------------------------------------------------------------------


def losses(trial: Trial) -> Rows:
    """The smoothed loss of each batch against samples and seconds: mean, least and most of its seeds, up to the step that all of them have made.

    A seed that broke off counts only where all did. What is above `ceiling` is left out.
    """
    rows, top, most = [], ceiling(trial), _most(trial)
    for rung, runs in trial.by_rung.items():
        whole = _unbroken(runs)
        common = min((len(run.updates) for run in whole), default=0)
        curves = np.array([smoothed(run, trial.window_samples)[:common] for run in whole])
        for place in _spaced(common, most):
            at = [run.updates[place] for run in whole]
            row = {"batch": rung.batch, "step": at[0].step, "samples": at[0].samples, "seconds": _mean([update.seconds for update in at])}
            rows.append(row | _span(curves[:, place]))
    return [row for row in rows if _inside(row, top)]


def validation_losses(trial: Trial) -> Rows:
    """The validation loss of each batch, as `losses` has that of training."""
    rows = []
    for rung, runs in trial.by_rung.items():
        evaluated = list(zip(*(validated(run.updates) for run in _unbroken(runs)), strict=False))
        for place in _spaced(len(evaluated), _most(trial)):
            at = evaluated[place]
            row = {"batch": rung.batch, "step": at[0].step, "samples": at[0].samples, "seconds": _mean([update.seconds for update in at])}
            rows.append(row | _span(np.array([update.validation_loss for update in at])))
    top = ceiling(trial)
    return [row for row in rows if _inside(row, top)]


def ends(trial: Trial) -> Rows:
    """Where the curve of each run ends, and why."""
    rows, top = [], ceiling(trial)
    for run in trial.runs:
        curve = smoothed(run, trial.window_samples) if run.updates else np.zeros(0)
        if len(drawable := np.flatnonzero(np.isfinite(curve) & (curve <= top))):  # one that diverges ends where it was last seen
            last, loss = run.updates[drawable[-1]], short(float(curve[drawable[-1]]))
            row = {"batch": run.rung.batch, "seed": run.seed, "status": run.status, "step": last.step, "samples": last.samples}
            rows.append(row | {"seconds": short(last.seconds), "loss": loss})
    return rows


def ceiling(trial: Trial) -> float:
    """The highest loss that is drawn, far above the first ones: what a run that diverges shows would flatten all others."""
    known = [[update.loss for update in run.updates if math.isfinite(update.loss)] for run in trial.runs]
    first, least = max((each[0] for each in known if each), default=0.0), min((min(each) for each in known if each), default=0.0)
    return first + max(first - least, abs(first))


def _most(trial: Trial) -> int:
    return max(_FEWEST_POINTS, min(_POINTS, _ALL_POINTS // max(1, len(trial.by_rung))))


def _inside(row: dict[str, Any], top: float) -> bool:
    return all(math.isfinite(row[name]) for name in ("loss", "low", "high")) and row["high"] <= top and row["seconds"] > 0


def _unbroken(runs: Sequence[Run]) -> list[Run]:
    begun = [run for run in runs if run.updates]
    return [run for run in begun if run.status not in _BROKEN] or begun


def _spaced(length: int, most: int) -> list[int]:
    """Places from the first to the last, at most so many."""
    return sorted(set(np.linspace(0, max(0, length - 1), min(length, most)).round().astype(int).tolist()))


def apart(rows: Rows, against: str) -> tuple[float, float] | None:
    """From where to where a logarithmic axis goes, where some batches come so much farther than others that they need one; None where none does."""
    far = {row["batch"]: row[against] for row in rows}  # the last of a batch is its farthest
    least, most = min(far.values()), max(far.values())
    return (least / _BEFORE, most) if most > _APART * least else None


# -- steps, samples and seconds to the target ----------------------------------------------------------------------------------------------


def to_target(trial: Trial) -> Rows:
    """What each run took to the target."""
    found = [(run, trial.reached(run)) for run in trial.runs]
    return [
        {"batch": run.rung.batch, "seed": run.seed, "steps": update.step, "samples": update.samples, "seconds": short(update.seconds)}
        for run, update in found
        if update is not None
    ]


def law(trial: Trial) -> Rows:
    """Steps and samples to the target as the law has them, from the smallest batch to the largest."""
    batches = [rung.batch for rung in trial.by_rung]
    if trial.law is None:
        return []
    grid = np.geomspace(min(batches), max(batches), _LAW_POINTS)
    found = zip(grid.tolist(), trial.law.steps(grid).tolist(), trial.law.samples(grid).tolist(), strict=True)
    return [{"batch": short(batch), "steps": short(steps), "samples": short(samples)} for batch, steps, samples in found]


def costs(found: Sequence[Recommendation], of: str) -> Rows:
    """Seconds or US dollars (`of`) to the target at each batch, a series for each way of telling them."""
    return [
        {"by": way(each), "batch": choice.batch, "steps": short(choice.steps), "cost": short(cost), "chosen": choice.batch == each.batch}
        for each in found
        for choice in each.choices
        if (cost := choice.seconds if of == "seconds" else choice.usd) is not None and 0 < cost < math.inf
    ]


def way(found: Recommendation) -> str:
    """How a recommendation tells seconds, whether or not it is by money."""
    return found.by.removeprefix(BY_MONEY)


def measured_seconds(trial: Trial) -> Rows:
    """Seconds that each batch took to the target, over its seeds."""
    known = [(row.rung.batch, row.seconds_to_target) for row in trial.rows]
    return [{"batch": batch, "cost": short(found.mean), "low": short(found.low), "high": short(found.high)} for batch, found in known if found is not None]


# -- predicted and measured ----------------------------------------------------------------------------------------------------------------


def peaks(trial: Trial) -> Rows:
    """Peak bytes that were predicted and measured, of the batches that did not run out of memory."""
    rows = []
    for row in trial.rows:
        for what in ("allocated", "reserved"):
            predicted, measured = getattr(row.rung, f"predicted_{what}_bytes"), getattr(row, f"{what}_bytes")
            if predicted and measured and "out of memory" not in row.status:
                rows.append({"batch": row.rung.batch, "what": what} | _pair(predicted / GiB, measured / GiB))
    return rows


def step_seconds(trial: Trial) -> Rows:
    """Seconds of an optimizer step that were predicted and measured."""
    known = [(row.rung.batch, row.rung.predicted_step_seconds, row.step_seconds) for row in trial.rows]
    return [{"batch": batch, "what": "step"} | _pair(predicted, measured) for batch, predicted, measured in known if predicted and measured]


def _pair(predicted: float, measured: float) -> dict[str, Any]:
    return {"predicted": short(predicted), "measured": short(measured), "error": short(predicted / measured - 1)}


# -- noise scale ---------------------------------------------------------------------------------------------------------------------------


def noise(trial: Trial) -> Rows:
    """The noise scale of each batch over whole runs."""
    return _bounded([{"batch": row.rung.batch, "found": row.noise_scale} for row in trial.rows if row.noise_scale is not None])


def noise_over(trial: Trial) -> Rows:
    """The noise scale of each batch in each quarter of its runs; `share` is the middle of a quarter."""
    rows: Rows = []
    for rung, runs in trial.by_rung.items():
        for quarter in range(QUARTERS):
            try:
                found = noise_of(_unbroken(runs) or list(runs), quarter / QUARTERS, (quarter + 1) / QUARTERS)
            except InvalidInputError:  # one micro-batch a step, or too few steps
                continue
            rows.append({"batch": rung.batch, "share": (quarter + 0.5) / QUARTERS, "found": found})
    return _bounded(rows)


def _bounded(rows: Rows) -> Rows:
    """Rows whose noise scale is drawn within bounds that a logarithmic axis has: `samples` is None where it is endless, and `high` at the top then."""
    known = [value for row in rows for value in (row["found"].samples, row["found"].low, row["found"].high) if 0 < value < math.inf]
    if not known:
        return []
    least, top = min(known), 2 * max(known)
    within: Callable[[float], float] = lambda value: short(min(top, max(least, value)))  # noqa: E731
    return [
        {name: value for name, value in row.items() if name != "found"}
        | {"samples": within(row["found"].samples) if math.isfinite(row["found"].samples) else None, "low": within(row["found"].low)}
        | {"high": within(row["found"].high), "endless": math.isinf(row["found"].high), "told": interval(row["found"])}
        for row in rows
    ]


def _span(values: Any) -> dict[str, float]:
    return {"loss": short(float(values.mean())), "low": short(float(values.min())), "high": short(float(values.max()))}


def _mean(values: Sequence[float]) -> float:
    return short(float(np.mean(values)))


def statuses(rows: Rows) -> Iterator[str]:
    """Those of runs in the order of the ladder, each once."""
    yield from dict.fromkeys(str(row["status"]) for row in rows)
