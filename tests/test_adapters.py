# SPDX-License-Identifier: Apache-2.0
"""Adapters: peaks as recorded from the PyTorch CUDA allocator (2.11) on a simulated A100 of 40 GB, three steps of AdamW, texts of 256 tokens."""

import subprocess
import sys

import pytest

import bsmodel
from bsmodel import Training
from bsmodel.recording.checks import same_memory
from bsmodel.tape import WEIGHTS
from tests.test_configs import built
from tests.test_refusals import line_of

pytest.importorskip("peft")
pytest.importorskip("transformers")

SIZES = {"vocab_size": 8000, "num_attention_heads": 8, "num_key_value_heads": 4}
LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "max_position_embeddings": 2048, **SIZES}
GPT2 = {"model_type": "gpt2", "n_embd": 512, "n_layer": 4, "n_head": 8, "vocab_size": 8000}
VIT = {"model_type": "vit", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 2}
EXPERTS = {"moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 3, "head_dim": 32}
MOE = {"model_type": "qwen3_moe", "hidden_size": 256, "intermediate_size": 512, **EXPERTS, **SIZES}
MODELS = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "vit": ("ViTForImageClassification", VIT),
    "moe": ("Qwen3MoeForCausalLM", MOE),
}
HALF = {"adapter_dtype": "weights"}
MLP = ".*mlp.*_proj"
# The model, the dtype its weights are published in, its recipe beside a rank of 16, the batch, and what it takes, allocated and reserved.
MEASURED = [
    ("llama", "float32", {"precision": "fp32"}, 8, 703_680_512, 822_083_584),
    ("llama", "float32", {"precision": "bf16-mixed"}, 8, 545_775_616, 635_437_056),
    ("llama", "bfloat16", {"precision": "bf16-mixed"}, 8, 470_727_680, 562_036_736),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "checkpointing": True}, 8, 274_224_128, 362_807_296),
    ("llama", "bfloat16", {"precision": "bf16"}, 8, 549_796_864, 616_562_688),
    ("llama", "bfloat16", {"precision": "bf16", **HALF}, 8, 430_341_120, 490_733_568),
    ("llama", "bfloat16", {"precision": "bf16", **HALF, "checkpointing": True}, 8, 270_636_032, 358_612_992),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "lora_targets": ("q_proj", "v_proj")}, 8, 404_077_568, 465_567_744),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "lora_targets": ("q_proj", "v_proj"), "lora_rank": 64, "lora_dropout": 0.1}, 8, 416_660_480, 478_150_656),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "lora_targets": MLP}, 8, 419_026_944, 511_705_088),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "lora_dropout": 0.05}, 8, 508_083_200, 606_076_928),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "lora_dropout": 0.05, "checkpointing": True}, 8, 274_224_128, 379_584_512),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "adapter": "dora"}, 8, 641_846_272, 757_071_872),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "adapter": "dora", "checkpointing": True}, 8, 274_457_600, 396_361_728),
    ("llama", "bfloat16", {"precision": "bf16", "adapter": "dora", **HALF}, 8, 590_754_816, 721_420_288),
    ("llama", "float32", {"precision": "fp32", "adapter": "dora", "lora_rank": 8}, 4, 564_322_304, 601_882_624),
    ("llama", "bfloat16", {"precision": "bf16-mixed", "adapter": "rslora", "lora_rank": 128}, 8, 541_834_240, 637_534_208),
    ("gpt2", "float32", {"precision": "bf16-mixed"}, 8, 711_787_520, 769_654_784),
    ("gpt2", "float32", {"precision": "fp32", "lora_targets": ("c_attn",), "lora_rank": 4}, 8, 712_782_848, 754_974_720),
    ("gpt2", "bfloat16", {"precision": "bf16", "checkpointing": True}, 8, 271_229_952, 375_390_208),
    ("vit", "float32", {"precision": "fp32"}, 16, 592_276_992, 662_700_032),
    ("vit", "float32", {"precision": "bf16-mixed", "lora_dropout": 0.1}, 32, 971_919_872, 1_015_021_568),
    ("vit", "bfloat16", {"precision": "bf16", **HALF}, 32, 565_924_352, 643_825_664),
    ("moe", "bfloat16", {"precision": "bf16-mixed"}, 8, 315_845_632, 427_819_008),
    ("moe", "bfloat16", {"precision": "bf16", "lora_targets": ("q_proj", "o_proj"), **HALF, "checkpointing": True}, 8, 233_372_160, 299_892_736),
]


def adapted(config, name, published="bfloat16"):
    architecture, fields = MODELS[name]
    options = {} if name == "vit" else {"seq_len": 256}
    return built(config({**fields, "architectures": [architecture], "torch_dtype": published}), **options)[0]


