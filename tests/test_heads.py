# SPDX-License-Identifier: Apache-2.0
"""Heads: what a configuration is trained to do has a batch of its own, on which the model trains as it is, or is refused by name."""

import sys

import pytest
import torch

import bsmodel
from tests.test_configs import BERT, GPT2, LLAMA, SPEECH, T5, VIT, WHISPER, built, refused

transformers = pytest.importorskip("transformers")

SEGFORMER = {"model_type": "segformer", "depths": [1, 1, 1, 1], "num_labels": 5}
GEMMA4 = {
    "model_type": "gemma4_text",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 100,
    "vocab_size_per_layer_input": 100,
    "hidden_size_per_layer_input": 8,
    "max_position_embeddings": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "per_layer_config": {"1": {"head_dim": 32}},
}
PROPHETNET = {
    "model_type": "prophetnet",
    "hidden_size": 32,
    "max_position_embeddings": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 100,
}
HEADS = {
    "BertForMaskedLM": (BERT, {"labels": (2, 64)}),
    "BertForTokenClassification": (BERT, {"labels": (2, 64)}),
    "BertForQuestionAnswering": (BERT, {"start_positions": (2,), "end_positions": (2,)}),
    "BertForSequenceClassification": (BERT, {"labels": (2,)}),
    "BertForMultipleChoice": (BERT, {"input_ids": (2, 4, 64), "labels": (2,)}),
    "BertForNextSentencePrediction": (BERT, {"labels": (2,)}),
    "BertForPreTraining": (BERT, {"labels": (2, 64), "next_sentence_label": (2,)}),
    "GPT2LMHeadModel": (GPT2, {"labels": (2, 64)}),
    "GPT2ForSequenceClassification": (GPT2, {"labels": (2,)}),
    "GPT2ForTokenClassification": (GPT2, {"labels": (2, 64)}),
    "LlamaForSequenceClassification": (LLAMA, {"labels": (2,)}),
    "T5ForConditionalGeneration": (T5, {"labels": (2, 512)}),
    "ViTForImageClassification": (VIT, {"pixel_values": (2, 3, 32, 32), "labels": (2,)}),
    "SegformerForSemanticSegmentation": (SEGFORMER, {"pixel_values": (2, 3, 512, 512), "labels": (2, 512, 512)}),
    "Wav2Vec2ForSequenceClassification": (SPEECH, {"input_values": (2, 160_000), "labels": (2,)}),
    "Wav2Vec2ForCTC": (SPEECH, {"input_values": (2, 160_000), "labels": (2, 150)}),
    "WhisperForConditionalGeneration": (WHISPER, {"input_features": (2, 80, 3000), "labels": (2, 448)}),
}


@pytest.mark.parametrize("architecture", HEADS)
def test_every_head_that_people_train_is_recorded_as_it_is(architecture, config, a100):
    fields, shapes = HEADS[architecture]
    workload, model, batch = built(config({**fields, "architectures": [architecture]}))

    assert type(model).__name__ == architecture and workload.name == "model"
    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    assert bsmodel.trace(workload, workload.training, a100).parameter_count == sum(parameter.numel() for parameter in model.parameters())


