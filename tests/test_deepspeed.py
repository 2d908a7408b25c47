# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's three stages: what a rank takes, holds and says.

Peaks are as recorded from the PyTorch CUDA allocator (2.11) under DeepSpeed 0.19.8 on a simulated A100: three steps, texts of 256 tokens, rank 0,
with the optimizer of torch.
"""

import types

import pytest
import torch

import bsmodel
from bsmodel import Parallel, Training, Workload
from bsmodel.recording.devices import deepspeed
from tests.test_parallel import workload
from tests.test_refusals import line_of

transformers = pytest.importorskip("transformers")

BF16 = {"param_dtype": "bf16"}
# The model, its stage and devices, what is computed in, the rest of its recipe, the batch of a device, and what that takes, allocated and reserved.
MEASURED = [
    ("gpt2", 1, 2, {}, {}, 8, 3890773504, 4309647360),
    ("bert", 1, 16, BF16, {"accumulation": 2, "gradient_clipping": 1.0}, 8, 1431416320, 1524629504),
    ("llama", 2, 4, BF16, {"checkpointing": True}, 16, 2355649024, 3751804928),
    ("gpt2", 2, 64, {}, {"optimizer": "adamw-fused"}, 8, 3545184768, 4196401152),
    ("llama", 3, 8, BF16, {}, 8, 2941190144, 3630170112),
    ("bert", 3, 2, {}, {"accumulation": 2, "gradient_clipping": 1.0}, 8, 3080179712, 3527409664),
    ("gpt2", 3, 4, BF16, {"checkpointing": True, "optimizer": "sgd-momentum"}, 16, 2354568704, 2808086528),
]
AUTO = [(2, 1400929280, 1562378240), (3, 1462245376, 1629487104)]  # of gpt2 on four devices in bf16, batch 8, with hidden_size 768 for "auto"


def parallel(stage, devices, **fields):
    return Parallel(kind=f"deepspeed-zero{stage}", devices=devices, **fields)


@pytest.mark.parametrize(("name", "stage", "devices", "fields", "recipe", "batch", "allocated", "reserved"), MEASURED)
def test_a_rank_takes_what_the_allocator_counted(name, stage, devices, fields, recipe, batch, allocated, reserved, a100):
    tape = bsmodel.trace(workload(name), Training(**recipe, parallel=parallel(stage, devices, **fields)), a100)
    peak = bsmodel.predict(tape, a100, batch)
    assert peak.allocated_bytes == pytest.approx(allocated, rel=1e-3) and peak.reserved_bytes == pytest.approx(reserved, rel=0.01)
    assert any("by the rules of DeepSpeed 0.19's engine" in remark for remark in tape.remarks)


@pytest.mark.parametrize(("stage", "allocated", "reserved"), AUTO)
def test_so_it_is_with_the_settings_of_transformers_trainer(stage, allocated, reserved, a100, monkeypatch):
    """Buckets are smaller than most parameters, which then go by themselves."""
    monkeypatch.setattr(deepspeed, "settings_of", lambda model, parallel: deepspeed.of_trainer(768))
    peak = bsmodel.predict(bsmodel.trace(workload("gpt2"), Training(parallel=parallel(stage, 4, **BF16)), a100), a100, 8)
    assert peak.allocated_bytes == pytest.approx(allocated, rel=1e-3) and peak.reserved_bytes == pytest.approx(reserved, rel=0.01)


def test_settings_are_defaults_or_follow_the_width_of_the_model():
    auto, model = types.SimpleNamespace(preset="hf-auto"), torch.nn.Linear(2, 2)
    assert deepspeed.settings_of(model, parallel(3, 4)) is deepspeed.DEFAULTS
    assert line_of(deepspeed.settings_of, model, auto).startswith("preset hf-auto takes sizes of buckets from hidden_size")
    model.config = types.SimpleNamespace(hidden_size=1000)
    found = deepspeed.settings_of(model, auto)
    assert (found.reduce_bucket_size, found.prefetch_bucket_size, found.param_persistence_threshold) == (1_000_000, 900_000, 10_000)
    model.config = types.SimpleNamespace(text_config=types.SimpleNamespace(hidden_size=10))
    assert deepspeed.settings_of(model, auto).reduce_bucket_size == 100


def small(name="small"):
    """Three layers, of which one is twice in the network."""

    def model():
        layers = [torch.nn.Linear(1024, 1024) for _ in range(2)]
        return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[0], torch.nn.Linear(1024, 1000))

    def loss(model, batch):
        return model(batch.to(model[0].weight.dtype)).square().mean()  # DeepSpeed leaves what a model is given as it is

    return Workload(model, lambda size: torch.zeros(size, 1024), loss, name=name)


def said(tape):
    totals = {}
    for each in tape.collectives:
        totals[each.phase, each.kind] = totals.get((each.phase, each.kind), 0) + each.size(1)
    return totals


def held(tape):
    """Bytes by category when a first step is over."""
    found = {}
    for event in (event for name in ("init", "first", "first_step") for event in tape.blocks[name]):
        number, sign = (event, 1) if event >= 0 else (~event, -1)
        found[tape.categories[number]] = found.get(tape.categories[number], 0) + sign * int(tape.fixed_bytes[number])
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("devices", [2, 8])
def test_states_are_held_in_equal_parts(stage, devices, a100):
    """A part of the parameters in float32, twice as much of averages; and of stage 3 a part of the parameters themselves."""
    tape = bsmodel.trace(small(), Training(parallel=parallel(stage, devices)), a100)
    found, whole = held(tape), 4 * tape.parameter_count
    assert found["optimizer state"] == pytest.approx(3 * whole / devices, rel=0.01)
    assert found["parameter"] == pytest.approx(whole / devices if stage == 3 else whole, rel=0.01)
    assert found.get("gradient", 0) == (pytest.approx(whole / devices, rel=0.01) if stage == 3 else 0)


def test_what_ranks_say_is_all_gradients_and_all_parameters(a100):
    """Stages 1 and 2 sum every gradient and gather what they have updated; stage 3 gathers before it computes, and scatters."""
    one, two, three = (said(bsmodel.trace(small(), Training(parallel=parallel(stage, 4)), a100)) for stage in (1, 2, 3))
    whole = 4 * sum(parameter.numel() for parameter in small().model().parameters())
    assert one["step", "all-reduce"] == pytest.approx(whole, rel=0.01) and two["backward", "all-reduce"] == pytest.approx(whole, rel=0.01)
    assert one["step", "all-gather"] == two["step", "all-gather"] == pytest.approx(whole, rel=0.01)
    assert three["backward", "reduce-scatter"] == pytest.approx(whole, rel=0.01) and three["forward", "all-gather"] == pytest.approx(whole, rel=0.02)
    assert ("backward", "all-gather") not in three  # of a model of less than 1e9 parameters nothing is released between


def test_accumulation_keeps_no_more_than_a_part_of_the_gradients(a100):
    """Of stage 2, where stage 1 has all of them until the step."""
    peaks = [bsmodel.predict(bsmodel.trace(small(), Training(accumulation=2, parallel=parallel(stage, 8)), a100), a100, 4) for stage in (1, 2)]
    assert peaks[0].allocated_bytes > peaks[1].allocated_bytes


def test_half_precision_halves_what_is_not_a_state(a100):
    """States of the optimizer, and the parameters that it updates, are in float32 as before."""
    whole, half = (bsmodel.trace(small(), Training(parallel=parallel(2, 4, **fields)), a100) for fields in ({}, BF16))
    assert held(half)["optimizer state"] == pytest.approx(held(whole)["optimizer state"], rel=0.01)
    assert 2 * held(half)["parameter"] == pytest.approx(held(whole)["parameter"], rel=0.01)
    assert half.parameter_count == whole.parameter_count


@pytest.mark.parametrize(
    ("stage", "recipe", "reason"),
    [
        (2, {"precision": "bf16-mixed"}, "precision bf16-mixed is PyTorch's autocast, and deepspeed-zero2 has mixed precision of its own: give precision fp32"),
        (1, {"zero_grad": "zeros"}, "deepspeed-zero1 frees the gradients itself, so zero_grad=zeros is not applied"),
        (3, {"ema": True}, "deepspeed-zero3 keeps no whole parameters, of which ema makes averages; use deepspeed-zero2"),
    ],
)
def test_what_its_engine_does_otherwise_is_refused(stage, recipe, reason, a100):
    assert line_of(bsmodel.trace, small(), Training(**recipe, parallel=parallel(stage, 4)), a100).startswith(reason)


def test_what_other_kinds_have_is_refused():
    assert line_of(parallel, 3, 4, reduce_dtype="fp32") == "parallel reduce_dtype is 'fp32', which kind 'deepspeed-zero3' does not have"
