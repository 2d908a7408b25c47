# SPDX-License-Identifier: Apache-2.0
"""What a transformers model is trained to do, and the batch that goes with it: by transformers' own tables of architectures."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.units import shown
from bsmodel.workloads.batches import Shape

Tensors = dict[str, tuple[Shape, str]]
Asked = Mapping[str, int]  # the options `seq_len` and `image_size` that are given
RAW_SECONDS, SAMPLING_RATE = 10, 16_000
LETTERS_PER_SECOND = 15  # assumed: English read aloud, some 160 words a minute, 5.6 letters and spaces each
_OWN = "write a Workload in a Python file and give FILE.py:NAME"


@dataclass(frozen=True)
class Made:
    """The tensors of a sample, what is to be said of them, and how many tokens a sample has."""

    tensors: Tensors
    remarks: tuple[str, ...] = ()
    tokens_per_sample: int = 1


@dataclass(frozen=True)
class Head:
    """A task by transformers' table `MODEL_FOR_{table}_MAPPING_NAMES`: `make(config, cls, asked)` gives its batches, and `option` is its only one."""

    title: str
    table: str
    option: str
    make: Callable[[Any, Any, Asked], Made]


# -- tokens --------------------------------------------------------------------------------------------------------------------------------


def positions(config: Any, cls: Any) -> int | None:
    """How many tokens a model has positions for; None where it counts distances only."""
    names = "max_position_embeddings n_positions max_seq_len max_encoder_position_embeddings max_decoder_position_embeddings".split()
    found = [getattr(part, name, None) for part in (config, getattr(config, "text_config", None)) for name in names]
    most = min((limit for limit in found if isinstance(limit, int) and limit > 0), default=None)
    source = inspect.getsource(sys.modules[cls.__module__])
    if most is not None and re.search(r"position_embeddings = nn\.Embedding\([^)]*padding_idx", source):  # as in RoBERTa, positions begin after padding's
        most -= (config.pad_token_id or 0) + 1
    return most


def _length(config: Any, cls: Any, asked: Asked) -> tuple[int, tuple[str, ...]]:
    most, length = positions(config, cls), asked.get("seq_len")
    if length is not None:
        if most is not None and length > most:
            raise InvalidInputError(f"seq-len {length} is beyond the model's {most} positions; give at most that")
        return length, ()
    if most is None:
        return 512, ("sequences of 512 tokens: the model has no longest one, and none was asked for",)
    return min(2048, most), (f"sequences of 2048 tokens, fewer than the model's {most} positions: none were asked for",) if most > 2048 else ()


def _tokens(config: Any, cls: Any, asked: Asked, labels: Tensors | None = None, padded: bool = True) -> Made:
    """Token ids, with a mask where batches are padded, and labels: one for each token, or those that are given."""
    length, remarks = _length(config, cls, asked)
    padded = padded and "attention_mask" in inspect.signature(cls.forward).parameters
    mask: Tensors = {"attention_mask": ((length,), "long")} if padded else {}
    tensors: Tensors = {"input_ids": ((length,), "long"), **mask, **(labels or {"labels": ((length,), "long")})}
    return Made(tensors, remarks, length)


def _running_text(config: Any, cls: Any, asked: Asked) -> Made:
    return _tokens(config, cls, asked, padded=False)


def _translation(config: Any, cls: Any, asked: Asked) -> Made:
    if cls.input_modalities not in ("text", ("text",), ["text"]):
        raise InvalidInputError(f"{cls.__name__} takes more than text, which no batch is known for; {_OWN}")
    return _tokens(config, cls, asked, padded=False)


def _classes(config: Any) -> Tensors:
    """One label a sample: a class, a number for each class, or a number."""
    kind = getattr(config, "problem_type", None) or ("regression" if config.num_labels == 1 else "single_label_classification")
    if kind == "single_label_classification":
        return {"labels": ((), "long")}
    return {"labels": (() if config.num_labels == 1 and kind == "regression" else (config.num_labels,), "float32")}


def _classified_text(config: Any, cls: Any, asked: Asked) -> Made:
    remarks: tuple[str, ...] = ()
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        ends = getattr(text, "eos_token_id", None)
        text.pad_token_id = ends[0] if isinstance(ends, (list, tuple)) and ends else ends if isinstance(ends, int) else 0
        remarks = (f"pad_token_id {text.pad_token_id}: the configuration has none, and a classifier finds the end of a sample by it",)
    made = _tokens(config, cls, asked, _classes(config))
    return Made(made.tensors, remarks + made.remarks, made.tokens_per_sample)