YOLOS = {**VIT, "model_type": "yolos", "image_size": [32, 64], "num_detection_tokens": 10}
MASKFORMER = {
    "model_type": "maskformer",
    "backbone_config": {
        "model_type": "swin",
        "embed_dim": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "out_indices": [1, 2, 3, 4],
        "window_size": 4,
    },
    "decoder_config": {"model_type": "detr", "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "num_queries": 10, "decoder_ffn_dim": 32},
    "fpn_feature_size": 32,
    "mask_feature_size": 32,
}


@pytest.mark.parametrize(
    ("fields", "architecture", "options", "remarks"),
    [
        (YOLOS, "YolosForObjectDetection", {}, ()),
        (MASKFORMER, "MaskFormerForInstanceSegmentation", {"image_size": 64}, ()),
        (MASKFORMER, "MaskFormerForInstanceSegmentation", {}, ("images of 800 x 1066: the configuration names no size, and none was asked for",)),
    ],
    ids=["boxes", "masks", "size"],
)
def test_objects_in_images_are_trained_on(fields, architecture, options, remarks, config):
    pytest.importorskip("scipy")
    workload, model, batch = built(config({**fields, "architectures": [architecture]}), **options)
    height, width = batch["pixel_values"].shape[-2:]

    assert workload.remarks[:-1] == remarks and workload.remarks[-1] == "8 objects an image, as COCO's have on average"
    if "labels" in batch:
        assert [(target["class_labels"].shape, target["boxes"].shape) for target in batch["labels"]] == [((8,), (8, 4))] * 2
        assert len(set(map(tuple, batch["labels"][0]["boxes"].tolist()))) == 8
    else:
        assert [mask.shape for mask in batch["mask_labels"]] == [(8, height, width)] * 2 and (batch["mask_labels"][0].sum(0) == 1).all()
    if "image_size" in options or not remarks:
        workload.loss(cpu(model), batch)[0].backward()


def test_without_scipy_what_pairs_objects_by_it_is_refused(config, monkeypatch):
    assert transformers.YolosForObjectDetection.main_input_name == "pixel_values"  # its module has scipy where there is one
    monkeypatch.setitem(sys.modules, "scipy", None)

    assert "this model needs scipy, which cannot be imported" in refused(config({**YOLOS, "architectures": ["YolosForObjectDetection"]}))


SIGHT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
WORDS = {**{key: LLAMA[key] for key in LLAMA if key != "max_position_embeddings"}, "eos_token_id": [0, 2]}
LLAVA = {"model_type": "llava", "vision_config": {**SIGHT, "model_type": "clip_vision_model", "image_size": 32}, "text_config": WORDS, "image_token_index": 99}
PYRAMID = {**LLAVA, "model_type": "llava_next", "image_grid_pinpoints": [[64, 64]]}
QWEN = {
    "model_type": "qwen2_vl",
    "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8},
    "text_config": {**WORDS, "model_type": "qwen2_vl_text", "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
    **{"image_token_id": 99, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96},
}
SQUEEZED = {
    "model_type": "idefics3",
    "vision_config": {**SIGHT, "image_size": 32},
    "text_config": WORDS,
    "image_token_id": 99,
    "scale_factor": 2,
}
GEMMA = {
    "model_type": "gemma3",
    "vision_config": {**SIGHT, "image_size": 32},
    "text_config": {**WORDS, "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["full_attention"]},
    **{"mm_tokens_per_image": 4, "image_token_index": 99, "architectures": ["Gemma3ForConditionalGeneration"]},
}
FUYU = {
    **{"model_type": "fuyu", "image_token_id": 99, "patch_size": 30, "hidden_size": 64, "vocab_size": 100},
    "text_config": {**WORDS, "model_type": "persimmon"},
}


@pytest.mark.parametrize(
    ("fields", "options", "tokens", "shapes"),
    [
        (LLAVA, {}, 4 * 4, {"pixel_values": (2, 3, 32, 32)}),  # a vector for each patch of 8 x 8
        (PYRAMID, {"image_size": 64}, 4 * 4 + 8 * (8 + 1), {"pixel_values": (2, 5, 3, 32, 32), "image_sizes": (2, 2)}),  # the whole, four tiles, ends of rows
        (QWEN, {"image_size": 64}, 8 * 8 // 4, {"pixel_values": (2 * 8 * 8, 3 * 2 * 8 * 8), "image_grid_thw": (2, 3)}),  # one for 2 x 2 patches
        (SQUEEZED, {}, 13 * 4 * 4 // 4, {"pixel_values": (2, 13, 3, 32, 32)}),  # the whole and 3 x 4 tiles, one for 2 x 2 patches
        (GEMMA, {}, 4, {"pixel_values": (2, 3, 32, 32)}),  # so many by the configuration, of a class that transformers has for text alone, too
        (FUYU, {}, 16 * 22, {"pixel_values": (2, 16 * 22, 30 * 30 * 3)}),  # one for each patch
    ],
    ids=["llava", "llava-next", "qwen2-vl", "idefics3", "gemma3", "fuyu"],
)
def test_an_image_becomes_as_many_tokens_as_the_model_makes_of_it(fields, options, tokens, shapes, config):
    workload, model, batch = built(config(fields), seq_len=tokens + 20, **options)
    side = options.get("image_size")

    assert f"one image of {f'{side} x {side}' if side else '480 x 640'} pixels a sample, {tokens} of its {tokens + 20} tokens" in workload.remarks
    assert (batch["input_ids"] == 99).sum(1).tolist() == [tokens] * 2 and batch["labels"].shape == batch["input_ids"].shape
    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    workload.loss(cpu(model), batch)[0].backward()


def test_an_image_of_one_value_has_its_bytes_on_the_device(config, a100):
    tape = bsmodel.trace(built(config(LLAVA))[0], gpu=a100)
    batch = [int(size) for size, category in zip(tape.per_sample_bytes, tape.categories, strict=True) if category == "batch"]
    assert 3 * 32 * 32 * 4 in batch


def test_images_and_texts_are_held_against_one_another(config, a100):
    parts = {"vision_config": {**SIGHT, "image_size": 32}, "text_config": {**SIGHT, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 2}}
    workload, model, batch = built(config({"model_type": "clip", **parts, "architectures": ["CLIPModel"], "projection_dim": 32}))
    assert batch["pixel_values"].shape == (2, 3, 32, 32) and batch["input_ids"].shape == (2, 16) and batch["return_loss"] is True
    workload.loss(cpu(model), batch)[0].backward()
    assert bsmodel.trace(workload, gpu=a100).per_pair_bytes.any()


def test_a_sample_has_room_for_its_image(config):
    folder = config(LLAVA)

    assert refused(folder, seq_len=20) == "seq-len 20 has no room for the 16 tokens of an image; give at least 24"
    narrow = {**QWEN, "vision_config": {**QWEN["vision_config"], "hidden_size": 32}}
    assert "features of image have 32 values, embeddings of tokens 64; expected as many" in refused(config(narrow, "narrow"))


LISTENER = {**SPEECH, "vocab_size": 50, "model_type": "wav2vec2-bert", "feature_projection_input_dim": 32, "add_adapter": False}
TRANSCRIBER = {
    **{"model_type": "speech_to_text", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "conv_channels": 16, "input_feat_per_channel": 40, "vocab_size": 50},
}
EAR = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 40}
VOXTRAL = {"model_type": "voxtral", "audio_config": EAR, "text_config": {**WORDS, "num_key_value_heads": 2, "head_dim": 32}, "audio_token_id": 99}


@pytest.mark.parametrize(
    ("fields", "architecture", "options", "shapes", "said"),
    [
        (
            LISTENER,
            "Wav2Vec2BertForCTC",
            {"seq_len": 16_000},
            {"input_features": (2, 49, 32), "labels": (2, 15)},
            "15 letters a sample",
        ),  # two of 10 ms a frame
        (TRANSCRIBER, "Speech2TextForConditionalGeneration", {}, {"input_features": (2, 998, 40), "labels": (2, 40)}, "40 tokens of text a sample, 4 a second"),
        (VOXTRAL, "VoxtralForConditionalGeneration", {"seq_len": 400}, {"input_features": (2, 40, 3000)}, "10 s of sound a sample, 375 of its 400 tokens"),
    ],
    ids=["ctc", "speech-to-text", "text-with-sound"],
)
def test_sound_is_what_the_feature_extractor_makes_of_it(fields, architecture, options, shapes, said, config):
    workload, model, batch = built(config({**fields, "architectures": [architecture]}), **options)

    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    assert any(remark.startswith(said) for remark in workload.remarks)
    workload.loss(cpu(model), batch)[0].backward()


def cpu(model):
    """A model with weights: of those that are built for a recording, none are initialized."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def test_what_is_classified_by_the_end_of_a_text_has_one(config, a100):
    """T5's and BART's classifiers ask where each sample ends."""
    workload, model, batch = built(config({**T5, "architectures": ["T5ForSequenceClassification"], "eos_token_id": 1}))

    assert (batch["input_ids"] == 1).sum(-1).tolist() == [1, 1]
    workload.loss(cpu(model), batch)[0].backward()
    assert bsmodel.trace(workload, None, a100).remarks == workload.remarks


LONGFORMER = {**BERT, "model_type": "longformer", "attention_window": [16], "sep_token_id": 2}
PATCHED = {"model_type": "siglip2", "vision_config": {**SIGHT, "num_patches": 16}, "text_config": WORDS}


def test_a_question_is_told_from_its_text_where_the_model_asks(config, a100):
    workload, _, batch = built(config({**LONGFORMER, "architectures": ["LongformerForQuestionAnswering"]}))
    assert torch.nonzero(batch["input_ids"] == 2)[:, 1].tolist() == [16, 17, batch["input_ids"].size(1) - 1] * 2
    assert "questions of 16 tokens, which see the whole text" in bsmodel.trace(workload, gpu=a100).remarks


def test_images_of_any_form_are_patches_with_their_places(config, a100):
    workload, _, batch = built(config({**PATCHED, "architectures": ["Siglip2ForImageClassification"]}))
    assert batch["pixel_values"].shape == (2, 16, 192) and batch["spatial_shapes"].tolist() == [[3, 4]] * 2
    assert "images of 480 x 640 pixels, in at most 16 patches" in bsmodel.trace(workload, gpu=a100).remarks


@pytest.mark.parametrize(("fields", "architecture", "longest"), [(WHISPER, "WhisperForCausalLM", 448), (PROPHETNET, "ProphetNetForCausalLM", 30)])
def test_texts_are_as_long_as_there_are_positions(fields, architecture, longest, config):
    workload, model, batch = built(config({**fields, "architectures": [architecture]}))

    assert batch["input_ids"].shape == (2, longest)
    workload.loss(cpu(model), batch)[0].backward()


def test_layers_may_differ(config, a100):
    """Gemma 4's configuration says for some layers what others have not."""
    workload, _, _ = built(config({**GEMMA4, "architectures": ["Gemma4ForCausalLM"]}))

    assert bsmodel.trace(workload, None, a100).parameter_count > 0


def test_labels_are_of_the_kind_that_the_configuration_says(config, a100):
    classifier = {**BERT, "architectures": ["BertForSequenceClassification"]}
    several, _, labels = built(config({**classifier, "problem_type": "multi_label_classification", "num_labels": 5}))
    number, _, values = built(config({**classifier, "num_labels": 1}))

    assert (labels["labels"].shape, labels["labels"].is_floating_point()) == ((2, 5), True)
    assert (values["labels"].shape, values["labels"].is_floating_point()) == ((2,), True)
    assert bsmodel.trace(several, None, a100).remarks == bsmodel.trace(number, None, a100).remarks == ()


@pytest.mark.parametrize(
    ("fields", "architecture"),
    [
        (BERT, "BertForMaskedLM"),
        (GPT2, "GPT2LMHeadModel"),
        (T5, "T5ForConditionalGeneration"),
        (VIT, "ViTForImageClassification"),
        (SPEECH, "Wav2Vec2ForSequenceClassification"),
    ],
)
def test_without_architectures_the_head_is_the_one_of_transformers_and_is_named(fields, architecture, config):
    workload, model, _ = built(config(fields))

    assert type(model).__name__ == architecture
    assert any(remark.startswith(architecture) and "names no architecture" in remark for remark in workload.remarks)


@pytest.mark.parametrize(
    ("fields", "architectures", "reason"),
    [
        ({"model_type": "lxmert"}, ["LxmertForPreTraining"], "is pretrained with what no batch is known for"),
        ({"model_type": "wav2vec2"}, ["Wav2Vec2ForPreTraining"], "is pretrained with what no batch is known for"),
        (BERT, ["BertModel"], "BertModel cannot be recorded; heads that can: "),
        (BERT, ["BertForTokenClasification"], "unknown architecture of 'bert' 'BertForTokenClasification'; nearest: BertForTokenClassification"),
        (BERT, ["RobertaForMaskedLM"], "unknown architecture of 'bert' 'RobertaForMaskedLM'; nearest: BertForMaskedLM"),
        (BERT, "BertForMaskedLM", "architectures is 'BertForMaskedLM'; expected the name of a class in a list"),
        (BERT, [], "architectures is []; expected the name of a class in a list"),
        (BERT, [3], "architectures is [3]; expected the name of a class in a list"),
        ({"model_type": "chameleon"}, ["ChameleonForConditionalGeneration"], "its configuration has no image_token_id"),
        ({"model_type": "deit"}, ["DeiTForImageClassificationWithTeacher"], "takes no labels"),
        ({"model_type": "dia"}, ["DiaForConditionalGeneration"], "its configuration has no audio_token_id"),
        ({"model_type": "bertt"}, None, "unknown model_type 'bertt'; nearest: bert"),
        ({"model_type": 3}, None, "model_type is 3; expected the name of a model type"),
    ],
)
def test_other_heads_are_refused_by_name(fields, architectures, reason, config):
    assert reason in refused(config({**fields, **({} if architectures is None else {"architectures": architectures})}))
