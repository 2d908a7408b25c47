# SPDX-License-Identifier: Apache-2.0
"""Layers in parts: peaks as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100, three steps, rank 0; layers were split one by one."""

import dataclasses
import json

import pytest
import torch

import bsmodel
from bsmodel import Parallel, Training, Workload
from bsmodel.command import main
from bsmodel.planning import Split, splits
from bsmodel.tape import Polynomial
from tests.test_refusals import line_of

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000}
MODELS = {
    "llama": {"model_type": "llama", **SIZES},
    "llama-tied": {"model_type": "llama", **SIZES, "num_key_value_heads": 8, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **SIZES, "num_key_value_heads": 8},
    "qwen3": {"model_type": "qwen3", **SIZES, "num_key_value_heads": 8, "head_dim": 128},
    "small": {"model_type": "llama", **SIZES, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024},
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1024},
    "bert": {"model_type": "bert", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512, "is_decoder": True},
    "mixtral": {"model_type": "mixtral", **SIZES, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_local_experts": 4},
}
MIXED, BF16 = {"precision": "bf16-mixed"}, {"param_dtype": "bf16", "reduce_dtype": "fp32"}
# The model, how it is split, its recipe, the batch of a group, the tokens of a sample, and what a device takes, allocated and reserved.
MEASURED = [
    ("llama", Parallel(kind="tp", devices=2), {"optimizer": "sgd-momentum", "checkpointing": True}, 8, 256, 1564626944, 1979711488),
    ("llama", Parallel(kind="tp", devices=4), {**MIXED, "checkpointing": True, "accumulation": 2}, 32, 512, 7840225280, 9751756800),
    ("llama-tied", Parallel(kind="tp", devices=8), {**MIXED, "accumulation": 2}, 8, 256, 1968324608, 2181038080),
    ("llama-tied", Parallel(kind="tp", devices=2), {"precision": "bf16", "optimizer": "adamw-forloop"}, 16, 256, 2859833344, 2971664384),
    ("qwen2", Parallel(kind="tp", devices=4), {"precision": "bf16", "optimizer": "sgd", "accumulation": 2}, 8, 256, 1362810880, 1604321280),
    ("qwen3", Parallel(kind="tp", devices=8), {"checkpointing": True, "accumulation": 2}, 16, 256, 2498949120, 2625634304),
    ("llama", Parallel(kind="fsdp2", devices=16, tensor=4), MIXED, 8, 256, 1652452352, 2145386496),
    ("qwen2", Parallel(kind="fsdp2", devices=4, tensor=2), {**MIXED, "optimizer": "sgd-momentum", "checkpointing": True}, 8, 256, 1488214016, 2185232384),
    ("qwen3", Parallel(kind="fsdp2", devices=16, tensor=8, **BF16), {}, 8, 256, 1446320640, 1811939328),
]


def workload(name, tokens=256, **changes):
    def model():
        fields = {**MODELS[name], **changes}
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(fields.pop("model_type"), **fields))

    def batch(size):
        ids = torch.zeros(size, tokens, dtype=torch.long)
        return {"input_ids": ids, "labels": ids.clone()}

    def loss(model, batch):
        outputs = model(**batch)
        return outputs.loss, outputs

    return Workload(model, batch, loss, name=name)


def traced(name, gpu, recipe=None, **parallel):
    return bsmodel.trace(workload(name), Training(**(recipe or {}), parallel=Parallel(**parallel) if parallel else None), gpu)


@pytest.mark.parametrize(("name", "parallel", "recipe", "batch", "tokens", "allocated", "reserved"), MEASURED, ids=[f"{row[0]} {row[1]}" for row in MEASURED])
def test_a_rank_takes_what_the_allocator_counted(name, parallel, recipe, batch, tokens, allocated, reserved, a100):
    tape = bsmodel.trace(workload(name, tokens), Training(**recipe, parallel=parallel), a100)
    peak = bsmodel.predict(tape, a100, batch)
    assert peak.allocated_bytes == pytest.approx(allocated, rel=3e-3) and peak.reserved_bytes == pytest.approx(reserved, rel=0.01)
    assert (tape.devices, tape.tensor) == (parallel.devices, parallel.tensor)


def test_a_model_that_stood_whole_on_the_device_takes_hardly_more(a100):
    """Llama 3.2 1B in eight parts, 2 texts of 1,024 tokens: recorded with the whole model brought there first, whose memory the parts then reuse."""
    tape = bsmodel.trace(
        workload("llama-tied", 1024, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64, vocab_size=128256),
        Training(**MIXED, parallel=Parallel(kind="tp", devices=8)),
        a100,
    )
    peak = bsmodel.predict(tape, a100, 2)
    assert peak.allocated_bytes == pytest.approx(10649683968, rel=2e-3) and peak.reserved_bytes == pytest.approx(11416895488, rel=0.02)