def _answers(config: Any, cls: Any, asked: Asked) -> Made:
    return _tokens(config, cls, asked, {"start_positions": ((), "long"), "end_positions": ((), "long")})


# -- images --------------------------------------------------------------------------------------------------------------------------------


def _pixels(config: Any, asked: Asked, otherwise: int) -> tuple[int, tuple[int, int], tuple[str, ...]]:
    """Channels, height and width; a model whose positions are those of one size of images is built for the one asked for."""
    part = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)
    own, side = getattr(part, "image_size", None), asked.get("image_size")
    remarks: tuple[str, ...] = ()
    if side is not None and own is not None and own not in (side, [side, side], (side, side)):
        part.image_size = [side, side] if isinstance(own, (list, tuple)) else side
        remarks = (f"image_size {side} in place of the configuration's {shown(own)}",)
    if own is None and side is None:
        remarks = (f"images of {otherwise} x {otherwise}: the configuration names no size, and none was asked for",)
    size = side or own or otherwise
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(part, "num_channels", None) or 3, (height, width), remarks


def _images(config: Any, cls: Any, asked: Asked) -> Made:
    channels, size, remarks = _pixels(config, asked, otherwise=224)
    return Made({"pixel_values": ((channels, *size), "float32"), **_classes(config)}, remarks)


def _segmented(config: Any, cls: Any, asked: Asked) -> Made:
    channels, size, remarks = _pixels(config, asked, otherwise=512)
    return Made({"pixel_values": ((channels, *size), "float32"), "labels": (size, "long")}, remarks)


# -- sound ---------------------------------------------------------------------------------------------------------------------------------


def _wave(config: Any, cls: Any, asked: Asked) -> tuple[int, tuple[str, ...]]:
    """Values of a waveform, for the models that take one."""
    if cls.main_input_name != "input_values" or not hasattr(config, "conv_stride"):
        raise InvalidInputError(f"{cls.__name__} takes {cls.main_input_name}, which no batch is known for; {_OWN}")
    length = asked.get("seq_len", RAW_SECONDS * SAMPLING_RATE)
    return length, (f"{length / SAMPLING_RATE:g} s of sound, {length} values at {SAMPLING_RATE / 1000:g} kHz; seq-len asks for others",)


def _classified_sound(config: Any, cls: Any, asked: Asked) -> Made:
    if config.model_type in ("audio-spectrogram-transformer", "whisper"):
        if "seq_len" in asked:
            raise InvalidInputError(f"{cls.__name__} takes spectrograms of one length; it has no option 'seq-len'")
        whisper = config.model_type == "whisper"
        shape = (config.num_mel_bins, 2 * config.max_source_positions) if whisper else (config.max_length, config.num_mel_bins)
        return Made({cls.main_input_name: (shape, "float32"), **_classes(config)})
    length, remarks = _wave(config, cls, asked)
    return Made({"input_values": ((length,), "float32"), "labels": ((), "long")}, remarks)


