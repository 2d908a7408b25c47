# SPDX-License-Identifier: Apache-2.0
"""Default configurations of transformers made small, so that they train on a CPU in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WIDTHS = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "dim", "encoder_hidden_size", "decoder_hidden_size", "embedding_size"), 64),
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
COUNTS = {"vocab_size": 256, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64}
IMAGES = {"image_size": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
BY_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "attention_types")
SMALL = (WIDTHS, DEPTHS, COUNTS, IMAGES)
MISSING = {"num_experts_per_tok": 2, "n_routed_experts": 4}  # where the default configuration has none
# Fields that differ from SMALL, tried one after the other: not every model takes every shape.
ATTEMPTS: tuple[tuple[dict[str, int], ...], ...] = (
    SMALL,
    (*SMALL, {"num_key_value_heads": 4}, MISSING),
    ({name: width for name, width in WIDTHS.items() if name != "head_dim"}, *SMALL[1:]),
    (WIDTHS, dict.fromkeys(DEPTHS, 8), *SMALL[2:]),
    (WIDTHS, COUNTS, IMAGES),
    (DEPTHS, COUNTS, IMAGES),
    (DEPTHS, COUNTS),
    (),
)


def shrunk(table: str, model_type: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Configurations of a type, the smallest first, and the class that the table has for it; some do not build, or do not train."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES")[model_type]
    for attempt in ATTEMPTS:
        config = AutoConfig.for_model(model_type)
        fields = {name: value for part in attempt for name, value in part.items()}
        for part in _parts(config):
            tokens = TOKENS if fields and _is_count(vars(part).get("vocab_size")) else {}
            _set(part, {**fields, **tokens}, MISSING if MISSING in attempt else {})
        if getattr(getattr(config, "backbone_config", None), "model_type", None) == "timm_backbone":  # timm needs torchvision
            config.backbone_config = _backbone()
        yield config.to_dict(), names if isinstance(names, str) else names[0]


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


def _set(config: Any, fields: dict[str, int], missing: dict[str, int]) -> None:
    """Gives these values to the fields that the configuration has a number in, or none, and shortens its lists of kinds of layers."""
    for name, value in fields.items():
        if _is_count(vars(config).get(name)) or (name in missing and vars(config).get(name, 0) is None):
            setattr(config, name, value)
    depth = next((vars(config)[name] for name in DEPTHS if _is_count(vars(config).get(name))), None)
    for name in BY_LAYER:
        kinds = vars(config).get(name)
        if depth is not None and isinstance(kinds, list) and len(kinds) > depth:
            several = list(dict.fromkeys(kinds))
            setattr(config, name, (several + kinds)[: max(depth, len(several))])
