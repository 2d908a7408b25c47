# SPDX-License-Identifier: Apache-2.0
"""One rank of FullyShardedDataParallel: peaks as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100, and what a device that lags adds."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

import bsmodel
from bsmodel import Parallel, Training, Workload
from bsmodel.memory.allocator import CachingAllocator
from bsmodel.memory.lagging import Lagging
from bsmodel.tape import Wait
from bsmodel.units import MiB
from tests.test_parallel import BF16, workload
from tests.test_refusals import line_of

pytest.importorskip("transformers")

LAYER = {"wrap": ("BertLayer",)}
# The model, how many share it and how, its recipe, the batch of a device, and what that takes: allocated, and reserved on a device that is always done and
# on one that finishes only what the program waits for, which there read the loss after every step.
MEASURED = [
    ("gpt2", 2, {}, {"precision": "fp32"}, 8, 2131883008, 2566914048, 2684354560),
    ("gpt2", 4, BF16, {"precision": "fp32", "accumulation": 2, "optimizer": "sgd-momentum"}, 8, 1336744448, 1769996288, 1849688064),
    ("gpt2", 8, {"reshard_after_forward": False}, {"precision": "bf16", "gradient_clipping": 1.0}, 8, 1272771584, 1453326336, 1453326336),
    ("llama", 8, {}, {"precision": "fp16-mixed"}, 16, 3725359616, 4439670784, 4632608768),
    ("llama", 16, BF16, {"precision": "fp32", "checkpointing": True, "gradient_clipping": 1.0}, 16, 1932755456, 2927624192, 3032481792),
    ("bert", 3, {**BF16, **LAYER}, {"precision": "fp32", "accumulation": 2}, 8, 498695168, 748683264, 811597824),
    ("bert", 64, {**BF16, **LAYER, "reshard_after_forward": False}, {"precision": "fp32"}, 16, 587338240, 801112064, 807403520),
]


@pytest.mark.parametrize(
    ("name", "devices", "how", "recipe", "batch", "allocated", "done", "lagging"), MEASURED, ids=[f"{row[0]} on {row[1]}" for row in MEASURED]
)
def test_a_rank_takes_what_the_allocator_counted(name, devices, how, recipe, batch, allocated, done, lagging, a100):
    tape = bsmodel.trace(workload(name), Training(**recipe, parallel=Parallel(kind="fsdp1", devices=devices, **how)), a100)
    peak = bsmodel.predict(tape, a100, batch)

    assert peak.allocated_bytes == pytest.approx(allocated, rel=1e-4)
    assert peak.reserved_bytes == peak.reserved_lower_bytes == pytest.approx(done, rel=2e-3)
    assert done - 2 * MiB <= lagging <= peak.reserved_upper_bytes + 2 * MiB


@pytest.fixture(scope="module")
def tape(a100):
    return bsmodel.trace(workload("bert"), Training(parallel=Parallel(kind="fsdp1", devices=2, **LAYER)), a100)


def test_a_device_that_is_done_is_the_lower_end(tape, a100):
    """What streams lend one another widens the interval upwards, and a batch that surely fits leaves room for it."""
    alone, shared = (bsmodel.predict(each, a100, 8) for each in (replace(tape, lent={}, waits={}), tape))
    assert alone.reserved_bytes == alone.reserved_upper_bytes == shared.reserved_bytes < shared.reserved_upper_bytes
    small = a100.model_copy(update={"memory_bytes": 4096 * MiB})
    batches = [bsmodel.fit(each, small).batch for each in (tape, replace(tape, lent={}, waits={}))]
    assert 0 < batches[0] <= batches[1]


def test_a_host_that_waits_for_everything_makes_a_lagging_device_one_that_is_done(tape, a100):
    """And one that never waits is served no worse than by a step whose every lent block is new."""
    streams = {stream for users in tape.lent.values() for stream in users}
    always = {
        name: tuple(type(tape.waits["micro"][0])(position, stream, position) for position in range(len(events)) for stream in streams)
        for name, events in tape.blocks.items()
    }
    never = bsmodel.predict(replace(tape, waits={}), a100, 8).reserved_upper_bytes
    usual = bsmodel.predict(tape, a100, 8)
    assert bsmodel.predict(replace(tape, waits=always), a100, 8).reserved_upper_bytes == usual.reserved_bytes
    assert usual.reserved_upper_bytes < never


def test_a_lent_block_is_taken_again_when_it_is_reclaimed_or_memory_runs_short():
    allocator = CachingAllocator(48 * MiB)
    allocator.run([0], [16 * MiB])
    lending = allocator.lend(0)
    allocator.run([1], [0, 16 * MiB])
    assert allocator.allocated_bytes == 16 * MiB and allocator.reserved_bytes == 32 * MiB

    allocator.reclaim(lending)
    allocator.reclaim(lending)
    allocator.run([2], [0, 0, 16 * MiB])
    assert allocator.allocated_bytes == 32 * MiB == allocator.reserved_bytes

    allocator.lend(1)
    allocator.run([3], [0, 0, 0, 32 * MiB])
    assert allocator.retries == 1 and allocator.reserved_bytes == 48 * MiB


@pytest.mark.parametrize(("until", "lent"), [(0, 1), (3, 1), (6, 0)])
def test_who_waits_for_a_lending_that_memory_ran_short_of_takes_no_later_one(until, lent, tape):
    """Tensor 0 is lent, reclaimed for tensor 2, and tensor 3 lent in its place: only who waits for that one takes it again."""
    events, waits = (0, 1, ~0, 2, 3, ~3), (Wait(6, 1, until),)
    lagging = Lagging(CachingAllocator(20 * MiB), replace(tape, blocks={"first": events}, lent={0: (1,), 3: (1,)}, streams={}, waits={"first": waits}))
    lagging.run("first", [9 * MiB] * 4, {2})

    assert lagging.allocator.forgone == {2} and len(lagging.allocator.layout()[-1]) == lent


def test_parameters_are_those_of_the_whole_model(tape, a100):
    """Modules have the names that the user gave them; every rank gathers all of a block, padded to a multiple of 16 bytes and of the devices."""
    one = bsmodel.trace(workload("bert"), Training(), a100)
    assert (tape.parameter_count, tape.trained_parameter_count, tape.parameters) == (one.parameter_count, one.trained_parameter_count, one.parameters)
    assert not any("_fsdp_wrapped_module" in module for module in tape.modules)
    gathered = sum(each.size(1) for each in tape.collectives if each.phase == "forward" and each.kind == "all-gather")
    assert gathered == pytest.approx(4 * one.parameter_count, rel=0.01)


def test_autograd_runs_a_node_in_the_stream_of_its_forward(a100):
    """The gradient of a view that another stream made is that stream's, as PyTorch's engine has it; what is given to it is lent."""

    class Views(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.stream = torch.nn.Parameter(torch.empty(2 * 64 * 64)), None

        def forward(self, inputs):
            self.stream = self.stream or torch.cuda.Stream()
            with torch.cuda.stream(self.stream):
                first, second = (part.view(64, 64) for part in self.weight.split(64 * 64))
            torch.cuda.current_stream().wait_stream(self.stream)
            return (inputs @ first @ second).sum()

    def step(model, optimizer, batch):
        model(batch.cuda()).backward()
        optimizer.step()
        optimizer.zero_grad()

    recorded = bsmodel.trace(Workload(Views, lambda size: torch.zeros(size, 64), step=step), Training(optimizer="sgd"), a100)
    gradients = {number: recorded.operators[number] for number in recorded.blocks["micro"] if number >= 0 and recorded.phases[number] == "backward"}
    assert [recorded.streams.get(number, 0) for number, operator in gradients.items() if "cat" in operator] == [1]
    assert sorted(number for number in recorded.lent if number in gradients) == [
        n for n, operator in gradients.items() if "mm" in operator and n in recorded.lent
    ]


def test_what_is_lent_is_saved(tape, tmp_path, a100):
    tape.save(tmp_path / "tape.gz")
    loaded = bsmodel.Tape.load(tmp_path / "tape.gz")
    assert (loaded.lent, loaded.waits) == (tape.lent, tape.waits) and bsmodel.predict(loaded, a100, 8) == bsmodel.predict(tape, a100, 8)

    document = json.loads(gzip.decompress((tmp_path / "tape.gz").read_bytes()))
    for field, value, reason in (
        ("waits", {"micro": [[1 << 30, 1, 0]]}, "waits.micro.0 is at 1073741824, for the first 0"),
        ("waits", {"micro": [[1, 77, 0]]}, "waits.micro.0 is for stream 77; expected one that something is lent to"),
        ("waits", {"nothing": []}, "waits.nothing is no block"),
        ("lent", [[1 << 30, [1]]], "lent is of allocations 1073741824 and below"),
    ):
        broken = {**document, "tapes": [{**document["tapes"][0], field: value}]}
        (tmp_path / "broken.gz").write_bytes(gzip.compress(json.dumps(broken).encode()))
        assert reason in line_of(bsmodel.Tape.load, tmp_path / "broken.gz")


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"weights": "nf4", "lora_rank": 8}, "weights 'nf4' are not sharded; use parallel ddp or zero1"),
        ({"channels_last": True}, "channels_last parameters are not contiguous, which fsdp1 needs"),
    ],
)
def test_what_has_no_shards_is_refused(recipe, reason):
    assert line_of(Training, **recipe, parallel=Parallel(kind="fsdp1", devices=4)).startswith(reason)
    assert line_of(Parallel, kind="fsdp1", devices=4, bucket_mb=5).startswith("parallel bucket_mb is 5.0, which kind 'fsdp1' does not have")
