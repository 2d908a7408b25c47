# SPDX-License-Identifier: Apache-2.0
"""Limit cases and numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import bsmodel
from bsmodel import planning
from bsmodel.units import GiB, MiB, format_bytes, parse_bytes
from tests.models import SGD, of_size, workload


def linear(width=1024):
    return nn.Linear(width, width, bias=False)


def features(size):
    return torch.zeros(size, 1024)


def square(model, batch):
    return model(batch).square().mean()


def test_one_linear_layer_by_hand(a100):
    """Weights 4 MiB; batch b x 1024 floats in; loss = mean(y * y)."""
    tape = bsmodel.trace(workload(linear, features, square), bsmodel.Training(optimizer="sgd"), a100)
    by_category = {name: sum(s.bytes for s in bsmodel.breakdown(tape, 100_000) if s.category == name) for name in ("parameter", "gradient", "batch")}

    assert by_category["parameter"] == 1024 * 1024 * 4
    assert by_category["batch"] == 100_000 * 1024 * 4
    assert tape.parameter_count == 1024 * 1024


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"), [("sgd", 0), ("sgd-momentum", 4), ("adamw", 8), ("adam", 8), ("rmsprop", 4), ("adagrad", 4), ("lion", 4)]
)
def test_optimizer_state_is_as_large_as_its_algorithm_says(optimizer, bytes_per_parameter, a100):
    tape = bsmodel.trace(workload(linear, features, square), bsmodel.Training(optimizer=optimizer), a100)
    state = sum(s.bytes for s in bsmodel.breakdown(tape, 100_000) if s.category == "optimizer state")

    assert state == pytest.approx(bytes_per_parameter * 1024 * 1024, abs=1024)


def test_eight_bit_state_takes_two_bytes_and_a_scale_per_block(a100):
    tape = bsmodel.trace(workload(linear, features, square), bsmodel.Training(optimizer="adamw-8bit"), a100)
    state = sum(s.bytes for s in bsmodel.breakdown(tape, 100_000) if s.category == "optimizer state")

    assert state == 2 * 1024 * 1024 + 2 * 4 * 1024 * 1024 // 256


def test_any_optimizer_class_runs_for_real(a100):
    by_class = bsmodel.trace(workload(), bsmodel.Training(optimizer=torch.optim.AdamW), a100)
    by_name = bsmodel.trace(workload(), bsmodel.Training(optimizer="adamw"), a100)

    assert str(bsmodel.footprint(by_class)) == str(bsmodel.footprint(by_name))
    assert by_class.optimizer == "AdamW"


def test_gradients_survive_a_micro_step_only_with_accumulation(a100):
    tape = bsmodel.trace(workload(linear, features, square), bsmodel.Training(optimizer="sgd"), a100)
    weight = 1024 * 1024 * 4

    assert bsmodel.footprint(tape, accumulation=2)(100_000) - bsmodel.footprint(tape, accumulation=1)(100_000) == weight


def test_zeros_instead_of_none_keep_the_gradients(a100):
    freed, kept = (bsmodel.trace(workload(linear, features, square), bsmodel.Training(optimizer="sgd", zero_grad=z), a100) for z in ("none", "zeros"))

    assert bsmodel.footprint(kept)(100_000) - bsmodel.footprint(freed)(100_000) == 1024 * 1024 * 4


def test_frozen_parameters_have_no_gradient_and_no_state(a100):
    def two():
        return nn.ModuleDict({"body": linear(), "head": linear()})

    def loss(model, batch):
        return model["head"](model["body"](batch)).square().mean()

    whole = bsmodel.trace(workload(two, features, loss), bsmodel.Training(optimizer="adamw"), a100)
    half = bsmodel.trace(workload(two, features, loss), bsmodel.Training(optimizer="adamw", frozen=("body",)), a100)

    assert half.trained_parameter_count == whole.trained_parameter_count // 2
    assert bsmodel.footprint(half)(1000) < bsmodel.footprint(whole)(1000)


def test_an_average_of_the_weights_costs_their_size(a100):
    plain, averaged = (bsmodel.trace(workload(linear, features, square), bsmodel.Training(optimizer="sgd", ema=e), a100) for e in (False, True))

    assert bsmodel.footprint(averaged)(100_000) - bsmodel.footprint(plain)(100_000) == 1024 * 1024 * 4


def test_checkpointing_trades_saved_activations_for_recomputation(a100):
    def deep():
        return nn.Sequential(
            nn.Flatten(), nn.Linear(768, 512), nn.Sequential(*(nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(8)))
        )

    def loss(model, batch):
        return model(batch[0]).square().mean()

    plain, recomputed = (bsmodel.footprint(bsmodel.trace(workload(deep, loss=loss), bsmodel.Training(checkpointing=c), a100)) for c in (False, True))

    assert recomputed(10_000) < 0.5 * plain(10_000)


def test_channels_last_allocates_the_same_sizes(a100):
    plain, last = (bsmodel.trace(workload(), SGD.model_copy(update={"channels_last": c}), a100) for c in (False, True))

    parameters = [sum(t.fixed_bytes[i] for i, c in enumerate(t.categories) if c == "parameter") for t in (plain, last)]
    assert parameters[0] == parameters[1]


def test_hopper_keeps_larger_matmul_workspaces(tape, a100):
    hopper = bsmodel.trace(workload(), SGD, bsmodel.Gpu.named("h100-80gb"))

    assert bsmodel.footprint(hopper)(10_000) - bsmodel.footprint(tape)(10_000) == 2 * (32 * MiB - 8_519_680)


def test_a_card_holds_nothing_of_a_model_larger_than_it(tape, a100):
    fit = bsmodel.fit(tape, of_size(a100, 501))

    assert fit.batch == 0 and fit.headroom_bytes < 0


def test_the_ladder_climbs_in_powers_of_two_to_the_largest(tape, a100):
    fit = bsmodel.fit(tape, of_size(a100, 600))
    rungs = bsmodel.ladder(fit)

    assert [rung.batch for rung in rungs[:3]] == [1, 2, 4] and rungs[-1].batch == fit.batch
    assert all(rung.peak.fits for rung in rungs)
    assert planning.power_of_two_at_most(fit.batch) in {rung.batch for rung in rungs}


def test_sizes_read_and_print():
    assert parse_bytes("40GiB") == 40 * GiB and parse_bytes("512 MiB") == 512 * MiB and parse_bytes("24GB") == 24 * 10**9
    assert [format_bytes(v) for v in (0, 1023, 1536, 24 * GiB)] == ["0 B", "1023 B", "1.50 KiB", "24.00 GiB"]
    for wrong in ("", "lots", "-1GiB", "0", "3 TiB"):
        with pytest.raises(ValueError, match="cannot read"):
            parse_bytes(wrong)


def test_tables_are_of_batches_at_which_the_step_is_known(tape):
    short = replace(tape, same_path_up_to=8)
    for table in (bsmodel.by_module, bsmodel.by_operator):
        assert table(short, 8) == table(tape, 8)
        with pytest.raises(bsmodel.InvalidInputError, match=r"^batch is 9; the step takes another path from batch 9 on"):
            table(short, 9)
