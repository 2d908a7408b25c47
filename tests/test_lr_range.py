# SPDX-License-Identifier: Apache-2.0
"""Learning rate range tests: of problems where the rate that diverges is known, and of digits."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bsmodel import InvalidInputError, Training, Workload, lr_range
from bsmodel.trials import RateRange

accelerate = pytest.importorskip("accelerate")

SGD = Training(optimizer="sgd")


def regression(curvatures, samples=64, noise=0.1):
    """Half the mean squared error of a linear model, whose Hessian has these eigenvalues, and the samples."""
    generator = torch.Generator().manual_seed(1)
    orthogonal = torch.linalg.qr(torch.randn(samples, len(curvatures), generator=generator, dtype=torch.float64))[0]
    inputs = (orthogonal * torch.tensor(curvatures, dtype=torch.float64).mul(samples).sqrt()).float()
    targets = inputs.sum(1, keepdim=True) + noise * torch.randn(samples, 1, generator=generator)

    def batch(size):
        return torch.zeros(size, len(curvatures)), torch.zeros(size, 1)

    def loss(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1]) / 2

    def model():
        return nn.Linear(len(curvatures), 1, bias=False)

    return Workload(model, batch, loss, name="regression", training=SGD, data=lambda: torch.utils.data.TensorDataset(inputs, targets))


@pytest.mark.parametrize("largest", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_stochastic_descent_diverges_near_two_over_the_largest_curvature(largest, seed):
    """From there on a constant rate diverges on all samples; on a quarter of them curvature differs from step to step."""
    limit = 2 / largest
    found = lr_range(regression((largest, largest / 3, largest / 10)), batch=16, low=limit / 1e3, high=limit * 10, steps=134, seed=seed)

    assert limit / 1.5 < found.diverged_at < limit * 2
    assert found.tenth_of_divergence == found.diverged_at / 10
    assert limit / 1e3 < found.steepest < limit / 2


@pytest.mark.parametrize("steps", [40, 120])
def test_without_noise_divergence_shows_late_but_a_tenth_of_it_is_a_rate_that_trains(steps):
    """What was learnt to the last digit grows again from there."""
    found = lr_range(regression((1.0, 0.3)), batch=64, low=0.02, high=20.0, steps=steps)

    assert found.diverged_at > 2.0 and found.tenth_of_divergence < 2.0


def test_accumulated_micro_batches_see_what_one_batch_sees():
    asked = {"batch": 64, "low": 1e-4, "high": 100.0, "steps": 60}
    whole, split = lr_range(regression((1.0, 0.1)), **asked), lr_range(regression((1.0, 0.1)), **asked, micro_batch=16)

    assert split.rates == whole.rates and split.losses[:20] == pytest.approx(whole.losses[:20], rel=1e-4)


def test_adam_on_digits_has_its_usual_rate_below_both_suggestions_and_every_run_is_the_same():
    """Kingma 2014, arXiv 1412.6980: 1e-3 is good for most problems."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    samples = torch.utils.data.TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    digits = Workload(
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        lambda size: (torch.zeros(size, 64), torch.zeros(size, dtype=torch.long)),
        loss,
        name="digits",
        training=Training(optimizer="adam"),
    )
    asked = {"data": samples, "batch": 64}
    found = lr_range(digits, **asked)

    assert 1e-3 < found.steepest < found.diverged_at
    assert 1e-3 < found.tenth_of_divergence < 1
    assert found == lr_range(digits, **asked)  # to the bit
    assert found.losses != lr_range(digits, **asked, seed=1).losses


def test_rates_rise_by_a_factor_and_the_average_is_debiased():
    found = lr_range(regression((1.0,)), batch=8, low=1e-3, high=1e-1, steps=11)
    weights = 0.8 ** np.arange(11)[::-1]

    assert found.rates == pytest.approx(np.geomspace(1e-3, 1e-1, 11)) and len(found.losses) == 11
    assert found.smoothed[0] == found.losses[0]
    assert found.smoothed[-1] == pytest.approx(weights @ found.losses / weights.sum())


def test_a_run_that_does_not_diverge_says_so():
    found = lr_range(regression((1.0,)), batch=8, low=1e-3, high=1e-1, steps=20)

    assert found.diverged_at is None and found.tenth_of_divergence is None
    assert "does not diverge up to 0.1" in found.suggestions[1]


def test_a_loss_that_does_not_fall_suggests_no_rate_of_steepest_fall():
    found = RateRange(1, tuple(np.geomspace(1e-3, 1, 20)), *(tuple(np.linspace(1.0, 2.0, 20)),) * 2)

    assert found.steepest is None and "does not fall" in found.suggestions[0]


def test_example_batches_are_said_to_teach_nothing():
    (remark,) = lr_range(example(), batch=4).remarks

    assert "losses say nothing of learning" in remark


def example(loss=lambda model, batch: model(batch).square().mean()):
    return Workload(lambda: nn.Linear(3, 1), lambda size: torch.ones(size, 3), loss, name="example", training=SGD)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": 1.0, "high": 1.0}, "learning rates are 1:1; expected the lower one first"),
        ({"low": 0.0}, "lowest learning rate is 0.0"),
        ({"high": math.inf}, "highest learning rate is inf"),
        ({"steps": 9}, "steps is 9; expected a whole number of at least 10"),
        ({"batch": 0}, "batch is 0"),
        ({"micro_batch": 0}, "micro-batch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data": 3}, "data is int"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(options, said):
    with pytest.raises(InvalidInputError, match=r"^[^\n]+$") as caught:
        lr_range(example(), **{"batch": 4, **options})

    assert said in str(caught.value)


def test_a_step_of_its_own_and_a_loss_that_is_no_number_are_refused():
    with pytest.raises(InvalidInputError, match="a step of its own"):
        lr_range(Workload(nn.Flatten, torch.zeros, step=lambda model, optimizer, batch: None), batch=4)
    with pytest.raises(InvalidInputError, match="is nan before its first update"):
        lr_range(example(lambda model, batch: model(batch).mean() * math.nan), batch=4)


def test_a_batch_that_runs_out_of_memory_is_named():
    def loss(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(InvalidInputError, match="a micro-batch of 2 runs out of memory here"):
        lr_range(example(loss), batch=4, micro_batch=2)