@pytest.mark.parametrize(("name", "published", "recipe", "batch", "allocated", "reserved"), MEASURED)
def test_adapters_take_what_they_take_on_cuda(a100, config, name, published, recipe, batch, allocated, reserved):
    tape = bsmodel.trace(adapted(config, name, published), Training(optimizer="adamw", **{"lora_rank": 16, **recipe}), a100)
    peak = bsmodel.predict(tape, a100, batch)
    assert peak.allocated_bytes == pytest.approx(allocated, rel=0.002)
    assert peak.reserved_bytes == pytest.approx(reserved, rel=0.02)


def trained(config, a100, name="llama", **recipe):
    return bsmodel.trace(adapted(config, name), Training(precision="bf16-mixed", **recipe), a100).trained_parameter_count


def test_as_many_parameters_are_trained_as_the_adapters_have(config, a100):
    """LoRA: a row for each input and one for each output of a layer, times the rank; IA3: scales of keys, values and what goes into the second product."""
    layer = {"q_proj": 512 + 512, "k_proj": 512 + 256, "v_proj": 512 + 256, "o_proj": 512 + 512, "gate": 512 + 1408, "up": 512 + 1408, "down": 1408 + 512}
    assert trained(config, a100, lora_rank=8) == 4 * 8 * sum(layer.values())
    assert trained(config, a100, lora_rank=8, lora_targets="attention") == 4 * 8 * sum(layer[name] for name in layer if name.endswith("_proj"))
    assert trained(config, a100, lora_rank=8, lora_targets=("v_proj", "q_proj")) == 4 * 8 * (layer["v_proj"] + layer["q_proj"])
    assert trained(config, a100, adapter="ia3") == 4 * (256 + 256 + 1408)
    assert trained(config, a100, adapter="prompt-tuning", prompt_tokens=20) == 20 * 512


def test_half_precision_is_kept_under_adapters_and_said(config, a100):
    recipe = {"precision": "bf16-mixed", "lora_rank": 8}
    kept, whole = (bsmodel.trace(adapted(config, "llama"), Training(**recipe, **extra), a100) for extra in ({}, {"weights": "fp32"}))
    assert any("in bfloat16, as they are published" in remark for remark in kept.remarks)
    assert any("in float32, by weights fp32, not in bfloat16" in remark for remark in whole.remarks)
    assert bsmodel.predict(kept, a100, 1).allocated_bytes < bsmodel.predict(whole, a100, 1).allocated_bytes


def test_what_does_not_go_together_is_refused():
    assert line_of(Training, adapter="dora") == "adapter 'dora' needs a lora_rank"
    assert line_of(Training, adapter="ia3", lora_rank=8) == "adapter 'ia3' has no lora_rank"
    assert line_of(Training, adapter="prompt-tuning") == "prompt-tuning needs prompt_tokens, and nothing else has them"
    assert line_of(Training, weights="nf4") == "weights 'nf4' cannot be trained; give a lora_rank to train adapters"
    assert line_of(Training, lora_rank=8, weights="int8", double_quant=True) == "double_quant is for weights nf4 and fp4, not 'int8'"
    assert line_of(Training, lora_targets="attention") == "lora_targets is for adapters; give a lora_rank"
    assert line_of(Training, upcast=False, lora_rank=8) == "upcast is for quantized weights of bitsandbytes"
    assert line_of(Training, upcast=False, lora_rank=8, weights="int8-torchao") == "upcast is for quantized weights of bitsandbytes"
    assert line_of(Training, weights="int8-torchao") == "weights 'int8-torchao' cannot be trained; give a lora_rank to train adapters"
    assert line_of(Training, lora_rank=8, weights="int4-torchao").endswith("no shape functions, and peft refuses it; use nf4-torchao or nf4")
    assert line_of(Training, float8="row-wise") == "unknown float8 recipe 'row-wise'; nearest: rowwise, tensorwise, rowwise_with_gw_hp"
    assert line_of(Training, float8="rowwise", lora_rank=8).startswith("float8 is for weights that are trained; under adapters, give weights float8-torchao")
    assert line_of(Training, adapter="lorra").startswith("unknown adapter 'lorra'; nearest: lora")
    assert line_of(Training, weights="nf5", lora_rank=8).startswith("unknown format of weights 'nf5'; nearest: nf4")


