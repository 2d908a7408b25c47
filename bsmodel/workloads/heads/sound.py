# SPDX-License-Identifier: Apache-2.0
"""Batches of sound: waveforms and spectrograms."""

from __future__ import annotations

from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.workloads.batches import Shape
from bsmodel.workloads.heads.made import OWN, Asked, Made, Tensors
from bsmodel.workloads.heads.text import classes

RAW_SECONDS, SAMPLING_RATE = 10, 16_000
LETTERS_PER_SECOND = 15  # assumed: English read aloud, some 160 words a minute, 5.6 letters and spaces each


def _wave(config: Any, cls: Any, asked: Asked) -> tuple[int, tuple[str, ...]]:
    """Values of a waveform, for the models that take one."""
    if cls.main_input_name != "input_values" or not hasattr(config, "conv_stride"):
        raise InvalidInputError(f"{cls.__name__} takes {cls.main_input_name}, which no batch is known for; {OWN}")
    length = asked.get("seq_len", RAW_SECONDS * SAMPLING_RATE)
    return length, (f"{length / SAMPLING_RATE:g} s of sound, {length} values at {SAMPLING_RATE / 1000:g} kHz; seq-len asks for others",)


def classified_sound(config: Any, cls: Any, asked: Asked) -> Made:
    if config.model_type in ("audio-spectrogram-transformer", "whisper"):
        if "seq_len" in asked:
            raise InvalidInputError(f"{cls.__name__} takes spectrograms of one length; it has no option 'seq-len'")
        whisper = config.model_type == "whisper"
        shape = (config.num_mel_bins, 2 * config.max_source_positions) if whisper else (config.max_length, config.num_mel_bins)
        return Made({cls.main_input_name: (shape, "float32"), **classes(config)})
    length, remarks = _wave(config, cls, asked)
    return Made({"input_values": ((length,), "float32"), "labels": ((), "long")}, remarks)


def spelled_sound(config: Any, cls: Any, asked: Asked) -> Made:
    """Labels are letters, none of them the blank: how many there are decides the size of the loss's buffers."""
    length, remarks = _wave(config, cls, asked)
    letters = max(1, length * LETTERS_PER_SECOND // SAMPLING_RATE)
    kind = "long" if config.pad_token_id else "ones"  # the blank is the padding token
    made: Tensors = {"input_values": ((length,), "float32"), "labels": ((letters,), kind)}
    return Made(made, (*remarks, f"{letters} letters a sample, {LETTERS_PER_SECOND} a second"))


def speech_to_text(config: Any, cls: Any, asked: Asked) -> Made:
    if config.model_type != "whisper":
        raise InvalidInputError(f"{cls.__name__}: of models from speech to text, batches are known for whisper's alone; {OWN}")
    most, length = config.max_target_positions, asked.get("seq_len")
    if length is not None and length > most:
        raise InvalidInputError(f"seq-len {length} is beyond the model's {most} positions; give at most that")
    sound: Shape = (config.num_mel_bins, 2 * config.max_source_positions)
    remarks = () if length else (f"{most} tokens of text a sample, the model's longest; seq-len asks for others",)
    return Made({"input_features": (sound, "float32"), "labels": ((length or most,), "long")}, remarks)
