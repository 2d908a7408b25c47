# SPDX-License-Identifier: Apache-2.0
"""Default configurations of transformers made small, so that they train on a CPU in seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from cases import DATA

BY_HAND = DATA / "shrunk.json"  # fields of types whose parts fit only together
WIDTHS = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "dim", "encoder_hidden_size", "decoder_hidden_size", "embedding_size"), 64),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "cross_attention_hidden_size", "output_dim", "llm_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "d_ff", "feed_forward_proj_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size", "q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "d_kv", "kv_channels", "rotary_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_expert"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),  # 2 x 64 = 8 x 16
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k"), 2),
}
DEPTHS = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers", "depth", "n_layers", "num_encoder_layers"), 2
)
COUNTS = {"vocab_size": 256, "decoder_vocab_size": 256, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64}
ROOM = {"vocab_size": 1024, "decoder_vocab_size": 1024}  # for the tokens of images or sound, and for what they become
IMAGES = {"image_size": 64}
TOKENS = {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
EXPERTS = {name: WIDTHS[name] for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_expert")}
SMALL: dict[str, int] = {**WIDTHS, **DEPTHS, **COUNTS, **IMAGES}
MISSING = {"num_experts_per_tok": 2, "n_routed_experts": 4, "head_dim": 16, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1}  # in some defaults
# What is no width: numbers of things, places, lengths.
_NO_WIDTH = re.compile(
    "vocab|position|token|image|patch|heads$|n_head$|layer|num_.*expert|n_.*expert|group|size_base|_id$|index|rate|hop|seq|length|channels|depth|window|theta|kernel|conv|state|stride"
)
Attempt = tuple[dict[str, int], int, dict[str, int]]  # fields that are set, by how much other widths are divided, fields set where there are none
# Tried one after the other: not every model takes every shape.
ATTEMPTS: tuple[Attempt, ...] = (
    (SMALL, 1, {}),
    ({**SMALL, "num_key_value_heads": 4}, 1, MISSING),
    ({name: width for name, width in SMALL.items() if name != "head_dim"}, 1, {}),
    ({**SMALL, **dict.fromkeys(DEPTHS, 8)}, 1, {}),
    ({"num_queries": 50, **IMAGES}, 1, {}),
    *(
        (fields, by, {})
        for depth in (2, 4, 6)
        for by in (16, 8, 4)
        for fields in (
            {**dict.fromkeys(DEPTHS, depth), **ROOM, **EXPERTS},
            {**dict.fromkeys(DEPTHS, depth), **ROOM, **EXPERTS, **IMAGES},
            {**dict.fromkeys(DEPTHS, depth), **ROOM},
        )
    ),
    ({**DEPTHS, **ROOM}, 1, {}),
    ({**WIDTHS, **COUNTS, **IMAGES}, 1, {}),
    ({**DEPTHS, **COUNTS}, 1, {}),
    (ROOM, 16, {}),
    ({}, 1, {}),
)


def shrunk(table: str, model_type: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Configurations of a type, the smallest first, and the class that the table has for it; some do not build, or do not train."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")[model_type]
    name = names if isinstance(names, str) else names[0]
    by_hand = json.loads(BY_HAND.read_text())
    if model_type in by_hand:
        yield _own(AutoConfig.for_model(model_type, **by_hand[model_type]), name).to_dict(), name
    for fields, by, missing in ATTEMPTS:
        config = AutoConfig.for_model(model_type)
        tokens: dict[str, int] = {}
        try:
            for part in _parts(config):
                _sectioned(part, by)
                _set(part, fields, by, missing)
                if fields and _is_count(vars(part).get("vocab_size")):
                    _set(part, TOKENS, 1, {})
            for part in _parts(config):
                _within_vocabulary(part, tokens)
        except Exception:  # configurations check what they are given, and not all of them take every shape
            continue
        if getattr(getattr(config, "backbone_config", None), "model_type", None) == "timm_backbone":  # random weights need none of timm's files
            config.backbone_config = _backbone()
        yield _by_layer(_own(config, name).to_dict()), name


def _own(config: Any, class_name: str) -> Any:
    """The configuration that a class takes: that of the text inside of a larger one, where it is for text alone (as `AutoModel` does)."""
    import transformers

    wanted = getattr(transformers, class_name).config_class
    if wanted is type(config):
        return config
    text = config.get_text_config(decoder=True)
    return text if wanted is type(text) else config


def _by_layer(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without those of layers that are no longer there."""
    found = {name: _by_layer(value) if isinstance(value, dict) else value for name, value in fields.items()}
    if isinstance(layers := found.get("per_layer_config"), dict):
        found["per_layer_config"] = {number: value for number, value in layers.items() if int(number) < found["num_hidden_layers"]}
    return found


def _backbone() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"])


def _parts(config: Any) -> list[Any]:
    """A configuration and those inside of it."""
    from transformers import PretrainedConfig

    found = [config]
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            found += _parts(value)
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _set(config: Any, fields: dict[str, int], by: int, missing: dict[str, int]) -> None:
    """Gives these values to the fields that the configuration has a number in, or none, divides other widths, and shortens what goes by layer."""
    depth = next((vars(config)[name] for name in DEPTHS if _is_count(vars(config).get(name))), None)
    wanted = {name: value for name, value in fields.items() if _is_count(vars(config).get(name))}
    wanted |= {name: value for name, value in missing.items() if vars(config).get(name, 0) is None}
    for name, value in list(vars(config).items()):
        if name not in wanted and _is_count(value) and value >= 16 * by > 16 and value % by == 0 and not _NO_WIDTH.search(name):
            wanted[name] = value // by
    for name, value in wanted.items():
        setattr(config, name, value)
    shorter = next((wanted[name] for name in DEPTHS if name in wanted), None)
    if depth is None or shorter is None or shorter >= depth:
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth:
            kinds = list(dict.fromkeys(map(str, value)))
            first = [next(item for item in value if str(item) == kind) for kind in kinds]
            setattr(config, name, (first + value)[:shorter] if len(kinds) <= shorter else value[:shorter])
        elif isinstance(value, dict) and value and all(isinstance(key, int) for key in value):
            setattr(config, name, {key: each for key, each in value.items() if key < shorter})


def _sectioned(config: Any, by: int) -> None:
    """The parts of a head that turn with time, height and width: of a head of 16, or of one divided like all widths."""
    for value in list(vars(config).values()):
        if isinstance(value, dict) and isinstance(sections := value.get("mrope_section"), list):
            divisor = by if by > 1 else max(1, sum(sections) // (WIDTHS["head_dim"] // 2))
            value["mrope_section"] = [section // divisor for section in sections]


def _within_vocabulary(config: Any, tokens: dict[str, int]) -> None:
    """Tokens that stand for something, such as an image, are among those that there are; of one name the same everywhere."""
    for name, value in list(vars(config).items()):
        stands_for_something = name in ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index") and value is None
        if re.search(r"_token_(id|index)$|_(start|end)_token$", name) and (stands_for_something or (_is_count(value) and value >= 256)):
            tokens.setdefault(name, 255 - len(tokens))
            setattr(config, name, tokens[name])
