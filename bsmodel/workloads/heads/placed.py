# SPDX-License-Identifier: Apache-2.0
"""Text in which some tokens stand for an image or for sound, as many as the model makes of it."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from bsmodel.errors import InvalidInputError
from bsmodel.workloads.batches import batch_of, with_placeholders
from bsmodel.workloads.heads.counting import tokens_of
from bsmodel.workloads.heads.made import OWN, Asked, Made, Tensors
from bsmodel.workloads.heads.text import length_of
from bsmodel.workloads.libraries import transformers_model

WORDS = 8  # the fewest tokens of text that go with an image or with sound
_CALLED = {"image": "an image", "audio": "sound"}


def placed(config: Any, cls: Any, asked: Asked, given: Tensors, kind: str, said: str) -> Made:
    """Text with one image or some sound, which is given: with as many placeholders as the model makes tokens of it."""
    token = placeholder(config, cls, kind)
    count = count_of(config, cls, {**given, **around(config, cls, (token,), WORDS)}, kind)
    length, remarks = room(config, cls, asked, count, kind)
    tensors: Tensors = {**given, **around(config, cls, (token,) * count, length), "labels": ((length,), "long")}
    return Made(tensors, (f"{said} a sample, {count} of its {length} tokens", *remarks), length)


def placeholder(config: Any, cls: Any, kind: str) -> int:
    """The token that stands for an "image", or for "audio"."""
    for name in (f"{kind}_token_id", f"{kind}_token_index"):
        if isinstance(token := getattr(config, name, None), int):
            return token
    raise InvalidInputError(f"{cls.__name__}: its configuration has no {kind}_token_id, the token that stands for {_CALLED[kind]}; {OWN}")


def _word(config: Any) -> int:
    """A token of no special meaning."""
    parts = (config, config.get_text_config())
    named = [value for part in parts for name, value in vars(part).items() if name.endswith(("_token_id", "_token_index"))]
    special = {token for value in named for token in (value if isinstance(value, (list, tuple)) else [value])}  # a model may have several ends
    return next(token for token in range(len(special) + 1) if token not in special)


def around(config: Any, cls: Any, placeholders: tuple[int, ...], length: int) -> Tensors:
    """Token ids with placeholders, and what goes with them: a mask, and which of them are placeholders."""
    taken = inspect.signature(cls.forward).parameters
    start = (config.vision_start_token_id,) if isinstance(getattr(config, "vision_start_token_id", None), int) else ()
    tensors: Tensors = {"input_ids": functools.partial(with_placeholders, length, _word(config), (*start, *placeholders))}
    if "attention_mask" in taken:
        tensors["attention_mask"] = ((length,), "long")
    if "qformer_input_ids" in taken:  # of InstructBLIP: the text without the image, as far as its transformer of queries reads
        read = min(length - len(placeholders), config.qformer_config.max_position_embeddings)
        tensors |= {"qformer_input_ids": ((read,), "long"), "qformer_attention_mask": ((read,), "long")}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in taken:
            tensors[name] = functools.partial(with_placeholders, length, 0, (0,) * len(start) + (1,) * len(placeholders))
    return tensors


def count_of(config: Any, cls: Any, tensors: Tensors, kind: str) -> int:
    """How many tokens the model makes of the image or the sound of a sample."""
    import torch

    with torch.device("meta"):
        model = transformers_model(config, cls.__name__)()
    return tokens_of(model, batch_of(**tensors)(1), kind)


def room(config: Any, cls: Any, asked: Asked, count: int, kind: str) -> tuple[int, tuple[str, ...]]:
    """How long a sample is, which has room for its image or sound and for some text."""
    length, remarks = length_of(config, cls, asked)
    if length >= count + WORDS:
        return length, remarks
    if "seq_len" in asked:
        raise InvalidInputError(f"seq-len {length} has no room for the {count} tokens of {_CALLED[kind]}; give at least {count + WORDS}")
    return count + 512, (f"sequences of {count + 512} tokens: {_CALLED[kind]} takes {count}, and none were asked for",)
