# SPDX-License-Identifier: Apache-2.0
"""Every batch and every split of it sees the same samples in the same order, and its gradients are measured as they are."""

import gc
import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bsmodel
from bsmodel.trials import trial
from bsmodel.trials.data import of_samples, of_text
from tests.test_refusals import line_of
from tests.trials import DIGITS, DIMENSION, LETTERS, SPREAD, TEXT, half_square, line, line_data


def seen(data, batch, steps):
    """The samples of so many steps, in their order."""
    return torch.cat([data.batch(range(step * batch, (step + 1) * batch)) for step in range(steps)]).tolist()


# -- order -------------------------------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 40), batch=st.integers(1, 12), other=st.integers(1, 12), seed=st.integers(0, 5))
def test_the_order_depends_on_the_seed_alone_and_an_epoch_has_every_sample_once(length, batch, other, seed):
    places = 3 * length
    first = seen(of_samples(torch.arange(length), seed), batch, math.ceil(places / batch))[:places]

    assert first == seen(of_samples(torch.arange(length), seed), other, math.ceil(places / other))[:places]
    assert all(sorted(first[epoch * length : (epoch + 1) * length]) == list(range(length)) for epoch in range(3))


def test_epochs_are_shuffled_anew_and_so_are_seeds():
    epochs = [seen(of_samples(torch.arange(64), seed), 64, 2) for seed in range(3)]
    orders = {tuple(order) for both in epochs for order in (both[:64], both[64:])}

    assert len(orders) == 6


@given(length=st.integers(10, 40), share=st.floats(0.05, 0.9), seed=st.integers(0, 3))
def test_what_is_held_out_is_the_same_for_all_seeds_and_never_trained_on(length, share, seed):
    if not round(length * share):
        assert "keeps none to validate with; give at least" in line_of(of_samples, torch.arange(length), seed, split=share)
        return
    data = of_samples(torch.arange(length), seed, split=share)
    kept = [sample for _, batch in data.validation() for sample in batch.tolist()] if data.validation else []

    assert len(kept) == round(length * share) and data.length == length - len(kept)
    assert sorted(kept + seen(data, 1, data.length)) == list(range(length))
    assert kept == ([sample for _, batch in of_samples(torch.arange(length), 9, split=share).validation() for sample in batch.tolist()] if kept else [])


class Counted(IterableDataset):
    """An iterable of torch that knows how many samples it has: it cannot be asked for one of them."""

    def __iter__(self):
        return iter(range(5))

    def __len__(self):
        return 5


def test_an_iterable_comes_in_its_own_order_and_begins_anew():
    data = of_samples(Counted(), 3, validation=Counted(), validation_batch=2)

    assert seen(data, 3, 4) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert data.length is None
    assert [size for size, _ in data.validation()] == [2, 2, 1] == [size for size, _ in data.validation()]
    assert of_samples(Counted(), 0).batch([1, 4, 5]).tolist() == [1, 4, 0]  # other processes have the places between


def test_lists_of_numbers_are_tensors_as_datasets_of_hugging_face_have_them():
    rows = [{"input_ids": [1, 2, 3], "label": 0, "pair": ([1, 2], "text")}, {"input_ids": [4, 5, 6], "label": 1, "pair": ([3, 4], "more")}]
    batch = of_samples(rows, 0).batch([0, 1])

    assert sorted(batch["input_ids"].tolist()) == [[1, 2, 3], [4, 5, 6]] and batch["label"].shape == (2,)
    assert sorted(batch["pair"][0].tolist()) == [[1, 2], [3, 4]] and sorted(batch["pair"][1]) == ["more", "text"]


def test_a_text_is_cut_into_samples():
    pieces, text = of_text(TEXT, LETTERS), TEXT.read_bytes()

    assert len(pieces) == len(text) // LETTERS
    assert bytes(torch.cat([piece["input_ids"] for piece in pieces]).tolist()) == text[: len(pieces) * LETTERS]
    assert all(torch.equal(piece["input_ids"], piece["labels"]) for piece in pieces)
    assert of_text(TEXT, 2, lambda words: {"input_ids": [len(word) for word in words.split()]})[0]["input_ids"].tolist() == [11, 5]


class Broken(Dataset):
    """Samples that nobody has counted, and that cannot be gone through."""

    def __getitem__(self, place):
        raise IndexError(place)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (5, "data is int; expected a torch.utils.data.Dataset, a sequence of samples or an iterable of them"),
        ("letters.txt", "data is str; expected"),
        ({"x": torch.zeros(3)}, "data is dict; expected"),
        (DataLoader(line_data(4)), "data is a DataLoader, which makes batches of its own; give its dataset"),
        ([], "data has 0 samples, of which 0 are for validation; expected at least one to train on"),
        (iter([1, 2]), "data is list_iterator, which can be gone through once only"),
        (map(float, [1]), "data is map, which can be gone through once only"),
    ],
)
def test_what_is_no_data_is_refused(data, reason):
    assert line_of(of_samples, data, 0).startswith(reason)