@pytest.fixture(scope="module")
def of_one(a100):
    return traced("small", a100)


@pytest.fixture(scope="module")
def of_four(a100):
    return traced("small", a100, kind="tp", devices=4)


def states(tape, category="parameter"):
    """Bytes that each module holds all the time."""
    events, found = tape.blocks["init"], {}
    for number in events:
        if number >= 0 and ~number not in events and tape.categories[number] == category:
            found[tape.modules[number]] = found.get(tape.modules[number], 0) + int(tape.fixed_bytes[number])
    return found


def test_parts_of_all_devices_are_the_whole(of_one, of_four):
    """Linear layers in four parts, under the names they have; embeddings and norms whole. The model has as many parameters as ever."""
    whole, part = states(of_one), states(of_four)
    assert part == {name: size // (4 if name.endswith(("_proj", "lm_head")) else 1) for name, size in whole.items()}
    assert of_four.parameter_count == of_one.parameter_count and of_four.parameters == of_one.parameters


def test_every_block_sums_twice_in_forward_and_for_every_layer_that_takes_the_whole_in_backward(of_four):
    """What is said grows with the batch, among the ranks that share a layer, and is waited for at once: the next kernel reads it."""
    said = {}
    for each in of_four.collectives:
        said.setdefault((each.phase, each.kind), []).append(each)
    activations, logits = 256 * 256 * 4, 256 * 1024 * 4
    assert [each.size for each in said["forward", "all-reduce"]] == [Polynomial(0, activations)] * 2 * 2
    assert [each.size for each in said["backward", "all-reduce"]] == [Polynomial(0, activations)] * (5 * 2 + 1)  # q, k, v, gate, up; the head
    assert [each.size for each in said["forward", "all-gather"]] == [Polynomial(0, logits)]
    assert {(each.ranks, each.stride) for each in of_four.collectives} == {(4, 1)} and len(said) == 3
    assert all(each.before - each.after <= 1 for each in of_four.collectives)


def test_norms_of_heads_have_their_gradients_summed(a100):
    tape = bsmodel.trace(workload("qwen3", num_hidden_layers=1), Training(parallel=Parallel(kind="tp", devices=4)), a100)
    assert [each.size for each in tape.collectives if not each.size.per_sample] == [Polynomial(4 * 128, 0)] * 2


def test_shards_over_groups_that_share_layers(a100, of_four, tmp_path):
    """Neighbours share layers, every fourth device a shard; a saved recording keeps that."""
    tape = traced("small", a100, kind="fsdp2", devices=8, tensor=4)
    groups = {(each.kind, each.ranks, each.stride) for each in tape.collectives}
    assert groups == {("all-reduce", 4, 1), ("all-gather", 4, 1), ("all-gather", 2, 4), ("reduce-scatter", 2, 4)}
    assert states(tape) == {name: size // 2 for name, size in states(of_four).items()}
    tape.save(tmp_path / "tape.gz")
    loaded = bsmodel.Tape.load(tmp_path / "tape.gz")
    assert (loaded.collectives, loaded.devices, loaded.tensor) == (tape.collectives, 8, 4)


def test_devices_that_share_a_micro_batch_take_it_once_and_are_all_paid(a100, of_four):
    """Samples of a step are those of the groups; so are throughput and the learning rate, and money is that of every device."""
    plan = bsmodel.plan(bsmodel.fit(of_four, a100), 64)
    assert plan.split == Split(64, 1, 4, 4) and plan.split.effective_batch == 64
    assert plan.timing.samples_per_s == plan.timing.step.samples_per_s
    assert plan.timing.usd_per_million == pytest.approx(plan.timing.price.usd_per_hour * 4 / plan.timing.samples_per_s / 3600 * 1e6)
    assert bsmodel.plan(bsmodel.fit(of_four, a100)).target_batch == bsmodel.fit(of_four, a100).batch
    assert Parallel(kind="tp", devices=4).replicas == 1 and Parallel(kind="fsdp2", devices=16, tensor=4).replicas == 4
    assert splits(64, 8, 4, 16, 4)[0] == Split(4, 4, 16, 4) and splits(64, 16, 8, 16, 4)[0] == Split(16, 1, 16, 4)
    assert "one sample for each of 4 groups of 4 devices; expected at least 4" in line_of(splits, 3, 8, 4, 16, 4)
    assert dataclasses.replace(plan.split, tensor=1).effective_batch == 256


def test_parts_are_asked_for_on_the_command_line(config, capsys):
    folder = config({**MODELS["small"], "architectures": ["LlamaForCausalLM"]})
    asked = [folder, "--gpu", "rtx-3070-8gb", "--seq-len", "128", "--no-cache"]
    assert main(["plan", *asked, "--devices", "8", "--parallel", "fsdp2", "--tensor", "4", "--target-batch", "16", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["gpus"]
    assert (row["devices"], row["micro_batch"], row["effective_batch"]) == (8, 8, 16)
    assert main(["plan", *asked, "--devices", "4", "--parallel", "tp", "--target-batch", "16"]) == 0
    shown = capsys.readouterr().out
    assert "16 x 1 x 4/4 = 16" in shown and "tp over 4 devices" in shown
    assert main(["plan", *asked, "--devices", "8", "--parallel", "tp"]) == 2
    assert "num_key_value_heads of LlamaForCausalLM is 4, no multiple of tensor 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "fsdp2", "devices": 8, "tensor": 3}, "parallel tensor is 3; expected as many devices for each micro-batch: a number that divides 8"),
        ({"kind": "tp", "devices": 8, "tensor": 4}, "parallel tensor is 4; tp has every layer on all 8 devices, and fsdp2 goes with fewer"),
        ({"kind": "fsdp2", "devices": 8, "tensor": 8}, "parallel tensor is 8, which leaves fsdp2 nothing to shard over; use kind 'tp'"),
        ({"kind": "ddp", "devices": 8, "tensor": 2}, "parallel tensor is 2, which kind 'ddp' does not have"),
        ({"kind": "zero1", "devices": 8, "tensor": 2}, "parallel tensor is 2, which kind 'zero1' does not have"),
        ({"kind": "hsdp", "devices": 16, "tensor": 2}, "parallel tensor is 2, which kind 'hsdp' does not have"),
        ({"kind": "tp", "devices": 4, "wrap": ("Block",)}, "parallel wrap is ('Block',), which kind 'tp' does not have"),
        ({"kind": "tp"}, "parallel devices is"),
        ({"kind": "tp", "devices": "many"}, "parallel devices is 'many': input should be a valid integer"),
    ],
)
def test_what_is_no_way_to_share_is_one_line(fields, reason):
    assert line_of(Parallel, **fields).startswith(reason)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"weights": "nf4", "lora_rank": 8}, "weights 'nf4' are not recorded where layers are in 4 parts"),
        ({"lora_rank": 8}, "adapters are not recorded where layers are in 4 parts"),
        ({"float8": "tensorwise"}, "float8 is not recorded where layers are in 4 parts"),
        ({"gradient_clipping": 1.0}, "gradient_clipping is not recorded where layers are in 4 parts: clip_grad_norm_ takes no DTensors"),
        ({"precision": "fp16-mixed"}, "precision fp16-mixed is not recorded where layers are in 4 parts: loss scaling takes no DTensors"),
        ({"ema": True}, "ema is not recorded where layers are in 4 parts: averages take no DTensors"),
        ({"optimizer": "adafactor"}, "optimizer adafactor does not run where layers are in 4 parts"),
    ],
)
def test_recipes_that_take_no_parts_are_one_line(recipe, reason):
    assert line_of(Training, **recipe, parallel=Parallel(kind="tp", devices=4)).startswith(reason)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gpt2", {}, "GPT2LMHeadModel has no plan for tensor parallelism; use parallel fsdp2"),
        ("bert", {}, "BertLMHeadModel has no plan for tensor parallelism; use parallel fsdp2"),
        (
            "small",
            {"hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 2},
            "num_attention_heads of LlamaForCausalLM is 6, no multiple of tensor 4",
        ),
        ("small", {"num_key_value_heads": 2}, "num_key_value_heads of LlamaForCausalLM is 2, no multiple of tensor 4; a device has whole heads"),
        ("small", {"intermediate_size": 510}, "model.layers.0.mlp.gate_proj has 510 outputs, no multiple of tensor 4"),
        ("small", {"vocab_size": 1023}, "lm_head has 1,023 outputs, no multiple of tensor 4"),
        ("mixtral", {}, "the plan of MixtralForCausalLM asks for"),
    ],
)
def test_models_that_have_no_such_parts_are_one_line(name, changes, reason, a100):
    training = Training(parallel=Parallel(kind="tp", devices=4))
    assert line_of(bsmodel.trace, workload(name, **changes), training, a100).startswith(reason)
