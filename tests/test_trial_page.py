# SPDX-License-Identifier: Apache-2.0
"""The page of a trial: what it says and shows, what it leaves out and why, and that nothing is loaded from elsewhere."""

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from bsmodel.errors import InvalidInputError
from bsmodel.trials import Choice, Recommendation, Run, Rung, Trial, Update, drawn, page, picture, tables
from bsmodel.units import GiB

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

SMALLEST, CRITICAL = 40, 64  # steps of an endless batch to the target, and the batch that takes twice as many


def a_rung(batch, micro_batch=None, predicted=False, steps=200):
    micro = batch if micro_batch is None else min(batch, micro_batch)
    told = (int((2 + batch / 16) * GiB), int((2.5 + batch / 16) * GiB), 0.02 + batch * 1e-4) if predicted else (None, None, None)
    return Rung(batch, micro, batch // micro, 1, 0.01 * batch / 32, steps, 10, *told)


def a_run(rung, seed=0, target=None, status=None, noisy=True, validated=False, window=1024):
    """A loss that falls as the law of steps has it, with gradients whose noise scale grows."""
    rng, updates, known = np.random.default_rng(1000 * rung.batch + seed), [], []
    to_target = SMALLEST * (1 + CRITICAL / rung.batch) * (1 + 0.05 * seed)
    for step in range(1, rung.steps + 1):
        loss = 2.3 * math.exp(-step / to_target) + rng.normal() * 0.1 / math.sqrt(rung.batch)
        if status == "diverged" and step == 30:
            loss = math.nan
        gradient, noise = 1.0, CRITICAL * (0.5 + step / rung.steps)
        several = noisy and rung.accumulation > 1
        squares = [(gradient + noise / size) * rng.uniform(0.9, 1.1) for size in (rung.micro_batch, rung.batch)] if several else [None, None]
        evaluated = loss + 0.1 if validated and step % 10 == 0 else None
        updates.append(Update(step, step * rung.batch, step * (0.021 + rung.batch * 1e-4), loss, rung.learning_rate, *squares, evaluated))
        known.append(loss)
        there = target is not None and len(known) * rung.batch >= window and np.mean(known[-max(1, window // rung.batch) :]) <= target
        if not math.isfinite(loss) or there:
            break
    ended = status or ("reached" if there else "finished")
    measured = rung.predicted_allocated_bytes and int(rung.predicted_allocated_bytes * 1.01)
    return Run(rung, seed, ended, tuple(updates), measured, measured and int(rung.predicted_reserved_bytes * 0.98))


def a_trial(runs, target=None, **question):
    asked = {
        "schema_version": 1,
        "workload": "digits",
        "device": "cpu",
        "recipe": {"optimizer": "sgd", "precision": "fp32", "ema": True},
        "data": "TensorDataset, 1,797 samples",
    }
    asked["rungs"] = [{"batch": rung.batch} for rung in dict.fromkeys(run.rung for run in runs)]
    asked |= {"seeds": sorted({run.seed for run in runs}), "target_loss": target, "remarks": ["a remark"]}
    return Trial(asked | question, tuple(runs))


def everything():
    """A trial of which all is known, with a batch that diverged and one that ran out of memory."""
    rungs = [a_rung(batch, 8, predicted=True) for batch in (16, 32, 64, 128, 256)]
    runs = [a_run(rung, seed, target=0.8) for rung in rungs for seed in range(3)]
    runs += [a_run(a_rung(512, 8, predicted=True), 0, status="diverged"), Run(a_rung(1024, 8, predicted=True), 0, "out of memory", ())]
    return a_trial(runs, target=0.8)


def elsewhere(by="seconds a step predicted for nvidia-h200-sxm", usd=1e-5, slower=1.0):
    """A recommendation for another card."""
    steps = {batch: SMALLEST * (1 + CRITICAL / batch) for batch in (16, 32, 64, 128)}
    choices = tuple(Choice(batch, made, seconds := slower * made * 0.01 * batch**0.3, None if usd is None else seconds * usd) for batch, made in steps.items())
    return Recommendation(64, by if usd is None else f"money, {by}", choices)


class Parts(HTMLParser):
    """Tags with their attributes, what is fetched, and whether all that opens is closed."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def specs(text):
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    return json.loads(found.group(1)) if found else {}


def words(text):
    """What is read, without scripts and drawings."""
    bare = re.sub(r"<(script|style|svg).*?</\1>", " ", text, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare)))


def plain(target=None, seeds=2, **question):
    """A trial of one micro-batch a step, on a device that nothing is predicted for."""
    return a_trial([a_run(a_rung(batch), seed, target) for batch in (32, 64) for seed in range(seeds)], target, **question)


@pytest.fixture(scope="module")
def full():
    return page(everything(), [elsewhere(), elsewhere("seconds a step predicted for nvidia-l4", usd=None, slower=3)])


ALL = ["loss-samples", "loss-seconds", "steps", "samples", "cost-seconds", "cost-usd", "memory", "step-seconds", "noise", "noise-over"]


def test_a_trial_of_which_all_is_known_has_every_chart_still_and_to_be_asked(full):
    parts = Parts(full)
    figures = [attributes["id"] for tag, attributes in parts.tags if tag == "figure"]

    assert not parts.open
    assert list(specs(full)) == figures == ALL
    assert sum(tag == "svg" for tag, _ in parts.tags) == len(ALL)


def test_the_page_loads_nothing_and_is_small(full):
    parts = Parts(full)
    loading = [attributes for _, attributes in parts.tags if {"src", "href", "srcset", "data", "action"} & set(attributes)]
    policy = next(attributes["content"] for tag, attributes in parts.tags if attributes.get("http-equiv") == "Content-Security-Policy")

    assert not loading
    assert "url(" not in re.sub(r"<script.*?</script>", "", full, flags=re.DOTALL) and "@import" not in full.split("<body>")[0]
    assert policy.startswith("default-src 'none'") and "eval" not in policy and "http" not in policy
    assert len(full.encode()) < 2e6


def test_long_runs_and_many_batches_stay_small():
    rungs = [a_rung(2**power, 1, steps=400) for power in range(1, 11)]
    found = page(a_trial([a_run(rung, seed) for rung in rungs for seed in range(2)]))

    assert len(found.encode()) < 2e6


def test_the_page_says_what_the_trial_was_and_what_came_of_it(full):
    trial, said = everything(), words(full)

    for told in ("digits", "sgd, fp32, ema True", "TensorDataset, 1,797 samples", "a remark", "16, 32, 64, 128, 256, 512, 1,024", "17 of 21 are over"):
        assert told in said
    assert f"Recommended batch: {trial.recommended.batch}, by measured seconds a step." in said
    assert "Recommended batch: 64, by money, seconds a step predicted for nvidia-h200-sxm." in said
    assert f"Critical batch by steps to the target: {trial.law.critical_batch:.4g} samples (laws of single seeds:" in said
    assert drawn.interval(trial.noise_scale) in said
    assert "Out of memory with batch 1,024." in said and "The loss diverged with batch 512." in said


def test_the_table_has_a_line_for_each_batch_with_units_and_intervals():
    trial = everything()
    table = tables.of_batches(trial)
    columns = {column.heading: column.cells for column in table.columns}
    row = trial.rows[1]

    assert table.keys == tuple(row.rung.batch for row in trial.rows)
    assert columns["Split"][1] == "8\u00a0×\u00a04\u00a0×\u00a01"
    assert columns["Ended"][-2:] == ("diverged", "out of memory")
    assert columns["Steps to target"][1] == f"{row.steps_to_target.mean:.4g} ({row.steps_to_target.low:.4g} to {row.steps_to_target.high:.4g})"
    assert columns["Allocated, measured [GiB]"][1] == "4.04" and columns["Allocated, predicted [GiB]"][1] == "4 (-1.0%)"
    assert columns["Noise scale [samples], 95%"][1] == drawn.interval(row.noise_scale)
    assert "Validation loss" not in columns


def test_what_is_not_known_is_said_in_place_of_its_chart():
    found = page(plain())
    said = words(found)

    assert list(specs(found)) == ["loss-samples", "loss-seconds"]
    assert "There is no chart of steps to the target: none was given." in said
    assert "There is no chart of time: steps are known neither from a target" in said
    assert "There is no chart of memory: it was not both predicted and measured" in said
    assert "There is no chart of seconds a step" in said
    assert "every step was one micro-batch" in said
    assert "No batch is recommended" in said


def test_a_target_that_no_run_reached_is_said():
    said = words(page(plain(target=0.001)))

    assert "no run reached a loss of 0.001" in said and "No batch reached the target loss." in said


def test_a_trial_that_has_not_begun_says_so():
    found = page(a_trial([], rungs=[{}, {}], seeds=[0]))

    assert "There is no loss curve" in words(found) and "0 of 2 are over" in words(found)
    assert "vegaEmbed" not in found


def test_without_a_target_steps_are_those_that_the_noise_scale_tells():
    found = page(a_trial([a_run(a_rung(batch, 8), seed) for batch in (16, 64) for seed in range(2)]))

    assert "cost-seconds" in specs(found) and "steps" not in specs(found)
    assert "in units of the fewest: compare batches by them" in words(found)


def test_what_users_name_is_text_wherever_it_stands():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
    found = page(plain(workload=evil, data=evil, remarks=[evil], recipe={"optimizer": evil}, device=evil), [elsewhere(by=evil)])
    parts = Parts(found)

    assert not parts.open
    assert "<script>alert" not in found and all(tag != "img" for tag, _ in parts.tags)
    assert words(found).count("alert(1)") >= 6
    assert "alert(1)" in json.dumps(specs(found))


def test_losses_that_are_no_numbers_do_not_reach_the_charts(full):
    drawings = json.dumps(specs(full))

    assert "NaN" not in drawings and "Infinity" not in drawings
    assert any(row["status"] == "diverged" for row in drawn.ends(everything()))


def test_a_noise_scale_without_an_upper_bound_is_drawn_as_such():
    rung = a_rung(64, 32)
    updates = tuple(Update(step, 64 * step, 0.1 * step, 2.0, 0.01, 4.0, 2.0 + 0.1 * (-1) ** step) for step in range(1, 41))
    trial = a_trial([Run(rung, 0, "finished", updates)])
    row = drawn.noise(trial)[0]
    found = page(trial)

    assert row["endless"] and row["told"].endswith("to ∞)")
    assert "▲ has no upper bound" in words(found)
    assert trial.recommended is None and "No batch is recommended" in words(found)


def test_why_there_is_no_noise_scale_is_told_apart():
    """Steps of one micro-batch, or gradients that cannot be told from noise."""
    rung = a_rung(64, 32)
    updates = tuple(Update(step, 64 * step, 0.1 * step, 2.0, 0.01, 4.0, 2.0) for step in range(1, 41))
    endless = a_trial([Run(rung, 0, "finished", updates)])

    assert math.isinf(endless.rows[0].noise_scale.samples) and not drawn.noise(endless)
    assert "it is ∞ with every batch" in words(page(endless)) and "every step was one micro-batch" not in words(page(endless))
    assert "too few steps have several micro-batches" in words(page(a_trial([Run(rung, 0, "finished", updates[:1])])))
    assert "every step was one micro-batch" in words(page(a_trial([a_run(a_rung(64))])))


def test_a_target_of_zero_is_one():
    """And stands on an axis that has a zero."""
    runs = [a_run(a_rung(batch), noisy=False) for batch in (32, 64)]
    axes = [json.dumps(specs(page(a_trial(runs, target_loss=target)))["loss-samples"]) for target in (0.0, None)]

    assert '"target 0"' in axes[0] and '"type": "log"' not in axes[0] and "target" not in axes[1]


def test_validation_losses_are_drawn_beside_those_of_training():
    trial = a_trial([a_run(a_rung(batch), validated=True) for batch in (32, 64)])

    assert len(drawn.validation_losses(trial)) == 2 * 20
    assert "Dashed lines are validation losses" in words(page(trial))


def test_curves_end_where_not_all_seeds_go_on_and_bands_hold_all_of_them():
    trial = everything()
    rows = [row for row in drawn.losses(trial) if row["batch"] == 64]

    assert rows[-1]["step"] == min(len(run.updates) for run in trial.runs if run.rung.batch == 64)
    assert all(row["low"] <= row["loss"] <= row["high"] for row in rows)


def test_the_picture_is_a_drawing_with_colours_of_its_own():
    found = picture(everything())
    root = ElementTree.fromstring(found)
    said = " ".join(root.itertext())

    assert root.tag.endswith("svg") and "var(" not in found and "href=" not in found
    assert "samples seen" in said and "target 0.8" in said and "1024" in said
    assert len(found) < 200_000


def test_there_is_no_picture_of_nothing():
    with pytest.raises(InvalidInputError, match="nothing to draw"):
        picture(a_trial([]))


@pytest.mark.parametrize(("missing", "named"), [("altair", "altair"), ("vl_convert", "vl-convert-python")])
@pytest.mark.parametrize("made", [page, picture])
def test_what_is_not_installed_is_named(monkeypatch, missing, named, made):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())

    with pytest.raises(InvalidInputError, match=rf'^a page needs {named}, which is not installed; pip install "bsmodel\[page\]"$'):
        made(plain())
