# SPDX-License-Identifier: Apache-2.0
"""The gradient noise scale where it is known: linear regression on Gaussian inputs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bsmodel
from tests.test_refusals import line_of

DIMENSION, SPREAD = 20, 0.5


def squares(seed, micro_batch, accumulation, steps):
    """Squared norms of gradients of half the squared error of x.w + noise, away from its minimum by a unit vector: of micro-batches and their means."""
    random = np.random.default_rng(seed)
    off = np.zeros(DIMENSION)
    off[0] = 1.0
    inputs = random.standard_normal((steps, accumulation, micro_batch, DIMENSION))
    errors = inputs @ off - SPREAD * random.standard_normal((steps, accumulation, micro_batch))
    gradients = (inputs * errors[..., None]).mean(axis=2)
    return (gradients**2).sum(axis=-1), (gradients.mean(axis=1) ** 2).sum(axis=-1)


def known():
    """tr(Sigma) = (d + 1) |w|^2 + d s^2, over |w|^2 = 1: E|x|^2 (x.w)^2 = (d + 2) |w|^2."""
    return DIMENSION + 1 + DIMENSION * SPREAD**2


def test_the_interval_holds_what_is_known_in_nine_of_ten_runs():
    found = [bsmodel.noise_scale(*squares(seed, 4, 8, 200), 4, 8) for seed in range(100)]
    assert sum(each.low <= known() <= each.high for each in found) >= 90
    assert np.median([each.samples for each in found]) == pytest.approx(known(), rel=0.1)
    assert all(each.low <= each.samples <= each.high and each.steps == 200 for each in found)


def test_steps_and_samples_meet_at_the_noise_scale():
    """At a batch of it, both are twice the least."""
    found = bsmodel.noise_scale(*squares(0, 4, 8, 200), 4, 8)
    assert found.steps_at(found.samples) == found.samples_at(found.samples) == 2
    assert bsmodel.noise_scale(*squares(0, 4, 8, 200), 4, 8) == found


@given(st.integers(1, 64), st.integers(2, 16), st.floats(0.1, 10), st.floats(0.1, 10))
def test_squares_that_are_exact_give_what_they_were_made_of(micro_batch, accumulation, gradient, noise):
    large = micro_batch * accumulation
    small_square, large_square = gradient + noise / micro_batch, gradient + noise / large
    found = bsmodel.noise_scale([small_square] * 3, [large_square] * 3, micro_batch, accumulation)
    assert found.samples == pytest.approx(noise / gradient, rel=1e-6) == pytest.approx(found.high, rel=1e-6)


def test_a_gradient_that_is_all_noise_has_no_end():
    assert bsmodel.noise_scale([1.0, 1.2], [0.2, 0.3], 1, 4).high == math.inf


def test_without_noise_any_larger_batch_is_samples_without_end():
    found = bsmodel.noise_scale([1, 1], [1, 1], 1, 2)

    assert (found.samples, found.steps_at(8), found.samples_at(8)) == (0.0, 1.0, math.inf)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (([1.0, 2.0], [1.0, 2.0], 4, 1), "accumulation is 1: the noise scale compares micro-batches with their mean"),
        (([1.0], [1.0], 4, 2), "squared norms are of shapes (1,) and (1,); expected (steps, 2) and (steps,), of two steps or more"),
        (([[1.0, 2.0, 3.0]] * 2, [1.0, 2.0], 4, 2), "squared norms are of shapes (2, 3) and (2,)"),
        (([1.0, math.nan], [1.0, 2.0], 4, 2), "squared norms hold what is none"),
        (([1.0, 2.0], [1.0, 2.0], 0, 2), "micro-batch is 0"),
    ],
)
def test_what_says_nothing_of_noise_is_refused(asked, reason):
    assert line_of(bsmodel.noise_scale, *asked).startswith(reason)