def test_targets_that_are_not_there_are_refused(config, a100):
    def refusal(targets):
        return line_of(bsmodel.trace, adapted(config, "llama"), Training(lora_rank=8, lora_targets=targets), a100)

    assert refusal(("q_prj",)).startswith("unknown linear layer 'q_prj'; nearest: q_proj")
    assert "matches no linear layer" in refusal(".*convolution.*")
    assert "is no regular expression" in refusal("*mlp")


# -- quantized weights -------------------------------------------------------------------------------------------------------------------

# Bytes of a weight's parts, by format: of n numbers in packs of 2, scales of blocks of 64 (and of 256 of these), codes of 16 and 256 float32, and an offset
# (bitsandbytes/functional.py, quantize_4bit).
LAYERS = 4 * [(512, 512), (256, 512), (256, 512), (512, 512), (1408, 512), (1408, 512), (512, 1408)]


def four_bits(rows, columns, double_quant):
    n = rows * columns
    return [n // 2, 16 * 4, *([n // 64, -(-n // 64 // 256) * 4, 256 * 4, 4] if double_quant else [n // 64 * 4])]


def eight_bits(rows, columns):
    return [rows * columns, rows * 4]


@pytest.mark.parametrize(("weights", "double_quant"), [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False)])
def test_quantized_weights_take_what_their_layout_says(config, a100, weights, double_quant):
    """On top of what is not quantized: embeddings, head and norms."""
    pytest.importorskip("bitsandbytes")
    tape = bsmodel.trace(adapted(config, "llama"), Training(precision="bf16-mixed", weights=weights, double_quant=double_quant, lora_rank=8), a100)
    held = [int(tape.fixed_bytes[number]) for number in tape.blocks["init"] if number >= 0 and tape.categories[number] in WEIGHTS]
    adapters = [8 * width * 4 for layer in LAYERS for width in layer]
    others = [8000 * 512 * 4] * 2 + [512 * 4] * 9
    packed = [size for layer in LAYERS for size in (eight_bits(*layer) if weights == "int8" else four_bits(*layer, double_quant))]
    assert sorted(held) == sorted([*adapters, *others, *packed])
    assert tape.parameter_count - tape.trained_parameter_count == 2 * 8000 * 512 + 9 * 512 + sum(rows * columns for rows, columns in LAYERS)


WITHOUT = """
import sys
sys.modules["bitsandbytes"] = None
import bsmodel
workload, gpu = bsmodel.Workload.named(sys.argv[1], seq_len=256), bsmodel.Gpu.named("a100-40gb")
for double_quant in (False, True):
    tape = bsmodel.trace(workload, bsmodel.Training(precision="bf16-mixed", weights="nf4", lora_rank=16, double_quant=double_quant), gpu)
    weights = sum(int(tape.fixed_bytes[n]) for n in tape.blocks["init"] if n >= 0 and tape.categories[n] == "packed weight")
    print(weights, bsmodel.predict(tape, gpu, 8).allocated_bytes, any("by their layout" in remark for remark in tape.remarks))
try:
    bsmodel.trace(workload, bsmodel.Training(weights="int8", lora_rank=16), gpu)
except bsmodel.BsmodelError as error:
    print(error)
"""


def test_four_bits_are_recorded_by_their_layout_where_bitsandbytes_is_not_installed(config, a100):
    pytest.importorskip("bitsandbytes")
    folder = config({**LLAMA, "architectures": ["LlamaForCausalLM"]})
    run = subprocess.run([sys.executable, "-c", WITHOUT, folder], capture_output=True, text=True, check=True, timeout=300)
    *rows, refusal = run.stdout.splitlines()
    for row, double_quant in zip(rows, (False, True), strict=True):
        weights, allocated, said = row.split()
        tape = bsmodel.trace(
            bsmodel.Workload.named(folder, seq_len=256), Training(precision="bf16-mixed", weights="nf4", lora_rank=16, double_quant=double_quant), a100
        )
        packed = [int(tape.fixed_bytes[n]) for n in tape.blocks["init"] if n >= 0 and tape.categories[n] == "packed weight"]
        assert int(weights) == sum(packed) and said == "True"
        assert int(allocated) == pytest.approx(bsmodel.predict(tape, a100, 8).allocated_bytes, rel=0.02)
    assert refusal.startswith("weights int8 need bitsandbytes: pip install")


def test_backward_unpacks_a_whole_weight(config, a100):
    """In the dtype that is computed in, one after the other: the products are those of the weights themselves."""
    pytest.importorskip("bitsandbytes")
    tape = bsmodel.trace(adapted(config, "llama"), Training(precision="bf16-mixed", weights="nf4", lora_rank=8), a100)
    unpacked = [i for i, name in enumerate(tape.operators) if name == "bitsandbytes.dequantize_4bit.default"]
    assert {int(tape.fixed_bytes[i]) for i in unpacked} == {rows * columns * 2 for rows, columns in LAYERS}
    assert {tape.phases[i] for i in unpacked} == {"forward", "backward"}


