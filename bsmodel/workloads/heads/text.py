# SPDX-License-Identifier: Apache-2.0
"""Batches of token ids."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from typing import Any

from bsmodel.errors import TooLongError
from bsmodel.workloads.batches import separated
from bsmodel.workloads.heads.made import Asked, Made, Tensors

CHOICES = 4  # as in SWAG (Zellers et al. 2018, arXiv 1808.05326)
QUESTION = 16  # tokens; the questions of SQuAD have 11 words on average (Rajpurkar et al. 2016, arXiv 1606.05250)
_SEPARATED = ("longformer",)  # tell the question from the text by three separators (modeling_longformer.py)
_AHEAD = {"prophetnet": 2}  # positions that text cannot take: padding's, and one that its predictions look ahead (modeling_prophetnet.py)


def positions(config: Any, cls: Any) -> int | None:
    """How many tokens a model has positions for; None where it counts distances only."""
    names = "max_position_embeddings n_positions max_seq_len max_target_positions max_encoder_position_embeddings max_decoder_position_embeddings".split()
    found = [getattr(part, name, None) for part in (config, getattr(config, "text_config", None)) for name in names]
    most = min((limit for limit in found if isinstance(limit, int) and limit > 0), default=None)
    source = inspect.getsource(sys.modules[cls.__module__])
    if most is not None and re.search(r"position_embeddings = nn\.Embedding\([^)]*padding_idx", source):  # as in RoBERTa, positions begin after padding's
        most -= (config.pad_token_id or 0) + 1
    return most if most is None else most - _AHEAD.get(config.model_type, 0)


def length_of(config: Any, cls: Any, asked: Asked) -> tuple[int, tuple[str, ...]]:
    most, length = positions(config, cls), asked.get("seq_len")
    if length is not None:
        if most is not None and length > most:
            raise TooLongError(length, most)
        return length, ()
    if most is None:
        return 512, ("sequences of 512 tokens: the model has no longest one, and none was asked for",)
    return min(2048, most), (f"sequences of 2048 tokens, fewer than the model's {most} positions: none were asked for",) if most > 2048 else ()


def tokens(config: Any, cls: Any, asked: Asked, labels: Tensors | None = None, padded: bool = True) -> Made:
    """Token ids, with a mask where batches are padded, and labels: one for each token, or those that are given."""
    length, remarks = length_of(config, cls, asked)
    padded = padded and "attention_mask" in inspect.signature(cls.forward).parameters
    mask: Tensors = {"attention_mask": ((length,), "long")} if padded else {}
    tensors: Tensors = {"input_ids": ((length,), "long"), **mask, **(labels or {"labels": ((length,), "long")})}
    return Made(tensors, remarks, length)


def running_text(config: Any, cls: Any, asked: Asked) -> Made:
    return tokens(config, cls, asked, padded=False)


def translation(config: Any, cls: Any, asked: Asked) -> Made:
    return tokens(config, cls, asked, padded=False)


def classes(config: Any) -> Tensors:
    """One label a sample: a class, a number for each class, or a number."""
    kind = getattr(config, "problem_type", None) or ("regression" if config.num_labels == 1 else "single_label_classification")
    if kind == "single_label_classification":
        return {"labels": ((), "long")}
    return {"labels": (() if config.num_labels == 1 and kind == "regression" else (config.num_labels,), "float32")}


def classified_text(config: Any, cls: Any, asked: Asked) -> Made:
    remarks: tuple[str, ...] = ()
    text = config.get_text_config()
    if getattr(text, "pad_token_id", None) is None:
        ends = getattr(text, "eos_token_id", None)
        text.pad_token_id = ends[0] if isinstance(ends, (list, tuple)) and ends else ends if isinstance(ends, int) else 0
        remarks = (f"pad_token_id {text.pad_token_id}: the configuration has none, and a classifier finds the end of a sample by it",)
    made = tokens(config, cls, asked, classes(config))
    tensors = made.tensors
    if config.is_encoder_decoder and isinstance(end := getattr(text, "eos_token_id", None), int):  # whose state is what is classified
        tensors = {**tensors, "input_ids": functools.partial(separated, made.tokens_per_sample, end, (-1,))}
    return Made(tensors, remarks + made.remarks, made.tokens_per_sample)


def answers(config: Any, cls: Any, asked: Asked) -> Made:
    """A question and a text in which the answer is."""
    made = tokens(config, cls, asked, {"start_positions": ((), "long"), "end_positions": ((), "long")})
    if config.model_type not in _SEPARATED:
        return made
    ids = functools.partial(separated, made.tokens_per_sample, config.sep_token_id, (QUESTION, QUESTION + 1, -1))
    remark = f"questions of {QUESTION} tokens, which see the whole text"
    return Made({**made.tensors, "input_ids": ids}, (*made.remarks, remark), made.tokens_per_sample)


def chosen(config: Any, cls: Any, asked: Asked) -> Made:
    """A question with each of its answers, one of which is right."""
    made = tokens(config, cls, asked, {"labels": ((), "long")})
    each = {name: ((CHOICES, *field[0]), field[1]) for name, field in made.tensors.items() if not callable(field) and name != "labels"}
    return Made({**each, "labels": ((), "long")}, (f"{CHOICES} choices a sample", *made.remarks), CHOICES * made.tokens_per_sample)


def followed(config: Any, cls: Any, asked: Asked) -> Made:
    return tokens(config, cls, asked, {"labels": ((), "long")})


def pretrained(config: Any, cls: Any, asked: Asked) -> Made:
    """A label for each token, and one for how its two sentences go together where the model asks for it."""
    made = tokens(config, cls, asked)
    of_pairs = [name for name in ("next_sentence_label", "sentence_order_label") if name in inspect.signature(cls.forward).parameters]
    return Made({**made.tensors, **dict.fromkeys(of_pairs, ((), "long"))}, made.remarks, made.tokens_per_sample)
