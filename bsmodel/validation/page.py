# SPDX-License-Identifier: Apache-2.0
"""Rows as one self-contained HTML page: predictions against measurements as charts, beside the tables of the Markdown report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bsmodel.pages import Column, Comparison, Drawing, Section, Table, document, head, of_page
from bsmodel.units import GiB
from bsmodel.validation import rows, summary

_SHOWN = 20  # of the worst cases of each figure; the table has every one
_MEMORY, _STEP, _BATCH = (GiB, "GiB"), (1e-3, "ms"), (1, "samples")  # what the axes are of, in the unit of the rows
_UNITS = {"allocated": _MEMORY, "reserved": _MEMORY, "device": _MEMORY, "step": _STEP}
_FIGURES = tuple(summary.NAMES.values())  # in the order of their colours
_BESIDE = "A line through a point goes from the least to the most that was predicted, where the rows have it; red: the measurement lies outside."

_CAPTIONS = {
    "Errors": "Predicted over measured, less one, either way; an interval is what was predicted from the least to the most.",
    "Worst first": "Peaks of what PyTorch allocates, and the errors of each figure.",
    "Largest batch": "The batch that surely fits, as predicted, and the largest that survives, by real runs that end out of memory.",
    "Accumulation": "Two optimizer steps of the planned micro-batch and gradient accumulation; gradients against those of a full batch.",
    "Estimators": "Every estimator over all cases: medians, the worst, and what became of the batches it recommends.",
    "Side by side": "What each estimator says of a case, beside what was allocated.",
    "Said to fit and did not, or the other way": "Cases whose prediction of fitting was wrong.",
    "Failed": "Cases that were not measured, and why.",
}

Pairs = Mapping[str, Sequence[Comparison]]  # by figure, worst first


def page(found: Sequence[rows.Row]) -> str:
    """The report of the rows; its tables are those of `summary.markdown`. Needs altair."""
    pairs = {figure: summary.pairs(found, figure) for figure in summary.FIGURES}
    compared = {figure: own for figure, own in pairs.items() if own}
    largest = _largest(found)
    drawings = {"Errors": (*_scatters(compared), *_shares(compared)), "Worst first": _worst(compared), "Largest batch": _batches(largest)}
    said = {"Errors": (_BESIDE,), "Largest batch": _undrawn(found, largest)}
    parts = [Section(title, said.get(title, ()), drawings.get(title, ()), _table(title, headings, body)) for title, headings, body in summary.tables(found)]
    where = [("Rows", f"{len(found):,}"), *(("Card", line) for line in summary.surroundings(found))]
    top = head(("How far off", _findings(found, compared)), ("What was measured", where), summary.remarks(found))
    return document("Predicted against measured", top, parts)


def _findings(found: Sequence[rows.Row], compared: Pairs) -> list[str]:
    said = []
    for pairs in compared.values():
        errors, worst = summary.statistics_of(pairs), pairs[0]
        assert errors is not None, "there are pairs"
        inside = f"; {errors.inside:,} of {errors.intervals:,} measurements lie in the predicted interval" if errors.intervals else ""
        middle = f"half of {errors.cases:,} cases are off by at most {errors.median:.2%}, 95 % by {errors.ninety_fifth:.2%}"
        said.append(f"{errors.figure.capitalize()}: {middle}, the worst by {worst.error:+.2%} ({worst.case}){inside}.")
    if asked := rows.of_kind(found, "largest"):
        said.append(f"Largest batch: {sum(item['measured']['survives'] for item in asked):,} of {len(asked):,} predicted ones run.")
    if wrong := len(summary.verdicts(found)):
        said.append(f"Said to fit and did not, or the other way: {wrong:,}.")
    return said or ["No row has both a prediction and a measurement."]


def _table(title: str, headings: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    columns = (Column(heading.lstrip(">"), cells, heading.startswith(">")) for heading, cells in zip(headings, zip(*body, strict=True), strict=True))
    return Table(re.sub(r"\W+", "-", title.lower()), _CAPTIONS[title], tuple(columns))


# -- charts --------------------------------------------------------------------------------------------------------------------------------


def _scatters(compared: Pairs) -> tuple[Drawing, ...]:
    """Memory as PyTorch counts it in one chart, then that of the device, then time."""
    groups = {"Peak memory": ("allocated", "reserved"), "Memory of the device": ("device",), "Seconds of a step": ("step",)}
    present = {title: {figure: compared[figure] for figure in figures if figure in compared} for title, figures in groups.items()}
    return tuple(_scatter(title, own) for title, own in present.items() if own)


def _scatter(title: str, compared: Pairs) -> Drawing:
    from bsmodel.pages import BAND, predicted_against_measured

    first = next(iter(compared))
    spec = predicted_against_measured(_together(compared), _UNITS[first], _FIGURES, of_page(0))
    caption = f"On the line both are the same; the band is {BAND:.0%} to either side."
    return Drawing(f"{first}-against", f"{title}, predicted against measured", caption, spec, _kinds(compared) if len(compared) > 1 else ())


def _together(compared: Pairs) -> list[Comparison]:
    return [pair for pairs in compared.values() for pair in pairs]


def _kinds(compared: Pairs) -> tuple[tuple[int, str], ...]:
    return tuple((place, name) for place, (figure, name) in enumerate(summary.NAMES.items()) if figure in compared)


def _shares(compared: Pairs) -> tuple[Drawing, ...]:
    from bsmodel.pages import error_shares

    if not compared:
        return ()
    spec, caption = error_shares(_together(compared), _FIGURES, of_page(0)), "The share of the cases whose error, either way, is at most so large."
    return (Drawing("shares", "How many cases are off by how much", caption, spec, _kinds(compared)),)


def _worst(compared: Pairs) -> tuple[Drawing, ...]:
    from bsmodel.pages import relative_errors

    drawings = []
    for figure, pairs in compared.items():
        spec = relative_errors(pairs[:_SHOWN], _UNITS[figure], _FIGURES, of_page(0))
        shown = f"The worst {_SHOWN} of {len(pairs):,} cases." if len(pairs) > _SHOWN else ""
        drawings.append(Drawing(f"{figure}-errors", f"Errors, worst first: {summary.NAMES[figure]}", shown, spec))
    return tuple(drawings)


def _largest(found: Sequence[rows.Row]) -> list[Comparison]:
    """The largest batches that were found, beside those that surely and that likely fit; no logarithm has a batch of none."""
    asked = [(item, item["predicted"], item["measured"]["batch"]) for item in rows.of_kind(found, "largest")]
    return [
        Comparison(item["case"], "runs" if item["measured"]["survives"] else "out of memory", said["batch"], batch, said["batch"], said.get("likely_batch"))
        for item, said, batch in asked
        if said["batch"] and batch
    ]


def _batches(largest: Sequence[Comparison]) -> tuple[Drawing, ...]:
    from bsmodel.pages import predicted_against_measured

    if not largest:
        return ()
    verdicts = ("runs", "out of memory")
    spec = predicted_against_measured(largest, _BATCH, verdicts, of_page(0))
    caption = "From what surely fits to what likely does. Above the line the predicted batch runs out of memory."
    return (Drawing("largest-against", "Largest batch, predicted against measured", caption, spec, tuple(enumerate(verdicts))),)


def _undrawn(found: Sequence[rows.Row], largest: Sequence[Comparison]) -> tuple[str, ...]:
    left = len(rows.of_kind(found, "largest")) - len(largest)
    return (f"Not drawn, where no batch fits or none was found: {left:,}.",) if left else ()