class Ending:
    """An iterable that ends at once, or for good after its first round."""

    def __init__(self, samples):
        self.source = iter(samples)

    def __iter__(self):
        yield from self.source


def test_data_that_ends_for_good_or_does_not_go_together_is_refused(tmp_path):
    assert "an iterable without samples, or one that can be gone through once" in line_of(of_samples(Ending([]), 0).batch, range(1))
    assert "an iterable without samples, or one that can be gone through once" in line_of(of_samples(Ending([1, 2]), 0).batch, range(3))
    assert line_of(of_samples([[1, 2], [1]], 0).batch, range(2)).startswith("samples do not go together as a batch: stack expects each tensor")
    assert line_of(of_samples, [1, 2], 0, split=1).startswith("split is 1; expected a share")
    assert line_of(of_samples, [1, 2], 0, split=-0.5).startswith("split is -0.5; expected a finite number of at least 0")
    assert line_of(of_samples, Counted(), 0, split=0.5).startswith("data is Counted, an iterable, of which no share can be kept")
    assert line_of(of_samples, [1, 2], 0, validation=iter([1])).startswith("validation is list_iterator, which can be gone through once only")
    (tmp_path / "empty.txt").write_text("")
    assert line_of(of_text, tmp_path / "empty.txt", 4).endswith("has 0 tokens; expected at least the 4 of one sample")
    assert line_of(of_text, tmp_path / "none.txt", 4).endswith("No such file or directory")


# -- splits ------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(micro_batch=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), clipped=st.booleans())
def test_a_split_changes_no_loss(micro_batch, clipped):
    """Micro-batches and their accumulation are the whole batch: up to the rounding of sums in another order."""
    recipe = bsmodel.Training(optimizer="sgd-momentum", gradient_clipping=0.3 if clipped else None)
    whole, split = (trial(line(40), recipe, batches=(24, 24), steps=4, micro_batch=micro, base_lr=0.1).runs[0] for micro in (24, micro_batch))

    assert [update.loss for update in split.updates] == pytest.approx([update.loss for update in whole.updates], rel=1e-12)
    assert split.rung.accumulation == 24 // micro_batch


def test_all_batches_begin_with_the_same_weights_and_samples():
    found = trial(line(), batches=(8, 32), steps=1, seeds=2)
    losses = {(run.rung.batch, run.seed): run.updates[0].loss for run in found.runs}
    data = [line_data(256)[place] for place in range(256)]
    order = of_samples(data, 1).batch(range(32))

    assert losses[32, 1] == pytest.approx(float(order[1].square().mean() / 2), rel=1e-12)  # of weights zero
    assert losses[8, 1] == pytest.approx(float(order[1][:8].square().mean() / 2), rel=1e-12)
    assert losses[8, 0] != losses[8, 1]


class Noisy(Dataset):
    """Samples augmented by the generators of Python and of torch."""

    def __len__(self):
        return 32

    def __getitem__(self, place):
        return torch.randn(DIMENSION, dtype=torch.float64), torch.tensor(random.random(), dtype=torch.float64)


def test_what_is_drawn_while_samples_are_loaded_depends_on_the_seed_too():
    first, second = (trial(line(), data=Noisy(), batches=(8, 8), steps=3, seeds=2).runs for _ in range(2))

    assert [[update.loss for update in run.updates] for run in first] == [[update.loss for update in run.updates] for run in second]
    assert first[0].updates[0].loss != first[1].updates[0].loss


# -- squares of gradients ----------------------------------------------------------------------------------------------------------------


def by_hand(inputs, targets, micro_batch):
    """Squared norms at weights zero: the mean of those of micro-batches, and that of their mean."""
    gradients = torch.stack([-(x * y[:, None]).mean(dim=0) for x, y in zip(inputs.split(micro_batch), targets.split(micro_batch))])
    return float(gradients.square().sum(dim=1).mean()), float(gradients.mean(dim=0).square().sum())


@pytest.mark.parametrize("clipping", [None, 0.01])
@pytest.mark.parametrize("micro_batch", [4, 8, 16])
def test_squares_are_those_of_gradients_before_they_are_clipped(micro_batch, clipping):
    recipe = bsmodel.Training(optimizer="sgd", gradient_clipping=clipping)
    update = trial(line(), recipe, batches=(32, 32), steps=1, micro_batch=micro_batch).runs[0].updates[0]
    inputs, targets = of_samples(line_data(256), 0).batch(range(32))

    assert (update.micro_square, update.accumulated_square) == pytest.approx(by_hand(inputs, targets, micro_batch), rel=1e-9)


