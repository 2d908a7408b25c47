# SPDX-License-Identifier: Apache-2.0
"""What a page shows of a trial, chart by chart: each with what it means, or with why it is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bsmodel.pages import KINDS, Drawing, Look, Section, number
from bsmodel.prices import price_line
from bsmodel.trials import charts, drawn, tables
from bsmodel.trials.results import NEARLY, Recommendation, Trial

_SYMBOLS = {"reached": "● reached the target", "finished": "■ made all its steps", "stopped": "◆ stopped", "diverged": "▲ diverged"}
_SYMBOLS |= {"out of memory": "▼ ran out of memory"}


def sections(trial: Trial, costs: Sequence[Recommendation], look: Look) -> tuple[Section, ...]:
    """All of them, in the order in which they are read."""
    return _loss(trial, look), _to_target(trial, look), _costs(trial, costs, look), _predicted(trial, look), _noise(trial, look)


def _loss(trial: Trial, look: Look) -> Section:
    rows, title = drawn.losses(trial), "Loss"
    if not rows:
        return Section(title, ("There is no loss curve: no run has made a step whose loss is a number.",))
    seeds = len({run.seed for run in trial.runs})
    said = [f"Losses are means over the last {trial.window_samples:,} samples, as many for every batch, so that their noise is alike."]
    if seeds > 1:
        said.append("Lines are means over seeds up to the step that all have made, and bands go from the least of them to the most.")
    said.append(f"Where a seed ended: {', '.join(_SYMBOLS[status] for status in drawn.statuses(drawn.ends(trial)))}.")
    if drawn.validation_losses(trial):
        said.append(f"Dashed lines are validation losses{', by which the target counts as reached' if trial.target_loss is not None else ''}.")
    top = drawn.ceiling(trial)
    if any(update.loss > top or not math.isfinite(update.loss) for run in trial.runs for update in run.updates):
        said.append(f"Losses above {number(top)}, far more than the first, and those that are no number are not drawn.")
    if trial.target_loss is None:
        said.append("There was no target loss.")
    same = "Curves that lie on each other learn as much from a sample, whatever the batch."
    drawings = (
        Drawing("loss-samples", "Loss against samples seen", same, charts.loss(trial, "samples", look)),
        Drawing("loss-seconds", "Loss against seconds of training", "Evaluating is not counted.", charts.loss(trial, "seconds", look)),
    )
    return Section(title, tuple(said), drawings)


def _to_target(trial: Trial, look: Look) -> Section:
    title = "Steps and samples to the target"
    if trial.target_loss is None:
        return Section(title, ("There is no chart of steps to the target: none was given.",))
    if not drawn.to_target(trial):
        return Section(title, (f"There is no chart of steps to the target: no run reached a loss of {number(trial.target_loss)}.",))
    missed = [f"{row.rung.batch:,} ({row.seeds_at_target} of {len(row.seeds)})" for row in trial.rows if row.seeds_at_target < len(row.seeds)]
    said = [f"Each point is a seed that reached a loss of {number(trial.target_loss)}."]
    if missed:
        said.append(f"Not all seeds did with batch {', '.join(missed)}: what these would have taken is not in the law.")
    if trial.law is None:
        said.append("There is no line: a law of steps needs two batches that reached the target.")
    else:
        fewest, samples = number(trial.law.fewest_steps), number(trial.law.fewest_samples)
        said.append(f"The line is {fewest} + {samples} / batch steps (McCandlish 2018, arXiv 1812.06162, equation 2.11).")
        said.append("At the critical batch both steps and samples are twice the fewest.")
        if charts.critical(trial) is None:
            said.append(f"It is {number(trial.law.critical_batch)}, too far from the batches that were tried to be drawn.")
    drawings = (
        Drawing("steps", "Optimizer steps to the target", "Larger batches save steps, ever fewer.", charts.to_target(trial, "steps", look)),
        Drawing("samples", "Samples to the target", "What larger batches spend for it.", charts.to_target(trial, "samples", look)),
    )
    return Section(title, tuple(said), drawings)


def _costs(trial: Trial, costs: Sequence[Recommendation], look: Look) -> Section:
    title = "Time and money"
    if not costs:
        return Section(title, ("There is no chart of time: steps are known neither from a target that two batches reached nor from a noise scale.",))
    said = [f"A ring marks the recommended batch, the smallest that takes at most {NEARLY - 1:.0%} more than the least."]
    if trial.law is None:
        said.append("Steps are those that the noise scale tells, in units of the fewest: compare batches by them, and read no seconds to a loss.")
    elif drawn.measured_seconds(trial):
        said.append("Diamonds are seconds that were measured up to the target, from the least of the seeds to the most.")
    if len(costs) > KINDS:
        said.append(f"The first {KINDS} of {len(costs)} are drawn; the table has all.")
    said += [line for each in costs if each.gpu and (line := price_line(each.gpu, each.price, each.unpriced))]
    shown, drawings = costs[:KINDS], []
    for of, named in (("seconds", "Time"), ("usd", "Money")):
        if rows := drawn.costs(shown, of):
            ways, drawn_here = list(dict.fromkeys(map(drawn.way, shown))), {row["by"] for row in rows}
            kinds = tuple((place, by) for place, by in enumerate(ways) if by in drawn_here)
            drawings.append(
                Drawing(
                    f"cost-{of}",
                    f"{named} to the target",
                    "Steps to the target, times what one of them takes.",
                    charts.costs(trial, shown, of, look),
                    kinds,
                )
            )
    if len(drawings) < 2:
        said.append("There is no chart of money: no price was given.")
    return Section(title, tuple(said), tuple(drawings), tables.of_costs(trial, costs))


def _predicted(trial: Trial, look: Look) -> Section:
    memory, times, title = drawn.peaks(trial), drawn.step_seconds(trial), "Predicted against measured"
    said, drawings = [], []
    if memory or times:
        said.append("Dots are measured, rings predicted; a dot within its ring is as predicted.")
    if memory:
        worst = max(memory, key=lambda row: abs(row["error"]))
        caption = f"Worst: {worst['error']:+.1%}, {worst['what']} of batch {worst['batch']:,}."
        kinds = tuple(enumerate(dict.fromkeys(row["what"] for row in memory)))
        drawings.append(Drawing("memory", "Peak memory", caption, charts.predicted(trial, memory, "peak memory [GiB]", look), kinds))
    else:
        said.append("There is no chart of memory: it was not both predicted and measured, which takes a CUDA device of the catalogue.")
    if times:
        worst = max(times, key=lambda row: abs(row["error"]))
        caption = f"Worst: {worst['error']:+.1%}, batch {worst['batch']:,}."
        drawings.append(Drawing("step-seconds", "Seconds a step", caption, charts.predicted(trial, times, "optimizer step [s]", look)))
    else:
        said.append("There is no chart of seconds a step: they were not both predicted and measured.")
    return Section(title, tuple(said), tuple(drawings))


def _no_noise(trial: Trial) -> str:
    """Why none is drawn."""
    if all(rung.micro_batch == rung.batch for rung in trial.by_rung):
        return "it compares the micro-batches of a step with their mean, and every step was one micro-batch"
    known = [row.noise_scale.samples for row in trial.rows if row.noise_scale is not None]
    if not known:
        return "too few steps have several micro-batches to compare with their mean"
    return f"it is {' or '.join(sorted({number(samples) for samples in known}))} with every batch, which a logarithmic axis does not have"


def _noise(trial: Trial, look: Look) -> Section:
    rows, over, title = drawn.noise(trial), drawn.noise_over(trial), "Gradient noise scale"
    if not rows:
        return Section(title, (f"There is no chart of the noise scale: {_no_noise(trial)}.",))
    said = ["The batch at which the noise of a step's gradient is as large as the gradient: about where larger batches begin to save few steps."]
    said.append(
        "It grows as training goes on, holds for plain SGD near a minimum, and the best batch may be smaller or larger (Merrill 2025, arXiv 2505.23971)."
    )
    if any(row["endless"] for row in (*rows, *over)):
        said.append("▲ has no upper bound: the gradient itself cannot be told from noise.")
    dashed = " The dashed line is the critical batch by steps to the target." if charts.critical(trial) else ""
    drawings = [Drawing("noise", "Of each batch", f"Bars are intervals at 95%.{dashed}", charts.noise(trial, look))]
    if over:
        drawings.append(Drawing("noise-over", "Over training", "Of each quarter of the steps.", charts.noise_over(trial, look)))
    return Section(title, tuple(said), tuple(drawings))
