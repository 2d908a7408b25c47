# SPDX-License-Identifier: Apache-2.0
"""One rank of several: peaks as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100, three steps, texts of 256 tokens, rank 0."""

import json

import pytest
import torch

import bsmodel
from bsmodel import Parallel, Training, Workload
from bsmodel.command import main
from bsmodel.memory import data_parallel
from bsmodel.tape import Lengths, Piece
from tests.test_refusals import line_of

transformers = pytest.importorskip("transformers")

GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12, "vocab_size": 20011}
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048}
LLAMA = {"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, **SIZES}
BERT = {"model_type": "bert", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "num_labels": 2}
MODELS = {"gpt2": ("GPT2LMHeadModel", GPT2), "llama": ("LlamaForCausalLM", LLAMA), "bert": ("BertForSequenceClassification", BERT)}
BLOCKS = ("bert.embeddings", "bert.encoder.layer")  # which transformers does not split
BF16 = {"param_dtype": "bf16", "reduce_dtype": "fp32"}  # as torchtitan trains
MIXED, CHECKPOINTED = {"precision": "bf16-mixed"}, {"precision": "bf16-mixed", "checkpointing": True}
# The model, how it is split, its recipe, the batch of a device, and what that takes, allocated and reserved.
MEASURED = [
    ("gpt2", Parallel(kind="ddp", devices=2), {}, 8, 2624364544, 2877292544),
    ("gpt2", Parallel(kind="ddp", devices=2), {**CHECKPOINTED, "optimizer": "sgd-momentum"}, 16, 1838551552, 2044723200),
    ("gpt2", Parallel(kind="ddp", devices=16, gradient_as_bucket_view=True), {"optimizer": "adamw-fused", "gradient_clipping": 1.0}, 8, 2623981568, 2877292544),
    ("llama", Parallel(kind="zero1", devices=16), {}, 8, 3360409600, 3718250496),
    ("llama", Parallel(kind="fsdp2", devices=4), {**MIXED, "optimizer": "sgd-momentum"}, 8, 2319497216, 3112173568),
    (
        "llama",
        Parallel(kind="fsdp2", devices=4, **BF16),
        {"checkpointing": True, "optimizer": "adamw-fused", "gradient_clipping": 1.0},
        16,
        2244769280,
        2659188736,
    ),
    ("llama", Parallel(kind="fsdp2", devices=2, reshard_after_forward=False), {}, 8, 3385077760, 4332716032),
    ("bert", Parallel(kind="zero1", devices=2), {"precision": "fp32"}, 8, 894589440, 1147142144),
    ("bert", Parallel(kind="fsdp2", devices=16, **BF16), {"optimizer": "adamw-fused"}, 8, 307044864, 488636416),
    ("bert", Parallel(kind="fsdp2", devices=16), {"checkpointing": True, "accumulation": 2, "gradient_clipping": 1.0}, 16, 339072512, 570425344),
]


def workload(name):
    architecture, fields = MODELS[name]

    def model():
        config = {field: value for field, value in fields.items() if field != "model_type"}
        return getattr(transformers, architecture)(transformers.AutoConfig.for_model(fields["model_type"], **config))

    def batch(size):
        tokens = torch.zeros(size, 256, dtype=torch.long)
        if name == "bert":
            return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.zeros(size, dtype=torch.long)}
        return {"input_ids": tokens, "labels": tokens.clone()}

    def loss(model, batch):
        outputs = model(**batch)
        return outputs.loss, outputs

    return Workload(model, batch, loss, name=name)


