# SPDX-License-Identifier: Apache-2.0
"""What a transformers model is trained to do, by transformers' own tables of architectures."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bsmodel.errors import InvalidInputError, UnknownNameError
from bsmodel.units import shown
from bsmodel.workloads.heads import images, objects, pictured, sound, text
from bsmodel.workloads.heads.made import OWN, Asked, Made


@dataclass(frozen=True)
class Head:
    """A task by transformers' table `MODEL_FOR_{table}_MAPPING_NAMES`: `make(config, cls, asked)` gives its batches, and `options` are those it takes."""

    title: str
    table: str
    options: tuple[str, ...]
    make: Callable[[Any, Any, Asked], Made]


_TEXT = ("text", ("text",), ["text"])  # as classes of transformers say that they take nothing else


def _sequences(config: Any, cls: Any, asked: Asked) -> Made:
    """From text to text, or from text and sound."""
    return text.translation(config, cls, asked) if cls.input_modalities in _TEXT else sound.heard(config, cls, asked)


def _pretraining(config: Any, cls: Any, asked: Asked) -> Made:
    """What a model is pretrained with where that is its own: text, or images."""
    if cls.input_modalities in _TEXT and "labels" in inspect.signature(cls.forward).parameters:
        return text.pretrained(config, cls, asked)
    if cls.main_input_name == "pixel_values" and "noise" in inspect.signature(cls.forward).parameters:
        return images.drawn(config, cls, asked)
    raise InvalidInputError(f"{cls.__name__} is pretrained with what no batch is known for; {OWN}")


# In the order in which a head is taken where a configuration names none, or a class has several: the one that a model is pretrained with first,
# with images where it takes them.
HEADS = (
    Head("image and text to text", "IMAGE_TEXT_TO_TEXT", ("seq_len", "image_size"), pictured.described),
    Head("sequence to sequence", "SEQ_TO_SEQ_CAUSAL_LM", ("seq_len",), _sequences),
    Head("speech to text", "SPEECH_SEQ_2_SEQ", ("seq_len",), sound.speech_to_text),
    Head("masked language model", "MASKED_LM", ("seq_len",), text.tokens),
    Head("causal language model", "CAUSAL_LM", ("seq_len",), text.running_text),
    Head("image classification", "IMAGE_CLASSIFICATION", ("image_size",), pictured.classified),
    Head("semantic segmentation", "SEMANTIC_SEGMENTATION", ("image_size",), images.segmented),
    Head("object detection", "OBJECT_DETECTION", ("image_size",), objects.detected),
    Head("universal segmentation", "UNIVERSAL_SEGMENTATION", ("image_size",), objects.segmented),
    Head("instance segmentation", "INSTANCE_SEGMENTATION", ("image_size",), objects.segmented),
    Head("audio classification", "AUDIO_CLASSIFICATION", ("seq_len",), sound.classified_sound),
    Head("speech recognition (CTC)", "CTC", ("seq_len",), sound.spelled_sound),
    Head("speaker verification", "AUDIO_XVECTOR", ("seq_len",), sound.classified_sound),
    Head("sequence classification", "SEQUENCE_CLASSIFICATION", ("seq_len",), text.classified_text),
    Head("token classification", "TOKEN_CLASSIFICATION", ("seq_len",), text.tokens),
    Head("question answering", "QUESTION_ANSWERING", ("seq_len",), text.answers),
    Head("multiple choice", "MULTIPLE_CHOICE", ("seq_len",), text.chosen),
    Head("next sentence prediction", "NEXT_SENTENCE_PREDICTION", ("seq_len",), text.followed),
    Head("masked image modelling", "MASKED_IMAGE_MODELING", ("image_size",), images.masked),
    Head("video classification", "VIDEO_CLASSIFICATION", ("image_size",), images.filmed),
    Head("images and texts", "ZERO_SHOT_IMAGE_CLASSIFICATION", ("seq_len", "image_size"), pictured.contrasted),
    Head("pretraining", "PRETRAINING", ("seq_len", "image_size"), _pretraining),
)


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
        raise InvalidInputError(f"{where} names no architecture, and {model_type!r} has none of those that can be recorded: {_titles()}; or {OWN}")
    if not isinstance(architectures, list) or not architectures or not all(isinstance(name, str) for name in architectures):
        raise InvalidInputError(f"{where}: architectures is {shown(architectures)}; expected the name of a class in a list, e.g. {[*known][:1]}")
    name = architectures[0]
    more = (f"{name}, the first of the architectures {', '.join(architectures)}",) if len(architectures) > 1 else ()
    if name in known:
        return known[name], name, more
    everywhere = {name for head in HEADS for names in _table(head.table).values() for name in ([names] if isinstance(names, str) else names)}
    if name in everywhere or not hasattr(importlib.import_module("transformers"), name):
        raise UnknownNameError(f"architecture of {model_type!r}", name, known)
    raise InvalidInputError(f"{where}: {name} cannot be recorded; heads that can: {_titles()}; or {OWN}")


def _titles() -> str:
    return ", ".join(sorted(head.title for head in HEADS))


def made(head: Head, config: Any, name: str, asked: Asked) -> Made:
    """The batches of a head; raises `InvalidInputError` for an option it does not take, or a model that takes no such batch."""
    cls = getattr(importlib.import_module("transformers"), name)
    for option in asked:
        if option not in head.options:
            raise InvalidInputError(f"{name} has no option {option.replace('_', '-')!r}; it takes: {', '.join(('attention', *head.options))}")
    found = head.make(config, cls, asked)
    taken = inspect.signature(cls.forward).parameters
    if missing := [given for given in found.tensors if given not in taken]:
        raise InvalidInputError(f"{name} takes no {missing[0]}, so its loss is not its own; {OWN}")
    return found