def _spelled_sound(config: Any, cls: Any, asked: Asked) -> Made:
    """Labels are letters, none of them the blank: how many there are decides the size of the loss's buffers."""
    length, remarks = _wave(config, cls, asked)
    letters = max(1, length * LETTERS_PER_SECOND // SAMPLING_RATE)
    kind = "long" if config.pad_token_id else "ones"  # the blank is the padding token
    made: Tensors = {"input_values": ((length,), "float32"), "labels": ((letters,), kind)}
    return Made(made, (*remarks, f"{letters} letters a sample, {LETTERS_PER_SECOND} a second"))


def _speech_to_text(config: Any, cls: Any, asked: Asked) -> Made:
    if config.model_type != "whisper":
        raise InvalidInputError(f"{cls.__name__}: of models from speech to text, batches are known for whisper's alone; {_OWN}")
    most, length = config.max_target_positions, asked.get("seq_len")
    if length is not None and length > most:
        raise InvalidInputError(f"seq-len {length} is beyond the model's {most} positions; give at most that")
    sound: Shape = (config.num_mel_bins, 2 * config.max_source_positions)
    remarks = () if length else (f"{most} tokens of text a sample, the model's longest; seq-len asks for others",)
    return Made({"input_features": (sound, "float32"), "labels": ((length or most,), "long")}, remarks)


# In the order in which a head is taken where a configuration names none: the one that a model is pretrained with first.
HEADS = (
    Head("sequence to sequence", "SEQ_TO_SEQ_CAUSAL_LM", "seq_len", _translation),
    Head("speech to text", "SPEECH_SEQ_2_SEQ", "seq_len", _speech_to_text),
    Head("masked language model", "MASKED_LM", "seq_len", _tokens),
    Head("causal language model", "CAUSAL_LM", "seq_len", _running_text),
    Head("image classification", "IMAGE_CLASSIFICATION", "image_size", _images),
    Head("semantic segmentation", "SEMANTIC_SEGMENTATION", "image_size", _segmented),
    Head("audio classification", "AUDIO_CLASSIFICATION", "seq_len", _classified_sound),
    Head("speech recognition (CTC)", "CTC", "seq_len", _spelled_sound),
    Head("sequence classification", "SEQUENCE_CLASSIFICATION", "seq_len", _classified_text),
    Head("token classification", "TOKEN_CLASSIFICATION", "seq_len", _tokens),
    Head("question answering", "QUESTION_ANSWERING", "seq_len", _answers),
)
_REFUSED = {
    "OBJECT_DETECTION": "object detection pairs boxes with objects by values, which a recording does not have",
    "UNIVERSAL_SEGMENTATION": "it pairs masks with objects by values, which a recording does not have",
    "INSTANCE_SEGMENTATION": "it pairs masks with objects by values, which a recording does not have",
    "IMAGE_SEGMENTATION": "it pairs masks with objects by values, which a recording does not have",
    "IMAGE_TEXT_TO_TEXT": "how many tokens an image becomes is a matter of its processor",
}


def _table(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(importlib.import_module("transformers.models.auto.modeling_auto"), f"MODEL_FOR_{name}_MAPPING_NAMES")
    return found


def _classes_of(table: str, model_type: str) -> tuple[str, ...]:
    found = _table(table).get(model_type, ())
    return (found,) if isinstance(found, str) else tuple(found)


def head_of(architectures: Any, model_type: str, where: str) -> tuple[Head, str, tuple[str, ...]]:
    """The head of a configuration, the class that has it, and what is to be said of the choice.

    Raises `InvalidInputError` for a class without a head that can be recorded, `UnknownNameError` for one that is not of this model type.
    """
    known = {name: head for head in reversed(HEADS) for name in _classes_of(head.table, model_type)}
    if architectures is None:
        for head in HEADS:
            for name in _classes_of(head.table, model_type)[:1]:
                return head, name, (f"{name} ({head.title}): the configuration names no architecture, and transformers has this one for {model_type!r}",)
        raise InvalidInputError(f"{where} names no architecture, and {model_type!r} has none of those that can be recorded: {_titles()}; or {_OWN}")
    if not isinstance(architectures, list) or not architectures or not all(isinstance(name, str) for name in architectures):
        raise InvalidInputError(f"{where}: architectures is {shown(architectures)}; expected the name of a class in a list, e.g. {[*known][:1]}")
    name = architectures[0]
    more = (f"{name}, the first of the architectures {', '.join(architectures)}",) if len(architectures) > 1 else ()
    if name in known:
        return known[name], name, more
    reason = next((reason for table, reason in _REFUSED.items() if name in _classes_of(table, model_type)), None)
    everywhere = {name for head in HEADS for names in _table(head.table).values() for name in ([names] if isinstance(names, str) else names)}
    if reason is None and (name in everywhere or not hasattr(importlib.import_module("transformers"), name)):
        raise UnknownNameError(f"architecture of {model_type!r}", name, known)
    raise InvalidInputError(f"{where}: {name} cannot be recorded{f': {reason}' if reason else ''}; heads that can: {_titles()}; or {_OWN}")


def _titles() -> str:
    return ", ".join(sorted(head.title for head in HEADS))


def made(head: Head, config: Any, name: str, asked: Asked) -> Made:
    """The batches of a head; raises `InvalidInputError` for an option it does not take, or a model that takes no such batch."""
    cls = getattr(importlib.import_module("transformers"), name)
    for option in asked:
        if option != head.option:
            raise InvalidInputError(f"{name} has no option {option.replace('_', '-')!r}; it takes: attention, {head.option}")
    found = head.make(config, cls, asked)
    taken = inspect.signature(cls.forward).parameters
    if missing := [given for given in found.tensors if given not in taken]:
        raise InvalidInputError(f"{name} takes no {missing[0]}, so its loss is not its own; {_OWN}")
    return found