def test_a_quantization_config_is_what_the_flags_say(config, a100):
    """Without adapters it is refused; transformers computes in float32 where it does not say otherwise."""
    pytest.importorskip("bitsandbytes")
    fields = {**LLAMA, "architectures": ["LlamaForCausalLM"]}
    given = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    plain, packed = (bsmodel.Workload.named(config({**fields, **more}), seq_len=128) for more in ({}, {"quantization_config": given}))
    asked = bsmodel.trace(plain, Training(precision="bf16", lora_rank=8, weights="nf4", double_quant=True, compute_dtype="fp32"), a100)
    told = bsmodel.trace(packed, Training(precision="bf16", lora_rank=8), a100)
    assert same_memory(told, asked) and told.recipe == asked.recipe
    assert any("as the model's quantization_config has them" in remark for remark in told.remarks)
    in_bf16 = bsmodel.trace(packed, Training(precision="bf16", lora_rank=8, weights="nf4", double_quant=True), a100)
    assert not same_memory(in_bf16, told)  # what is upcast comes in float32, and is cast on the way in and out
    assert line_of(bsmodel.trace, packed) == "weights 'nf4' cannot be trained; give a lora_rank to train adapters"


def test_what_is_not_quantized_stays_as_it_is_where_asked(config, a100):
    pytest.importorskip("bitsandbytes")
    recipe = {"precision": "bf16-mixed", "weights": "nf4", "lora_rank": 8}
    upcast, left = (bsmodel.trace(adapted(config, "llama"), Training(**recipe, **extra), a100) for extra in ({}, {"upcast": False}))
    embedding = [next(size for size in tape.fixed_bytes if size in (8000 * 512 * 4, 8000 * 512 * 2)) for tape in (upcast, left)]
    assert embedding == [8000 * 512 * 4, 8000 * 512 * 2]
    assert [any("prepare_model_for_kbit_training" in remark for remark in tape.remarks) for tape in (upcast, left)] == [True, False]


def test_paged_averages_are_where_no_allocator_sees_them(config, a100):
    """Those of 100,000 elements and more: here of layers with 1,408 inputs or outputs, at a rank of 128."""
    recipe = {"precision": "bf16-mixed", "lora_rank": 128}
    plain, paged = (bsmodel.trace(adapted(config, "llama"), Training(optimizer=name, **recipe), a100) for name in ("adamw-8bit", "adamw-paged-8bit"))

    def averages(tape):
        return [int(size) for size, category in zip(tape.fixed_bytes, tape.categories, strict=True) if category == "optimizer state" and size >= 512]

    assert 128 * 1408 in averages(plain) and 128 * 1408 not in averages(paged) and 128 * 512 in averages(paged)
    assert any("managed memory" in remark for remark in paged.remarks) and not any("managed memory" in remark for remark in plain.remarks)


def test_eight_bits_say_what_they_do_not_count(config, a100):
    pytest.importorskip("bitsandbytes")
    tape = bsmodel.trace(adapted(config, "llama"), Training(precision="bf16-mixed", weights="int8", lora_rank=8), a100)
    assert any("outliers" in what for what in tape.uncounted)


def test_experts_that_are_one_tensor_are_not_quantized_and_that_is_said(config, a100):
    pytest.importorskip("bitsandbytes")
    tape = bsmodel.trace(adapted(config, "moe"), Training(precision="bf16-mixed", weights="nf4", lora_rank=8, lora_targets="attention"), a100)
    experts, embeddings, norms, routers = 3 * 8 * 3 * 128 * 256, 2 * 8000 * 256, 256 * 7 + 3 * 2 * 32, 3 * 8 * 256
    assert any(f"{experts + embeddings + norms + routers:,} parameters are not quantized" in remark for remark in tape.remarks)


def test_modules_have_the_parameters_that_were_before_they_were_packed(config, a100):
    pytest.importorskip("bitsandbytes")
    tape = bsmodel.trace(adapted(config, "llama"), Training(precision="bf16-mixed", weights="nf4", lora_rank=8), a100)
    table = {row.module: row.parameters for row in bsmodel.by_module(tape, 1)}
    assert table[""] == tape.parameter_count
    assert table["base_model.model.model.layers.0.mlp.down_proj"] == 512 * 1408 + 8 * (512 + 1408)
    held = {category for number, category in enumerate(tape.categories) if number in tape.blocks["init"]}
    assert {"parameter", "packed weight", "adapter"} <= held