@pytest.mark.parametrize(("name", "parallel", "recipe", "batch", "allocated", "reserved"), MEASURED, ids=[f"{row[0]} {row[1]}" for row in MEASURED])
def test_a_rank_takes_what_the_allocator_counted(name, parallel, recipe, batch, allocated, reserved, a100, tmp_path):
    """And a recording that was saved says the same: of kernels too, which DistributedDataParallel runs in another order once it has rebuilt its buckets."""
    tape = bsmodel.trace(workload(name), Training(**recipe, parallel=parallel), a100)
    tape.save(tmp_path / "tape.gz")
    peak = bsmodel.predict(bsmodel.Tape.load(tmp_path / "tape.gz"), a100, batch)
    assert peak.allocated_bytes == pytest.approx(allocated, rel=5e-4) and peak.reserved_bytes == pytest.approx(reserved, rel=0.02)
    assert tape.devices == parallel.devices


@pytest.fixture(scope="module")
def of_one(a100):
    return bsmodel.trace(workload("bert"), Training(), a100)


def test_what_is_told_of_one_device_for_data_parallelism_is_what_is_recorded(of_one, a100):
    """Of one recording, whatever the number of devices: the order in which gradients are ready, and buckets, are rules."""
    recorded = bsmodel.trace(workload("bert"), Training(parallel=Parallel(kind="ddp", devices=4)), a100)
    told = bsmodel.predict(data_parallel(of_one), a100, 8)
    assert bsmodel.predict(recorded, a100, 8).allocated_bytes == pytest.approx(told.allocated_bytes, rel=1e-4)
    assert bsmodel.predict(recorded, a100, 8).reserved_bytes == told.reserved_bytes
    said = [tape.collectives for tape in (recorded, data_parallel(of_one))]
    assert [(each.kind, each.phase) for each in said[0]] == [(each.kind, each.phase) for each in said[1]]
    assert all(one.size(1) == pytest.approx(other.size(1), rel=0.01) for one, other in zip(*said, strict=True))
    kernels = sum(phase in ("forward", "backward") for phase in recorded.operations.phases)
    assert all(abs(one.after - other.after) < kernels / 50 for one, other in zip(*said, strict=True))


def test_there_is_room_for_what_nccl_takes(of_one, a100):
    """Of a card whose links are a switch 2 to 64 channels to both neighbours, of others fewer; with one device nothing."""
    alone, shared = (bsmodel.predict(tape, a100, 8) for tape in (of_one, data_parallel(of_one)))
    low, usual, high = a100.communicator
    assert (low, usual, high) == tuple(24 * (1 << 20) * channels for channels in (2, 24, 64))
    assert bsmodel.Gpu.named("rtx-4090-24gb").communicator.high_bytes < high
    assert alone.device_bytes - alone.reserved_bytes + usual == shared.device_bytes - shared.reserved_bytes
    assert alone.device_upper_bytes - alone.reserved_upper_bytes + high == shared.device_upper_bytes - shared.reserved_upper_bytes
    assert bsmodel.fit(data_parallel(of_one), a100).gpu.sure_bytes == a100.sure_bytes - high


def test_the_longest_sample_leaves_that_room_too(of_one, a100):
    """As the largest batch does, whose inverse it is."""
    tape = data_parallel(of_one)
    one_length, largest = Lengths((Piece("seq_len", (tape,), (256,), 256, 256),)), bsmodel.fit(tape, a100).batch
    assert [bsmodel.longest(one_length, a100, batch) for batch in (largest, largest + 1)] == [256, 0]


