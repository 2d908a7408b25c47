# SPDX-License-Identifier: Apache-2.0
"""What trainers do that plain PyTorch leaves to its user; peaks as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100, as in test_parallel.

What groups the modules there is accelerate's own code (1.15), and for torchtitan its order of calls.
"""

import json
import re

import pytest

import bsmodel
from bsmodel import Parallel, Training
from bsmodel.command import main
from bsmodel.parallel import KINDS, PRESETS
from bsmodel.tape import APART
from tests.test_parallel import BERT, BF16, MIXED, workload
from tests.test_refusals import line_of

pytest.importorskip("transformers")

APART_OF_16 = Parallel(kind="fsdp2", devices=16, sync_each_micro_step=False, **BF16)
CLIPPED = {"optimizer": "sgd-momentum", "gradient_clipping": 1.0}
# The model, how it is split, its recipe, the batch of a device, and what that takes, allocated and reserved, by micro-steps of an optimizer step.
MEASURED = [
    ("llama", Parallel(kind="fsdp2", devices=8, preset="accelerate"), MIXED, 8, {1: (1658754560, 2019557376), 3: (1935474176, 2287992832)}),
    ("gpt2", Parallel(kind="ddp", devices=8, preset="accelerate"), MIXED, 8, {1: (2436739584, 2665480192), 2: (2671211008, 2747269120)}),
    ("llama", Parallel(kind="fsdp2", devices=8, preset="torchtitan"), {}, 8, {1: (1660851712, 2009071616), 2: (1729408512, 2025848832)}),
]


@pytest.fixture(scope="module")
def apart(a100):
    return bsmodel.trace(workload("bert"), Training(**CLIPPED, accumulation=4, parallel=APART_OF_16), a100)


@pytest.fixture(scope="module")
def together(a100):
    return bsmodel.trace(workload("bert"), Training(**CLIPPED, accumulation=4, parallel=Parallel(kind="fsdp2", devices=16, **BF16)), a100)


@pytest.mark.parametrize(("name", "parallel", "recipe", "batch", "measured"), MEASURED, ids=[f"{row[0]} {row[1]}" for row in MEASURED])
def test_a_rank_of_a_trainer_takes_what_the_allocator_counted(name, parallel, recipe, batch, measured, a100):
    """One recording answers for any number of micro-steps, and says whose way it is."""
    tape = bsmodel.trace(workload(name), Training(**recipe, parallel=parallel), a100)
    for micro_steps, (allocated, reserved) in measured.items():
        peak = bsmodel.predict(tape, a100, batch, micro_steps)
        assert peak.allocated_bytes == pytest.approx(allocated, rel=5e-4) and peak.reserved_bytes == pytest.approx(reserved, rel=0.02)
    assert any(f"as {parallel.preset} has it" in remark for remark in tape.remarks)


def test_gradients_that_wait_are_whole(apart, together, a100):
    """In what they are summed in, from the first micro-step to the last: a fourth takes no more than a third or a second."""
    for micro_steps in (2, 3, 4):
        peak = bsmodel.predict(apart, a100, 16, micro_steps)
        assert peak.allocated_bytes == pytest.approx(682551808, rel=5e-4) and peak.reserved_bytes == pytest.approx(843055104, rel=0.02)
    shares = {name: bsmodel.breakdown(tape, 16, 2) for name, tape in (("apart", apart), ("together", together))}
    gradients = {name: sum(share.bytes for share in found if share.category == "gradient") for name, found in shares.items()}
    assert gradients["apart"] > 2 * apart.parameter_count > gradients["together"]  # half of 4 bytes each is there when the most is


def test_one_micro_step_is_the_last_one(apart, together, a100):
    """There is nothing to wait for: both take the same."""
    one, other = (bsmodel.predict(tape, a100, 16, 1) for tape in (apart, together))
    assert one == other and [*apart.program(3, 1)] == [*together.program(3, 1)]
    assert bsmodel.footprint(apart, 1) == bsmodel.footprint(together, 1)


def test_the_program_has_as_many_micro_steps_as_tell(apart, together):
    """Whatever number it was recorded with."""
    named = {number: [name for name, _ in apart.program(2, number)] for number in (1, 2, 3, 9)}
    assert named[1] == [name for name, _ in together.program(2, 1)]
    assert named[2] == ["init", "open", "close", "open_step", "begin", "last", "end"]
    assert named[3] == named[9] == ["init", "open", "close", "open_step", "begin", "more", "last", "end"]
    assert {*APART} <= apart.blocks.keys() and not {*APART} & together.blocks.keys()


