# SPDX-License-Identifier: Apache-2.0
"""Configuration files: every head is trained as it is, what cannot be built is refused in one line that names the field."""

import time

import numpy as np
import pytest
import torch

import bsmodel
from bsmodel.command import main
from bsmodel.workloads.libraries import built as built_within

transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

BERT = {
    "model_type": "bert",
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 100, "n_positions": 64, "eos_token_id": 7}
LLAMA = {
    "model_type": "llama",
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
}
VIT = {"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
T5 = {"model_type": "t5", "d_model": 64, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 32, "vocab_size": 100}
CONV = {"conv_dim": [32, 32], "conv_stride": [20, 16], "conv_kernel": [20, 16], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
SPEECH = {**BERT, **CONV, "model_type": "wav2vec2", "layerdrop": 0.1}
WHISPER = {"model_type": "whisper", "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 32,
    "sample_size": 16,
}


def line_of(call, *arguments, **keywords):
    with pytest.raises(bsmodel.BsmodelError) as refusal:
        call(*arguments, **keywords)
    message = str(refusal.value)
    assert "\n" not in message and len(message) < 1000
    return message


def built(source, **options):
    """A workload of this source, its model and one batch of it."""
    workload = bsmodel.Workload.named(source, **options)
    return workload, workload.model(), workload.batch(2)


def refused(source, **options):
    """The line with which a source is refused: when it is read, or when its model is built."""
    return line_of(lambda: bsmodel.Workload.named(source, **options).model())


def test_weights_are_as_the_precision_says_whatever_they_are_stored_in(config, a100):
    stored, plain = ({**LLAMA, **extra, "architectures": ["LlamaForCausalLM"]} for extra in ({"torch_dtype": "bfloat16"}, {}))
    tapes = [bsmodel.trace(bsmodel.Workload.named(config(fields), seq_len=8), None, a100) for fields in (stored, plain)]

    assert (tapes[0].fixed_bytes == tapes[1].fixed_bytes).all()
    assert tapes[0].remarks == ("the weights are in float32, by precision bf16-mixed, not in bfloat16, as they are published",)
    assert tapes[1].remarks == ()


def test_where_a_configuration_was_saved_from_and_how_it_returns_outputs_changes_nothing(config, a100):
    plain = {**BERT, "architectures": ["BertForMaskedLM"]}
    other = {**plain, "return_dict": False, "_name_or_path": "no-such/model"}
    tapes = [bsmodel.trace(bsmodel.Workload.named(config(fields)), None, a100) for fields in (plain, other)]

    assert (tapes[0].fixed_bytes == tapes[1].fixed_bytes).all() and tapes[1].remarks == ()


def test_nothing_is_left_to_chance(config, a100):
    workload = bsmodel.Workload.named(config({**SPEECH, "architectures": ["Wav2Vec2ForSequenceClassification"]}), seq_len=16_000)
    said = " ".join(bsmodel.trace(workload, None, a100).remarks)

    assert "layerdrop 0 in place of the configuration's 0.1" in said and "apply_spec_augment false" in said and "1 s of sound" in said


# -- options -------------------------------------------------------------------------------------------------------------------------------


def test_a_length_beyond_the_positions_is_refused_for_every_model(config):
    fine = (GPT2, 64), ({**BERT, "max_position_embeddings": 64}, 64), ({**LLAMA, "max_position_embeddings": 64}, 64)
    for number, (fields, most) in enumerate(fine):
        folder = config(fields, f"model-{number}")
        assert built(folder, seq_len=most)[2]["input_ids"].shape == (2, most)
        assert refused(folder, seq_len=most + 1) == f"seq-len {most + 1} is beyond the model's {most} positions; give at most that"
    roberta = config({**BERT, "model_type": "roberta", "max_position_embeddings": 66}, "roberta")  # positions begin behind that of padding
    assert built(roberta)[2]["input_ids"].shape == (2, 64)
    assert "beyond the model's 64 positions" in refused(roberta, seq_len=65)
    assert built(config(T5, "t5"), seq_len=4096)[2]["labels"].shape == (2, 4096)
    assert "beyond the model's 448 positions" in refused(config(WHISPER, "whisper"), seq_len=449)


def test_a_length_that_nobody_asked_for_is_named(config):
    assert bsmodel.Workload.named(config({**GPT2, "architectures": ["GPT2LMHeadModel"]})).remarks == ()
    long = bsmodel.Workload.named(config({**LLAMA, "max_position_embeddings": 131072, "architectures": ["LlamaForCausalLM"]}))
    endless = bsmodel.Workload.named(config({**T5, "architectures": ["T5ForConditionalGeneration"]}))

    assert long.tokens_per_sample == 2048 and long.remarks == ("sequences of 2048 tokens, fewer than the model's 131072 positions: none were asked for",)
    assert endless.remarks == ("sequences of 512 tokens: the model has no longest one, and none was asked for",)


def test_images_are_as_large_as_was_asked_and_as_deep_as_the_configuration_says(config, a100):
    gray = {**VIT, "num_channels": 1, "architectures": ["ViTForImageClassification"]}
    workload, _, batch = built(config(gray), image_size=64)
    wide = built(config({**gray, "image_size": [32, 64]}))[2]

    assert batch["pixel_values"].shape == (2, 1, 64, 64) and wide["pixel_values"].shape == (2, 1, 32, 64)
    assert bsmodel.trace(workload, None, a100).remarks == ("image_size 64 in place of the configuration's 32",)


def test_a_classifier_without_padding_gets_one_and_says_so(config, a100):
    workload = bsmodel.Workload.named(config({**GPT2, "architectures": ["GPT2ForSequenceClassification"]}))

    assert bsmodel.trace(workload, None, a100).remarks == ("pad_token_id 7: the configuration has none, and a classifier finds the end of a sample by it",)


@pytest.mark.parametrize(
    ("fields", "options", "reason"),
    [
        (UNET, {"seq_len": 128}, "is of diffusers, whose models have no option 'seq-len'; they take: image-size"),
        (UNET, {"attention": "eager"}, "no option 'attention'"),
        (UNET, {"image_size": 100}, "image-size 100 does not divide by 16, as UNet2DConditionModel needs; nearest: 96"),
        (VIT, {"seq_len": 128}, "ViTForImageClassification has no option 'seq-len'; it takes: attention, image_size"),
        (BERT, {"image_size": 128}, "BertForMaskedLM has no option 'image-size'"),
        (BERT, {"sequence": 128}, "is of transformers, whose models have no option 'sequence'; they take: seq-len, image-size, attention"),
        (BERT, {"loss": "mse"}, "no option 'loss'"),
        ({"model_type": "resnet"}, {"attention": "eager"}, "ResNetForImageClassification has no attention"),
    ],
)
def test_an_option_that_a_configuration_does_not_take_is_refused(fields, options, reason, config):
    assert reason in refused(config(fields), **options)


@pytest.mark.parametrize("model", ["gpt2", "config", "m.py:net"])
@pytest.mark.parametrize("value", ["abc", 0, -1, 1.5, True, float("nan"), [1], 10**9])
def test_a_length_is_a_whole_number_wherever_it_comes_from(model, value, config, tmp_path):
    (tmp_path / "m.py").write_text("import torch\nnet = torch.nn.Linear(4, 4)\n")
    name = config(BERT) if model == "config" else f"{tmp_path}/{model}" if ":" in model else model
    options = {"input": "4"} if ":" in model else {}

    assert line_of(bsmodel.Source.of, name, seq_len=value, **options).startswith("seq-len is ")
    assert "expected a whole number" in line_of(bsmodel.Source.of, "resnet50", image_size=value)
    assert line_of(bsmodel.Source("gpt2", (("seq_len", value),)).workload).startswith("seq-len is ")


def test_counts_of_numpy_and_whole_floats_are_counts():
    assert bsmodel.Source.of("gpt2", seq_len=np.int64(128)) == bsmodel.Source.of("gpt2", seq_len=128.0) == bsmodel.Source.of("gpt2", seq_len=128)
    assert bsmodel.Source.of("gpt2", seq_len=np.int64(128)).identity() == bsmodel.Source.of("gpt2", seq_len=128).identity()


def test_other_mistakes_in_a_source_are_one_line(tmp_path):
    assert "unknown attention 'flash'" in line_of(bsmodel.Source.of, "gpt2", attention="flash")
    assert "model is 3; expected a name" in line_of(bsmodel.Source.of, 3)
    assert "gpt2 has no option 'sequence'; it takes: seq-len, attention" in line_of(bsmodel.Source.of("gpt2", sequence=3).check)
    assert "timm:resnet18 has no option 'seq-len'; it takes: image-size" in line_of(bsmodel.Source.of("timm:resnet18", seq_len=3).check)
    assert "timm:resnet18 has no option 'architecture'" in line_of(bsmodel.Source.of("timm:resnet18", architecture="x").check)
    assert bsmodel.Source.of(tmp_path / "config.json").name == f"{tmp_path}/config.json"


# -- files ---------------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_its_configuration(config, tmp_path, capsys):
    folder = config({**BERT, "architectures": ["BertForMaskedLM"]})
    source, file = bsmodel.Source.of(folder, seq_len=16), bsmodel.Source.of(f"{folder}/config.json", seq_len=16)
    empty = tmp_path / "empty"
    empty.mkdir()

    source.check()
    assert source.identity() == file.identity() and source.library == file.library == "transformers"
    assert source.workload().name == "model" and bsmodel.Source.of(config(UNET, "unet")).library == "diffusers"
    config({**BERT, "num_hidden_layers": 2})
    assert source.identity() != bsmodel.Source.of("gpt2").identity() and source.identity()["content"] != file.identity()["name"]
    assert f"cannot read '{empty}/config.json'" in line_of(bsmodel.Source.of(str(empty)).check)
    assert main(["predict", folder, "--seq-len", "16", "--batch", "2", "--gpu", "a100-40gb", "--no-cache"]) == 0
    assert "model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "is nested deeper than 16 levels"),
        ('{"model_type": "bert", "a": ' + "[" * 40 + "]" * 40 + "}", "is nested deeper than 16 levels"),
        ('{"model_type": "bert", "a": "' + "x" * (5 << 20) + '"}', "it is larger than 4.00 MiB"),
        ("[1, 2]", "holds [1, 2]; expected the fields of a transformers or diffusers model"),
        ("null", "holds None; expected the fields"),
        ("hello", "is not JSON"),
        ("{}", "is no transformers config (no model_type) and no diffusers config (no _class_name)"),
        ('{"model_type": "bert", "hidden_size": NaN}', "NaN is no value of a field"),
    ],
    ids=range(8),
)
def test_a_file_that_is_no_configuration_is_one_line(content, reason, config):
    source = bsmodel.Source.of(config(content))

    assert reason in line_of(source.check)
    assert reason in line_of(source.workload)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "of 'gptq', whose weights are not recorded; those of bitsandbytes and Int8",
        ),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}}, "bnb_4bit_quant_type is 'nf5'; expected nf4 or fp4"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "int8"}}, "expected float32 or float16 or bfloat16"),
        ({"quantization_config": {"load_in_8bit": True, "llm_int8_skip_modules": ["a"]}}, "has llm_int8_skip_modules ['a']; expected none"),
        ({"auto_map": {"AutoModel": "modeling_mine.Mine"}}, "has auto_map: code of the model's own repository is not run"),
        ({"trust_remote_code": True}, "has trust_remote_code: code of the model's own repository is not run"),
    ],
)
def test_fields_that_ask_for_what_is_not_recorded_are_refused(field, reason, config):
    assert reason in line_of(bsmodel.Source.of(config({**BERT, **field})).check)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({**BERT, "hidden_size": 10**9}, "hidden_size is 1000000000; expected at most"),
        ({**BERT, "num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected at most 1000"),
        ({**BERT, "num_hidden_layers": 10**5}, "num_hidden_layers is 100000; expected at most 1000"),
        ({**BERT, "max_position_embeddings": 10**9}, "max_position_embeddings is 1000000000"),
        ({**BERT, "num_labels": 10**9}, "num_labels is 1000000000"),
        ({**BERT, "hidden_size": "abc"}, "'hidden_size' expected int, got str"),
        ({**BERT, "hidden_size": None}, "'hidden_size' expected int, got NoneType"),
        ({**BERT, "hidden_size": [64]}, "'hidden_size' expected int, got list"),
        ({**BERT, "hidden_size": True}, "hidden_size is True; expected a whole number"),
        ({**BERT, "hidden_size": -64}, "hidden_size is -64; expected no negative number"),
        ({**BERT, "num_hidden_layers": -1}, "num_hidden_layers is -1; expected no negative number"),
        ({**BERT, "num_attention_heads": 0}, "num_attention_heads is 0"),
        ({**BERT, "num_attention_heads": 7}, "is not a multiple of the number of attention heads (7)"),
        ({**BERT, "hidden_act": "nope"}, "nope"),
        ({**BERT, "id2label": 3}, "'int' object has no attribute 'items'"),
        ({**BERT, "dtype": "abc"}, "abc"),
        ({"model_type": "resnet", "depths": [3, 4, 10**7, 3]}, "depths is [3, 4, 10000000, 3]; expected at most 1000"),
        ({**UNET, "layers_per_block": 10**7}, "layers_per_block is 10000000; expected at most 1000"),
        ({**UNET, "sample_size": "abc"}, "sample_size is 'abc'; expected a whole number"),
        ({**UNET, "in_channels": -4}, "in_channels is -4; expected no negative number"),
        ({**UNET, "block_out_channels": "abc"}, "model/config.json"),
        ({**UNET, "block_out_channels": [10**9, 10**9]}, "block_out_channels is [1000000000, 1000000000]"),
    ],
    ids=lambda value: "",
)
def test_absurd_fields_are_refused_by_name_within_seconds(fields, named, config):
    before = time.monotonic()
    message = refused(config(fields))

    assert named in message and "config.json" in message
    assert time.monotonic() - before < 10