class Tied(nn.Module):
    """One parameter used twice, whose gradient is the sum of both, and another beside it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(DIMENSION, DIMENSION)
        self.second = nn.Linear(DIMENSION, DIMENSION, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs.float()))).sum(dim=1).double()


def test_shared_parameters_count_once():
    update = trial(line(model=Tied), batches=(16, 16), steps=1, micro_batch=4).runs[0].updates[0]
    torch.manual_seed(0)
    model, (inputs, targets) = Tied(), of_samples(line_data(256), 0).batch(range(16))
    pairs = zip(inputs.split(4), targets.split(4), strict=True)
    parameters = (model.first.weight, model.first.bias)
    gradients = torch.stack([torch.cat([each.flatten() for each in torch.autograd.grad(half_square(model, pair), parameters)]) for pair in pairs])

    assert update.micro_square == pytest.approx(float(gradients.square().sum(dim=1).mean()), rel=1e-5)
    assert update.accumulated_square == pytest.approx(float(gradients.mean(dim=0).square().sum()), rel=1e-5)


def test_a_step_of_one_micro_batch_has_none():
    run = trial(line(), batches=(16, 16), steps=2).runs[0]

    assert all(update.micro_square is None and update.accumulated_square is None for update in run.updates)
    assert line_of(run.noise_scale) == "a step of 16 is one micro-batch: the noise scale compares several with their mean; give --micro-batch 8 or less"


@pytest.fixture(autouse=True)
def _unswept():
    """What there is now is not gone through whenever a run lets go of its memory: that takes longer than the runs."""
    gc.freeze()
    yield
    gc.unfreeze()


def test_the_noise_scale_that_is_known_lies_inside_the_interval_in_nine_of_ten_runs():
    """Weights stay where they are, by a rate that is next to nothing; every seed draws other samples. tr(Sigma) = (d + 1) |w|^2 + d s^2, over |w|^2 = 1."""
    asked = {"batches": (16, 16), "micro_batch": 8, "steps": 40, "seeds": 100, "base_lr": 1e-30}
    found = [run.noise_scale() for run in trial(line(100 * 40 * 16), **asked).runs]
    known = DIMENSION + 1 + DIMENSION * SPREAD**2

    assert sum(each.low <= known <= each.high for each in found) >= 90
    assert sorted(each.samples for each in found)[50] == pytest.approx(known, rel=0.15)


# -- models ------------------------------------------------------------------------------------------------------------------------------


def normalized():
    """Dropout and batch norm: what differs between training and evaluation."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))


@pytest.mark.parametrize(
    "recipe", [{}, {"precision": "bf16"}, {"precision": "bf16-mixed"}, {"channels_last": True}, {"zero_grad": "zeros", "keep_outputs": True}]
)
def test_recipes_are_followed_and_validation_changes_nothing_that_is_trained(recipe):
    """Half precision takes batches in it, and evaluation draws no number and moves no average."""
    pytest.importorskip("sklearn")
    recipe = bsmodel.Training(optimizer="sgd", **recipe)
    workload = replace(DIGITS, model=normalized) if not recipe.channels_last else DIGITS
    asked = {"batches": (32, 32), "steps": 6, "micro_batch": 16, "split": 0.1}
    often, seldom = (trial(workload, recipe, **asked, evaluate_every=every).runs[0].updates for every in (2, 6))

    assert [update.loss for update in often] == [update.loss for update in seldom]
    assert [update.step for update in often if update.validation_loss is not None] == [2, 4, 6]
    assert often[-1].validation_loss == seldom[-1].validation_loss
    assert 1.5 < often[-1].validation_loss < 3


def test_validation_is_the_mean_over_all_its_samples():
    """Also where they do not go evenly into batches, and in the workload's own pair of data."""
    pair = [line_data(256)[place] for place in range(37)]
    found = trial(line(data=lambda: (line_data(256), pair)), batches=(16, 16), steps=1, base_lr=1e-30)

    assert found.runs[0].updates[0].validation_loss == pytest.approx(sum(float(y**2) for _, y in pair) / 37 / 2, rel=1e-9)
    empty = TensorDataset(torch.zeros(0, DIMENSION), torch.zeros(0))
    assert line_of(trial, line(), validation=empty, batches=(8, 8), steps=1) == "there are no samples to validate with; give some, or none"


@pytest.mark.parametrize(
    ("changes", "asked", "said"),
    [
        ({"data": None}, {"split": 0.1}, "a split of 0.1 is given, and there are none to train on: line has only its example batches"),
        ({"data": None}, {"validation": [1]}, "samples to validate with are given, and there are none to train on"),
        ({}, {"split": 0.1, "validation": line_data(8)}, "a split of 0.1 and samples to validate with are both given; give one"),
        ({"data": lambda: (line_data(64), line_data(8))}, {"split": 0.1}, "a split of 0.1 and samples to validate with are both given; give one"),
        ({}, {"split": 0.001}, "a split of 0.001 of 256 samples keeps none to validate with; give at least 0.0039"),
    ],
)
def test_validation_is_never_left_out_in_silence(changes, asked, said):
    assert line_of(trial, line(**changes), batches=(8, 8), steps=1, **asked).startswith(said)


def test_a_loss_that_nothing_can_be_learnt_from_is_refused():
    assert "expected a scalar tensor" in line_of(trial, line(loss=lambda model, batch: model(batch[0])), batches=(8, 8), steps=1)
    assert "does not depend on any trained parameter" in line_of(trial, line(loss=lambda model, batch: batch[1].mean()), batches=(8, 8), steps=1)
