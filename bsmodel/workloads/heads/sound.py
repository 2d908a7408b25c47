# SPDX-License-Identifier: Apache-2.0
"""Batches of sound: waveforms, and what transformers' feature extractors make of them."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from bsmodel.errors import InvalidInputError, TooLongError
from bsmodel.workloads.batches import Shape, repeated
from bsmodel.workloads.faults import said
from bsmodel.workloads.heads.made import OWN, Asked, Made, Tensors
from bsmodel.workloads.heads.placed import around, placed, placeholder, room
from bsmodel.workloads.heads.text import classes

RAW_SECONDS, SAMPLING_RATE = 10, 16_000
LETTERS_PER_SECOND = 15  # assumed: English read aloud, some 160 words a minute, 5.6 letters and spaces each
TOKENS_PER_SECOND = 4  # assumed: the same, of 1.5 tokens a word
# Types of models whose feature extractor is not the one that transformers' table names, as their checkpoints say.
_EXTRACTORS = {"moonshine_streaming": "Wav2Vec2FeatureExtractor", "musicflamingo": "WhisperFeatureExtractor", "wav2vec2-bert": "SeamlessM4TFeatureExtractor"}
# What models call the mask of what an extractor gives, where `attention_mask` is that of their text.
_MASKS = ("input_features_mask", "feature_attention_mask", "padding_mask")


def classified_sound(config: Any, cls: Any, asked: Asked) -> Made:
    if config.model_type in ("audio-spectrogram-transformer", "whisper"):
        if "seq_len" in asked:
            raise InvalidInputError(f"{cls.__name__} takes spectrograms of one length; it has no option 'seq-len'")
        whisper = config.model_type == "whisper"
        shape = (config.num_mel_bins, 2 * config.max_source_positions) if whisper else (config.max_length, config.num_mel_bins)
        return Made({cls.main_input_name: (shape, "float32"), **classes(config)})
    sound, _, remarks = _sound(config, cls, asked)
    return Made({**sound, "labels": ((), "long")}, remarks)


def spelled_sound(config: Any, cls: Any, asked: Asked) -> Made:
    """Labels are letters, none of them the blank: how many there are decides the size of the loss's buffers."""
    sound, length, remarks = _sound(config, cls, asked)
    letters = max(1, length * LETTERS_PER_SECOND // SAMPLING_RATE)
    kind = "long" if config.pad_token_id else "ones"  # the blank is the padding token
    return Made({**sound, "labels": ((letters,), kind)}, (*remarks, f"{letters} letters a sample, {LETTERS_PER_SECOND} a second"))


def speech_to_text(config: Any, cls: Any, asked: Asked) -> Made:
    """What is said, of an encoder's sound; or text with tokens that stand for sound."""
    if "input_ids" in inspect.signature(cls.forward).parameters:
        return heard(config, cls, asked)
    most: int | None = getattr(config, "max_target_positions", None)
    length = asked.get("seq_len")
    if length is not None and most is not None and length > most:
        raise TooLongError(length, most)
    if config.model_type == "whisper":
        sound: Shape = (config.num_mel_bins, 2 * config.max_source_positions)
        remarks = () if length else (f"{most} tokens of text a sample, the model's longest; seq-len asks for others",)
        return Made({"input_features": (sound, "float32"), "labels": ((length or config.max_target_positions,), "long")}, remarks)
    tokens = RAW_SECONDS * TOKENS_PER_SECOND
    remarks = () if length else (f"{tokens} tokens of text a sample, {TOKENS_PER_SECOND} a second; seq-len asks for others",)
    return Made({**features(config, cls, RAW_SECONDS), "labels": ((length or tokens,), "long")}, (f"{RAW_SECONDS} s of sound a sample", *remarks))


def heard(config: Any, cls: Any, asked: Asked) -> Made:
    """Text with tokens that stand for sound, as many as the model makes of it."""
    given, said_of_it = features(config, cls, RAW_SECONDS), f"{RAW_SECONDS} s of sound"
    if config.model_type != "qwen2_audio":
        return placed(config, cls, asked, given, "audio", said_of_it)
    frames = RAW_SECONDS * 100  # of 10 ms: processing_qwen2_audio.py of transformers halves them, and again
    count = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    length, remarks = room(config, cls, asked, count, "audio")
    text = around(config, cls, (placeholder(config, cls, "audio"),) * count, length)
    return Made({**given, **text, "labels": ((length,), "long")}, (f"{said_of_it} a sample, {count} of its {length} tokens", *remarks), length)


def _sound(config: Any, cls: Any, asked: Asked) -> tuple[Tensors, int, tuple[str, ...]]:
    """Sound of as many values as are asked for: as it is, or what a feature extractor makes of it."""
    length = asked.get("seq_len", RAW_SECONDS * SAMPLING_RATE)
    remarks = (f"{length / SAMPLING_RATE:g} s of sound, {length} values at {SAMPLING_RATE / 1000:g} kHz; seq-len asks for others",)
    if cls.main_input_name == "input_values" and hasattr(config, "conv_stride"):
        return {"input_values": ((length,), "float32")}, length, remarks
    return features(config, cls, length / SAMPLING_RATE), length, remarks


def features(config: Any, cls: Any, seconds: float) -> Tensors:
    """What transformers' feature extractor of this type of model makes of so much sound: what the model takes of it, the last of a mask masked."""
    import numpy as np
    import torch

    known = importlib.import_module("transformers.models.auto.feature_extraction_auto").FEATURE_EXTRACTOR_MAPPING_NAMES
    name = _EXTRACTORS.get(config.model_type) or known.get(config.model_type)
    if name is None:
        raise InvalidInputError(f"{cls.__name__}: transformers has no feature extractor for {config.model_type!r}; {OWN}")
    try:
        extract = getattr(importlib.import_module("transformers"), name)
        made = extract(**_settings(config, extract))
        asked = inspect.signature(made.__call__).parameters
        mask = {"return_attention_mask": True} if "return_attention_mask" in asked else {}
        wave = np.zeros(int(seconds * made.sampling_rate), dtype=np.float32)
        with np.errstate(all="ignore"):  # some divide by how loud it is, and only shapes are looked at
            found = made(wave, sampling_rate=made.sampling_rate, return_tensors="pt", **mask)
    except Exception as error:
        raise InvalidInputError(f"{cls.__name__}: {name} of transformers makes nothing of sound here: {said(error)}") from None
    taken = inspect.signature(cls.forward).parameters
    fields: Tensors = {}
    for key, value in found.items():
        ours = next((mask for mask in _MASKS if mask in taken), "") if key == "attention_mask" and "input_ids" in taken else key
        if ours in taken and isinstance(value, torch.Tensor):
            if ours.endswith("mask"):
                value[..., -1] = 0
            fields[ours] = functools.partial(repeated, tuple(value.shape), None if value.is_floating_point() else value.tolist(), 0)
    return fields


def _settings(config: Any, extractor: Any) -> dict[str, int]:
    """How many bands of frequencies a configuration asks its feature extractor for; two frames are one where it says so of both together."""
    parts = [part for name in ("audio_config", "encoder_config", "audio_encoder_config") if (part := getattr(config, name, None)) is not None]
    names = ("num_mel_bins", "input_feat_per_channel", "n_mels")
    bands = next((found for part in (*parts, config) for name in names if isinstance(found := getattr(part, name, None), int)), None)
    if bands is None and isinstance(both := getattr(config, "feature_projection_input_dim", None), int):
        bands = both // 2
    taken = inspect.signature(extractor.__init__).parameters
    return {} if bands is None else {name: bands for name in ("feature_size", "num_mel_bins") if name in taken}