def test_a_model_of_too_many_modules_or_parameters_is_not_built_to_the_end(config):
    before = time.monotonic()
    many = line_of(built_within, "mine", lambda: torch.nn.ModuleList(torch.nn.Identity() for _ in range(10**6)))
    wide = line_of(bsmodel.trace, bsmodel.Workload.named(config({**BERT, "vocab_size": 1 << 23, "hidden_size": 1 << 23, "num_attention_heads": 1})))

    assert "more than 100,000 modules" in many
    assert "more than 10,000,000,000,000 parameters" in wide
    assert time.monotonic() - before < 60


# -- diffusers -----------------------------------------------------------------------------------------------------------------------------


def test_networks_of_diffusers_are_recorded(config, a100):
    plain = {**UNET, "_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "in_channels": 3}
    del plain["cross_attention_dim"]
    larger = {**UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 40}
    workload, _, batch = built(config(UNET), image_size=256)

    assert batch["sample"].shape == (2, 4, 32, 32) and workload.remarks == ("latents of 32 x 32 and contexts of 77 tokens",)
    assert bsmodel.trace(bsmodel.Workload.named(config({**plain, "out_channels": 3})), None, a100).parameter_count > 0
    assert bsmodel.trace(bsmodel.Workload.named(config(larger)), None, a100).parameter_count > 0
    assert built(config(larger))[2]["text_embeds"].shape == (2, 40)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PNDMScheduler", "is of PNDMScheduler, which is no network; expected one of UNet2DConditionModel"),
        ("StableDiffusionPipeline", "is of StableDiffusionPipeline, which is no network"),
        ("AutoencoderKL", "is of AutoencoderKL; expected one of UNet2DConditionModel"),
        ("UNet2DConditionModle", "unknown diffusers class 'UNet2DConditionModle'; nearest: UNet2DConditionModel"),
        (3, "_class_name is 3; expected the name of a class"),
    ],
)
def test_what_is_no_network_of_diffusers_is_refused_by_name(name, reason, config):
    assert reason in refused(config({**UNET, "_class_name": name}))
