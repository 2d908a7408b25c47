# SPDX-License-Identifier: Apache-2.0
"""The buckets of DistributedDataParallel: against PyTorch's own reducer, run on a simulated A100 of 80 GB, and by hand."""

import dataclasses

import pytest
import torch

import bsmodel
from bsmodel import Training
from bsmodel.memory import buckets_bytes, data_parallel
from bsmodel.planning import Split
from bsmodel.studies import Goal, study
from bsmodel.studies.executors import Here
from bsmodel.units import MiB
from tests.models import SGD, attention, of_size, workload
from tests.test_refusals import line_of

A100_80 = bsmodel.Gpu.named("a100-80gb")
GPT2_BYTES = 4 * 124_439_808  # of its gradients: a tied weight counts once


@pytest.mark.parametrize(
    ("seq_len", "batch", "accumulation", "single", "parallel"),
    [
        (512, 4, 1, (4_724_851_200, 5_215_617_024), (5_224_506_880, 5_725_224_960)),
        (1024, 2, 4, None, (5_722_785_280, 6_138_363_904)),
    ],
)
def test_gpt2_peaks_as_pytorchs_reducer_makes_it(seq_len, batch, accumulation, single, parallel):
    training = Training(precision="bf16-mixed", optimizer="adamw", accumulation=accumulation)
    tape = bsmodel.trace(bsmodel.Workload.named("gpt2", seq_len=seq_len), training, A100_80)
    alone, together = (bsmodel.predict(each, A100_80, batch) for each in (tape, data_parallel(tape)))

    assert buckets_bytes(data_parallel(tape)) == GPT2_BYTES
    assert single is None or (alone.allocated_bytes, alone.reserved_bytes) == single
    assert (together.allocated_bytes, together.reserved_bytes) == parallel


def test_buckets_hold_what_is_trained_and_nothing_else(a100):
    plain, frozen = (bsmodel.trace(attention(), Training(frozen=names), a100) for names in ((), ("embed", "blocks.layers.0")))

    for tape in (plain, frozen):
        assert buckets_bytes(data_parallel(tape)) == 4 * tape.trained_parameter_count
        assert bsmodel.footprint(data_parallel(tape))(10_000) - bsmodel.footprint(tape)(10_000) == 4 * tape.trained_parameter_count
    assert buckets_bytes(plain) == 0


def test_rebuilt_buckets_close_at_one_and_then_at_25_mib(a100):
    tape = data_parallel(bsmodel.trace(bsmodel.Workload.named("gpt2", seq_len=64), Training(precision="bf16-mixed"), a100))
    rebuilt = [int(tape.fixed_bytes[k]) for k in tape.blocks["first_step"] if k >= 0 and tape.categories[k] == "gradient bucket"]

    assert sum(rebuilt) == GPT2_BYTES
    assert MiB <= rebuilt[0] < 25 * MiB and all(size >= 25 * MiB for size in rebuilt[1:-1])
    assert rebuilt[-1] > 4 * 50_257 * 768  # the tied weight is ready last, with its first use


def test_a_second_time_nothing_is_added_and_it_survives_a_round_trip(tape, tmp_path):
    once = data_parallel(tape)
    once.save(tmp_path / "tape.json.gz")

    assert data_parallel(once) is once
    assert str(bsmodel.footprint(bsmodel.Tape.load(tmp_path / "tape.json.gz"))) == str(bsmodel.footprint(once))


def test_gradients_that_a_step_of_its_own_lets_go_of_are_as_large_as_the_parameters(a100):
    def step(model, optimizer, batch):
        loss = model(batch[0].cuda()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    tape = bsmodel.trace(workload(loss=None, step=step), SGD, a100)

    assert tape.own_step and buckets_bytes(data_parallel(tape)) == 4 * tape.trained_parameter_count


def test_the_bytes_of_buckets_have_a_row_of_their_own(tape):
    shares = bsmodel.breakdown(data_parallel(tape), 64)

    assert sum(share.bytes for share in shares if share.category == "gradient bucket") == 4 * tape.trained_parameter_count
    assert sum(share.bytes for share in shares) == bsmodel.footprint(data_parallel(tape))(64)


def test_a_study_and_a_plan_for_several_devices_count_them_and_say_so(a100):
    def images(size):
        return torch.zeros(size, 3, 16, 16), torch.zeros(size, dtype=torch.long)

    wide = workload(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 2048)), images)
    tape = bsmodel.trace(wide, SGD, a100)
    card = of_size(a100, 4000)
    rows = study([tape], gpus=[card], devices=[1, 2, 8], goals=[Goal()], executor=Here()).rows
    plan = bsmodel.plan(bsmodel.fit(tape, card), devices=8)

    assert rows[0].largest_batch > rows[1].largest_batch == rows[2].largest_batch == plan.split.micro_batch
    assert rows[0].closed_form != rows[1].closed_form == bsmodel.footprint(data_parallel(tape))
    assert "NCCL takes" in " ".join(rows[1].advice) and "NCCL" not in " ".join(rows[0].advice)
    assert any("gradient buckets" in advice for advice in rows[1].advice) and not any("gradient buckets" in advice for advice in rows[0].advice)
    assert rows[2].advice == plan.advice


def test_a_fit_with_buckets_is_not_fitted_again(tape, a100):
    fit = bsmodel.fit(data_parallel(tape), a100)

    assert bsmodel.plan(dataclasses.replace(fit, batch=8), devices=4).split == Split(8, 1, 4)


def test_buckets_are_of_several_devices(tape, a100):
    """A fit that has them is planned for as many as sum gradients, and for one it is refused, here as in a study."""
    shared = bsmodel.fit(data_parallel(tape), a100)
    assert bsmodel.plan(shared).split.devices == 2
    assert bsmodel.plan(bsmodel.plan(shared, devices=8).fit).split.devices == 8
    assert line_of(bsmodel.plan, shared, devices=1) == "devices is 1; the recording has gradient buckets for several: expected at least 2"

    one, two = study([shared.tape], gpus=[a100], devices=[1, 2], goals=[Goal()], executor=Here()).rows
    assert (one.status, two.status) == ("refused", "plan") and one.verdict.startswith("devices is 1; ")


def test_a_number_of_devices_that_is_none_of_the_recordings_is_refused_alone(tape, a100):
    recorded = dataclasses.replace(tape, recipe={**tape.recipe, "parallel": {"kind": "ddp", "devices": 8}})
    counts = [4, 1, 8, 2]
    rows = study([recorded], gpus=[a100], devices=counts, goals=[Goal()], executor=Here()).rows

    assert {row.devices: row.status for row in rows} == {4: "refused", 1: "refused", 8: "plan", 2: "refused"}
    assert rows[0].verdict == "devices is 4; the recording is of one of 8"