def test_what_is_said_is_that_of_a_micro_step_that_sums(apart, together):
    assert apart.collectives == together.collectives


def test_nothing_piles_up(apart):
    """After every optimizer step as much is alive as after the one before, and what is released was there."""
    for micro_steps in (1, 2, 3):
        alive, after = 0, []
        sizes = apart.sizes(4).tolist()
        for name, events in apart.program(5, micro_steps):
            alive += sum(sizes[event] if event >= 0 else -sizes[~event] for event in events)
            after += [alive] if name in ("step", "end") else []
        assert len({*after}) == 1


def test_what_is_saved_is_what_was_recorded(apart, a100, tmp_path):
    apart.save(tmp_path / "tape.gz")
    loaded = bsmodel.Tape.load(tmp_path / "tape.gz")
    assert loaded.blocks == apart.blocks and loaded.recipe == apart.recipe
    assert bsmodel.predict(loaded, a100, 8, 3) == bsmodel.predict(apart, a100, 8, 3)


def test_a_preset_gives_way_to_what_is_said(a100):
    """Its fields are defaults; what the recipe says goes before them, and a saved recipe says them all."""
    trainer = Parallel(kind="fsdp2", devices=4, preset="accelerate")
    assert not trainer.sync_each_micro_step and Parallel(kind="fsdp2", devices=4, preset="accelerate", sync_each_micro_step=True).sync_each_micro_step
    titan = Parallel(kind="fsdp2", devices=4, preset="torchtitan", reduce_dtype="bf16")
    assert (titan.param_dtype, titan.reduce_dtype) == ("bf16", "bf16") and titan.sync_each_micro_step
    for each in (trainer, titan):
        assert Parallel(**each.model_dump()) == each
    assert Training(precision="bf16-mixed", parallel=trainer).numerics.autocast is None
    assert Training(precision="bf16-mixed", parallel=Parallel(kind="fsdp2", devices=4)).numerics.autocast == "bfloat16"


def test_every_preset_has_a_source():
    assert next(iter(PRESETS)) == "torch" and all(re.search(r"\.py|/", rule.source) and rule.what for rule in PRESETS.values())
    assert all(kind.startswith(PRESETS["torch"].kinds) for kind in KINDS)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "fsdp2", "preset": "acelerate"}, "unknown preset of parallel 'acelerate'; nearest: accelerate"),
        ({"kind": "ddp", "preset": "torchtitan"}, "parallel preset 'torchtitan' does not have kind 'ddp'; it has fsdp2, hsdp"),
        ({"kind": "zero1", "preset": "accelerate"}, "parallel preset 'accelerate' does not have kind 'zero1'; it has ddp, fsdp2, hsdp"),
        ({"kind": "fsdp2", "preset": "hf-auto"}, "parallel preset 'hf-auto' does not have kind 'fsdp2'"),
        ({"kind": "fsdp2", "preset": "deepspeed"}, "parallel preset 'deepspeed' does not have kind 'fsdp2'"),
    ],
)
def test_what_is_no_preset_of_a_kind_is_one_line(fields, reason):
    assert line_of(Parallel, devices=4, **fields).startswith(reason)


def test_an_embedding_inside_of_a_block_is_refused(a100):
    """accelerate shards it a second time, which fails."""
    trained = Training(parallel=Parallel(kind="fsdp2", devices=4, preset="accelerate"))
    assert line_of(bsmodel.trace, workload("bert"), trained, a100).startswith("the embedding stands in a block that is sharded (BertEmbeddings, BertLayer)")


def test_a_trainer_is_asked_about_on_the_command_line(config, capsys):
    folder = config({**BERT, "architectures": ["BertForSequenceClassification"]})
    asked = [folder, "--gpu", "rtx-3070-8gb", "--batch", "8", "--devices", "4", "--json", "--no-cache"]
    assert main(["predict", *asked, "--preset", "accelerate", "--sync"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["workload"]["recipe"]["parallel"]["preset"] == "accelerate" and answer["workload"]["recipe"]["parallel"]["sync_each_micro_step"]
    assert "as accelerate has it" in json.dumps(answer, ensure_ascii=False)
    assert main(["predict", *asked, "--no-sync", "--nodes", "2"]) == 0
    parallel = json.loads(capsys.readouterr().out)["workload"]["recipe"]["parallel"]
    assert (parallel["kind"], parallel["sync_each_micro_step"], parallel["nodes"]) == ("ddp", False, 2)
    assert main(["predict", *asked, "--preset", "torchtitan"]) == 2
    assert "parallel preset 'torchtitan' does not have kind 'ddp'" in capsys.readouterr().err
