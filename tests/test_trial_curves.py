# SPDX-License-Identifier: Apache-2.0
"""What is read off loss curves, on runs made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsmodel.trials import Run, Rung, Trial, Update
from bsmodel.trials.curves import StepsLaw, loss_at, reached, smoothed, steps_law
from tests.test_refusals import line_of


def rung(batch, micro_batch=None, steps=100, rate=0.1):
    micro_batch = micro_batch or batch
    return Rung(batch, micro_batch, batch // micro_batch, 1, rate, steps)


def made(batch, losses, seed=0, status="finished", seconds=1.0, validation=None, micro_batch=None):
    """A run of these losses, one a step, each of as many seconds."""
    updates = [Update(step, step * batch, step * seconds, loss, 0.1, validation_loss=(validation or {}).get(step)) for step, loss in enumerate(losses, start=1)]
    return Run(rung(batch, micro_batch), seed, status, tuple(updates))


def trial_of(*runs, target=None):
    rungs = [{"batch": run.rung.batch} for run in runs]
    return Trial({"rungs": rungs, "seeds": [0], "target_loss": target, "remarks": []}, runs)


# -- curves ------------------------------------------------------------------------------------------------------------------------------


def test_a_curve_is_smoothed_over_as_many_samples_for_every_batch():
    small, large = made(2, [4.0, 2.0, 6.0, 8.0]), made(4, [3.0, 7.0])

    assert smoothed(small, 4).tolist() == [4, 3, 4, 7]
    assert smoothed(large, 4).tolist() == [3, 7]


@given(st.lists(st.floats(0, 10), min_size=2, max_size=40), st.integers(0, 4))
def test_halving_the_batch_of_a_curve_leaves_it_where_it_was(losses, doublings):
    """Each loss in two halves of the same mean."""
    halves = [half for loss in losses for half in (loss * 1.5, loss * 0.5)]
    window = 8 << doublings

    assert smoothed(made(4, halves), window)[1::2] == pytest.approx(smoothed(made(8, losses), window), abs=1e-9)


@given(st.lists(st.floats(0, 10), max_size=40), st.sampled_from([1, 2, 4, 8]), st.floats(0, 10))
def test_a_target_is_reached_at_the_first_whole_window_that_is_there(losses, batch, target):
    window, run = 8, made(batch, losses)
    means = {step: np.mean(losses[step - window // batch : step]) for step in range(window // batch, len(losses) + 1)}
    there, curve = reached(run, target, window), smoothed(run, window)

    assert there is None or there.samples >= window
    assert all(curve[step - 1] == pytest.approx(mean, abs=1e-9) for step, mean in means.items())
    assert (there.step if there else None) == next((step for step in means if curve[step - 1] <= target), None)


def test_validation_decides_where_there_is_any():
    run = made(4, [0.1] * 6, validation={2: 1.0, 4: 0.5, 6: 0.4})

    assert reached(run, 0.5, 4, validates=True).step == 4
    assert reached(run, 0.3, 4, validates=True) is None


def test_a_run_that_broke_off_before_its_first_validation_is_not_judged_by_its_losses_in_training():
    broken, whole = made(4, [0.1, 0.1, math.nan], status="diverged"), made(8, [0.1, 0.1], validation={2: 1.0})

    assert [row.seeds_at_target for row in trial_of(broken, whole, target=0.5).rows] == [0, 0]
    assert trial_of(broken, target=0.5).rows[0].seeds_at_target == 1  # where nothing was to be validated


def test_losses_are_read_at_samples_and_at_seconds():
    run = made(4, [5.0, 4.0, 3.0, 2.0], seconds=2.0)

    assert [loss_at(run, 4, samples=samples) for samples in (1, 4, 5, 16, 17)] == [5, 5, 4, 2, None]
    assert [loss_at(run, 4, seconds=seconds) for seconds in (1, 2, 2.1, 8, 8.1)] == [5, 5, 4, 2, None]
    assert loss_at(made(4, []), 4, samples=1) is None


# -- the law -----------------------------------------------------------------------------------------------------------------------------


@given(st.floats(1, 1e4), st.floats(100, 1e7), st.lists(st.integers(1, 4096), min_size=2, max_size=8, unique=True))
def test_an_exact_law_is_found_again(fewest, samples, batches):
    law = steps_law(batches, [[fewest + samples / batch] * 2 for batch in batches])

    assert law.steps(batches) == pytest.approx([fewest + samples / batch for batch in batches], rel=1e-6)
    assert law.low == pytest.approx(law.critical_batch, rel=1e-2) == law.high  # seeds agree, up to the rounding of neighbours
    assert law.samples(8.0) == pytest.approx(8 * law.steps(8.0))


def test_the_law_at_its_limits():
    law = StepsLaw(100, 6400, 64, 64)

    assert law.critical_batch == 64
    assert law.steps([64, 1e12]).tolist() == pytest.approx([200, 100])
    assert law.samples([64, 1e-9]).tolist() == pytest.approx([12800, 6400])
    assert steps_law([1, 2, 4], [[400], [200], [100]]).critical_batch == math.inf
    assert steps_law([1, 2, 4], [[50], [50], [50]]) == StepsLaw(pytest.approx(50), pytest.approx(0, abs=1e-9), pytest.approx(0), pytest.approx(0))


def test_steps_that_grow_or_fall_faster_than_batches_are_at_an_end_of_the_law():
    assert steps_law([1, 2], [[10], [20]]).fewest_samples == 0
    assert steps_law([1, 2], [[90], [20]]).fewest_steps == 0


def test_two_batches_are_needed():
    assert "was reached with 1 of the batches" in line_of(steps_law, [8, 16], [[10.0], []])
    assert steps_law([8, 16, 32], [[10.0], [math.inf, 6.0], [4.0]]).critical_batch > 0


def test_laws_of_seeds_are_of_their_own_steps_where_others_did_not_get_there():
    """Steps of one seed are never put beside those of another."""
    steps = {(16, 1): 500, (64, 0): 900, (64, 1): 200}  # the other seed did not with the smaller batch
    runs = [made(batch, [0.5 if step >= reached_at else 1.0 for step in range(1, 1001)], seed) for (batch, seed), reached_at in steps.items()]
    law = trial_of(made(16, [1.0] * 8), *runs, target=0.5).law

    assert law.low == law.high == pytest.approx(6464 / 99)  # 99 + 6464 / batch: 503, a window of four steps later, and 200
    assert steps_law([16, 64], [[math.inf, 500], [900, math.inf]]).low == steps_law([16, 64], [[500], [900]]).critical_batch


# -- rows and what is recommended --------------------------------------------------------------------------------------------------------


def falling(steps):
    """A curve that is at 0.5 from this step on."""
    return [1.0] * (steps - 1) + [0.5]


def test_what_is_recommended_is_the_smallest_batch_of_nearly_the_least_time():
    runs = [made(batch, falling(100 + 6400 // batch), seconds=seconds, status="reached") for batch, seconds in ((32, 1.0), (64, 1.0), (128, 1.25))]
    found = trial_of(*runs, target=0.5)

    # A window is 128 samples: batches below are there once several steps in a row are.
    assert [row.steps_to_target.mean if row.steps_to_target else None for row in found.rows] == [None, None, 150]
    assert found.recommended is None
    runs = [made(batch, falling(100 + 6400 // batch) + [0.5] * 8) for batch in (32, 64, 128)]
    found = trial_of(*runs, target=0.5)
    assert [row.steps_to_target.mean for row in found.rows] == [303, 201, 150]
    assert found.recommended.batch == 128 and found.recommended.by == "measured seconds a step"
    slower = [made(run.rung.batch, [update.loss for update in run.updates], seconds=1.3 if run.rung.batch == 128 else 1.0) for run in runs]
    assert trial_of(*slower, target=0.5).recommended.batch == 64


def test_batches_that_failed_are_none_to_recommend():
    """However good the law of the others says that they are."""
    good = [made(batch, falling(100 + 6400 // batch) + [0.5] * 8) for batch in (32, 64)]
    bad = {
        "diverged": made(128, [1.0, 2.0, math.nan], status="diverged", seconds=0.01),
        "out of memory": made(128, [1.0, 1.0, 1.0], status="out of memory", seconds=0.01),
        "stopped": made(128, [1.0, 1.0, 1.0], status="stopped", seconds=0.01),
        "finished": made(128, [1.0] * 200, seconds=0.01),
    }
    for status, run in bad.items():
        found = trial_of(*good, run, target=0.5)
        assert found.rows[-1].status == status
        assert [choice.batch for choice in found.recommended.choices] == [32, 64], status
    unfinished = made(128, [1.0] * 20, seconds=0.01)
    assert trial_of(*good, unfinished, target=0.5).recommended.batch == 128
    assert trial_of(made(8, []), target=0.5).recommended is None


def test_rows_compare_where_all_that_did_not_fail_have_been():
    found = trial_of(made(2, [3.0, 2.0, 1.0]), made(4, [3.0, 2.0], seconds=1.0), made(8, [1.0, math.inf], status="diverged"), made(8, [9.0, 7.0], seed=1))
    small, middle, large = found.rows

    assert (small.loss_at_samples.mean, middle.loss_at_samples.mean, large.loss_at_samples.mean) == (2.0, 2.5, 5.0)
    assert small.loss_at_seconds.mean == 2.5
    assert large.final_loss.mean == large.final_loss.high == 7.0
    assert large.status == "diverged, finished" and large.seeds == (0, 1)
    assert all(type(value) is float for value in (small.loss_at_samples.low, small.loss_at_samples.high))


def test_a_window_is_that_of_the_largest_batch_that_is_asked_for():
    """Also before it was run: rows of a trial that is not over mean the same."""
    question = {"rungs": [{"batch": 2}, {"batch": 8}], "seeds": [0], "target_loss": None}

    assert Trial(question, (made(2, [4.0, 3.0, 2.0, 1.0]),)).rows[0].final_loss.mean == 2.5


def test_the_noise_scale_of_a_trial_is_that_of_most_micro_batches():
    updates = {accumulation: (1.0 + 8 / accumulation, 1.0 + 1 / accumulation) for accumulation in (2, 8)}
    runs = []
    for batch, accumulation in ((16, 8), (64, 2)):
        micro, whole = updates[accumulation]
        steps = tuple(Update(step, step * batch, float(step), 1.0, 0.1, micro + step / 100, whole) for step in range(1, 5))
        runs.append(Run(rung(batch, batch // accumulation), 0, "finished", steps))
    found = trial_of(*runs)

    assert found.noise_scale == found.rows[0].noise_scale != found.rows[1].noise_scale