def test_shards_of_all_ranks_are_the_whole(of_one, a100):
    """Each parameter has its first dimension dealt out; what is left of it by an uneven number is padding."""

    def states(tape):
        events = tape.blocks["init"]
        held = [number for number in events if number >= 0 and ~number not in events and tape.categories[number] == "parameter"]
        return sum(int(tape.fixed_bytes[number]) for number in held)

    for devices in (2, 8):
        tape = bsmodel.trace(workload("bert"), Training(parallel=Parallel(kind="fsdp2", devices=devices)), a100)
        rows = [tuple(parameter.shape) for parameter in workload("bert").model().parameters()]
        padded = sum(-(-shape[0] // devices) * 4 * int(torch.Size(shape[1:]).numel()) for shape in rows)
        assert states(tape) == padded and states(of_one) <= devices * states(tape)
        assert tape.parameter_count == of_one.parameter_count
        assert bsmodel.fit(tape, a100).batch >= bsmodel.fit(data_parallel(of_one), a100).batch


def test_more_devices_take_no_smaller_batch_together(of_one, a100):
    """Nor does any of them: its shards are no larger."""
    alone, *shared = [bsmodel.fit(of_one, a100).batch] + [
        bsmodel.fit(bsmodel.trace(workload("bert"), Training(parallel=Parallel(kind="fsdp2", devices=devices)), a100), a100).batch for devices in (2, 8, 64)
    ]
    assert 2 * shared[0] >= alone and shared == sorted(shared)


def test_what_shards_say_is_what_they_lack(of_one, a100, tmp_path):
    """All parameters are gathered in forward, all but the root's again in backward, whose gradients are scattered; a saved recording keeps that."""
    tape = bsmodel.trace(workload("bert"), Training(parallel=Parallel(kind="fsdp2", devices=2)), a100)
    totals = {}
    for each in tape.collectives:
        totals[each.phase, each.kind] = totals.get((each.phase, each.kind), 0) + each.size(1)
    whole, root = 4 * tape.parameter_count, 4 * sum(p.numel() for name, p in workload("bert").model().named_parameters() if not name.startswith(BLOCKS))
    assert totals["forward", "all-gather"] == totals["backward", "reduce-scatter"] == pytest.approx(whole, rel=0.01)
    assert totals["backward", "all-gather"] == pytest.approx(whole - root, rel=0.01) and not of_one.collectives
    tape.save(tmp_path / "tape.gz")
    assert bsmodel.Tape.load(tmp_path / "tape.gz").collectives == tape.collectives


def test_how_devices_share_the_work_is_asked_on_the_command_line(config, capsys):
    folder = config({**BERT, "architectures": ["BertForSequenceClassification"]})
    asked = ["--gpu", "rtx-3070-8gb", "--json", "--no-cache"]
    assert main(["plan", folder, "--devices", "4", "--parallel", "fsdp2", "--reduce-dtype", "fp32", "--param-dtype", "bf16", *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["workload"]["recipe"]["parallel"]["kind"] == "fsdp2" and answer["gpus"][0]["devices"] == 4
    assert answer["gpus"][0]["effective_batch"] == 4 * answer["gpus"][0]["micro_batch"]
    assert main(["predict", folder, "--batch", "8", "--devices", "4", *asked]) == 0
    several = json.loads(capsys.readouterr().out)["gpus"][0]["allocated_bytes"]
    assert main(["predict", folder, "--batch", "8", *asked]) == 0
    assert several > json.loads(capsys.readouterr().out)["gpus"][0]["allocated_bytes"]


def test_ways_to_share_are_compared(config, capsys, monkeypatch):
    """One device, and four and eight of them that each hold all or a shard: a row for each, in which more devices do more at once."""
    folder = config({**BERT, "architectures": ["BertForSequenceClassification"]})
    asked = ["--gpu", "rtx-3070-8gb", "--devices", "1,4,8", "--parallel", "ddp,fsdp2", "--param-dtype", "bf16", "--target-batch", "64", "--no-cache"]
    assert main(["compare", folder, *asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    found = {((row["recipe"].get("parallel") or {}).get("kind"), row["devices"]): row["timing"]["samples_per_s"] for row in answer["gpus"]}
    assert set(found) == {(None, 1), (None, 4), (None, 8), ("fsdp2", 4), ("fsdp2", 8)}
    assert found[None, 1] < found[None, 4] < found[None, 8] and found["fsdp2", 4] < found["fsdp2", 8]
    assert any("timed by NCCL's own model" in note for note in answer["notes"])
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", folder, *asked]) == 0
    shown = capsys.readouterr().out
    assert main(["compare", folder, *asked[:2], "--parallel", "foo", "--devices", "4"]) == 2
    assert "unknown kind of parallel 'foo'; known: ddp, deepspeed-zero1, " in capsys.readouterr().err
    assert main(["compare", folder, *asked[:2], "--parallel", "fsdp2"]) == 2
    assert "--parallel fsdp2 is for several devices; give --devices N" in capsys.readouterr().err
    assert main(["compare", folder, *asked, "--save", "both.gz"]) == 2
    assert "--save keeps the recordings of one way to share" in capsys.readouterr().err
    assert "shared by" in shown and shown.count("fsdp2") == 2 and shown.count("ddp") == 2


def test_a_study_has_ways_to_share_as_recipes(a100):
    """Each for its own number of devices; one that is none for those that are asked about."""
    recipes = [{}, {"parallel": {"kind": "fsdp2", "devices": 4}}]
    rows = bsmodel.study([workload("bert")], recipes, [a100], [1, 2], caching=False).rows
    assert [(row.devices, bool(row.recipe.get("parallel"))) for row in rows] == [(1, False), (2, False), (4, True)]
    assert all(row.status == "plan" for row in rows)
    rows = bsmodel.study([workload("bert")], gpus=[a100], devices=[1, 2], parallel=["ddp", "fsdp2"], caching=False).rows
    assert [(row.devices, bool(row.recipe.get("parallel"))) for row in rows] == [(1, False), (2, False), (2, True)]


def test_what_is_so_anyway_may_be_said():
    """Every field at its default, whichever kinds have it."""
    said = {"nodes": 1, "reshard_after_forward": None, "param_dtype": None, "reduce_dtype": None, "bucket_mb": 25, "gradient_as_bucket_view": False}
    for kind in ("ddp", "fsdp2"):
        assert Parallel(kind=kind, devices=8, tensor=1, **said, sync_each_micro_step=True, wrap=(), preset="torch") == Parallel(kind=kind, devices=8)
    assert Parallel(kind="tp", devices=8, tensor=1) == Parallel(kind="tp", devices=8, tensor=8)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "fsdp3", "devices": 4}, "unknown kind of parallel 'fsdp3'; nearest: fsdp2"),
        ({"kind": "fsdp2", "devices": 1}, "parallel devices is 1: input should be greater than or equal to 2"),
        ({"kind": "ddp", "devices": 4, "wrap": ("Block",)}, "parallel wrap is ('Block',), which kind 'ddp' does not have"),
        ({"kind": "fsdp2", "devices": 4, "bucket_mb": 5}, "parallel bucket_mb is 5.0, which kind 'fsdp2' does not have"),
        ({"kind": "fsdp2", "device": 4}, "unknown field of parallel 'device'; nearest: devices"),
    ],
)
def test_what_is_no_way_to_share_is_one_line(fields, reason):
    assert line_of(Parallel, **fields).startswith(reason)


def test_what_cannot_be_split_so_is_refused(of_one, config, capsys, a100):
    wrapped = Training(parallel=Parallel(kind="fsdp2", devices=4, wrap=("Nothing",)))
    assert line_of(bsmodel.trace, workload("bert"), wrapped, a100).startswith("parallel wrap Nothing: the model has no module of such a class; it has Bert")
    own = Workload(lambda: torch.nn.Linear(8, 8), lambda size: torch.zeros(size, 8), step=lambda model, optimizer, batch: None)
    assert "parallel=fsdp2 over 4 devices is not applied; wrap the model in it" in line_of(bsmodel.trace, own, Training(parallel=wrapped.parallel), a100)
    assert main(["plan", config({**BERT, "architectures": ["BertForSequenceClassification"]}), "--parallel", "fsdp2"]) == 2
    assert "--parallel fsdp2 is for several devices; give --devices N" in capsys.readouterr().err
    tape = bsmodel.trace(workload("bert"), Training(parallel=Parallel(kind="fsdp2", devices=2)), a100)
    assert line_of(bsmodel.plan, bsmodel.fit(tape, a100), None, 4) == "devices is 4; the recording is of one of 2"
