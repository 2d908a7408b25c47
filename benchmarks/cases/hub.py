# SPDX-License-Identifier: Apache-2.0
"""Published models by the names they have on model hubs, built from the fields of their configurations that differ from the defaults."""

from __future__ import annotations

from typing import Any

_GPT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
_NEO: dict[str, Any] = {"embed_dropout": 0.0, "attention_dropout": 0.0, "resid_dropout": 0.0}
_OPT = {"vocab_size": 50272, "max_position_embeddings": 2048, "dropout": 0.1, "attention_dropout": 0.0, "activation_function": "relu"}
_T5 = {"vocab_size": 32128, "d_kv": 64, "decoder_start_token_id": 0}


def _bert(layers: int, width: int, heads: int, **fields: Any) -> dict[str, Any]:
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width, **fields}


def _llama(layers: int, width: int, inner: int, heads: int, groups: int, vocabulary: int, **fields: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads, "num_key_value_heads": groups}
    return {**sizes, "vocab_size": vocabulary, **fields}


# name: (model type, head, fields)
CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "openai-community/gpt2": ("gpt2", "AutoModelForCausalLM", {}),
    "openai-community/gpt2-medium": ("gpt2", "AutoModelForCausalLM", {"n_layer": 24, "n_embd": 1024, "n_head": 16}),
    "openai-community/gpt2-large": ("gpt2", "AutoModelForCausalLM", {"n_layer": 36, "n_embd": 1280, "n_head": 20}),
    "openai-community/gpt2-xl": ("gpt2", "AutoModelForCausalLM", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "distilbert/distilgpt2": ("gpt2", "AutoModelForCausalLM", {"n_layer": 6}),
    "cerebras/Cerebras-GPT-111M": (
        "gpt2",
        "AutoModelForCausalLM",
        {"n_layer": 10, "n_inner": 3072, "n_positions": 2048, "activation_function": "gelu", **_GPT},
    ),
    "EleutherAI/gpt-neo-125M": (
        "gpt_neo",
        "AutoModelForCausalLM",
        {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]], **_NEO},
    ),
    "EleutherAI/gpt-neo-1.3B": ("gpt_neo", "AutoModelForCausalLM", _NEO),
    "EleutherAI/pythia-410m-deduped": (
        "gpt_neox",
        "AutoModelForCausalLM",
        _bert(24, 1024, 16, vocab_size=50304, use_parallel_residual=True, hidden_dropout=0.0, attention_dropout=0.0),
    ),
    "EleutherAI/pythia-1b": ("gpt_neox", "AutoModelForCausalLM", _bert(16, 2048, 8, vocab_size=50304)),
    "EleutherAI/pythia-2.8b": ("gpt_neox", "AutoModelForCausalLM", _bert(32, 2560, 32, vocab_size=50304)),
    "facebook/opt-125m": ("opt", "AutoModelForCausalLM", {**_OPT, "word_embed_proj_dim": 768}),
    "facebook/opt-350m": (
        "opt",
        "AutoModelForCausalLM",
        {
            **_OPT,
            "num_hidden_layers": 24,
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_attention_heads": 16,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
        },
    ),
    "facebook/opt-1.3b": (
        "opt",
        "AutoModelForCausalLM",
        {**_OPT, "num_hidden_layers": 24, "hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32, "word_embed_proj_dim": 2048},
    ),
    "facebook/opt-2.7b": (
        "opt",
        "AutoModelForCausalLM",
        {**_OPT, "num_hidden_layers": 32, "hidden_size": 2560, "ffn_dim": 10240, "num_attention_heads": 32, "word_embed_proj_dim": 2560},
    ),
    "facebook/opt-6.7b": (
        "opt",
        "AutoModelForCausalLM",
        {**_OPT, "num_hidden_layers": 32, "hidden_size": 4096, "ffn_dim": 16384, "num_attention_heads": 32, "word_embed_proj_dim": 4096},
    ),
    "google-bert/bert-base-uncased": ("bert", "AutoModelForCausalLM", {}),
    "google-bert/bert-large-uncased": ("bert", "AutoModelForSequenceClassification", _bert(24, 1024, 16)),
    "albert/albert-base-v1": (
        "albert",
        "AutoModelForMaskedLM",
        _bert(12, 768, 12, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, hidden_act="gelu"),
    ),
    "distilbert/distilbert-base-uncased": ("distilbert", "AutoModelForMaskedLM", {}),
    "microsoft/biogpt": ("biogpt", "AutoModelForCausalLM", {}),
    "albert/albert-base-v2": ("albert", "AutoModelForSequenceClassification", {**_bert(12, 768, 12), "hidden_act": "gelu_new"}),
    "FacebookAI/roberta-base": ("roberta", "AutoModelForSequenceClassification", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "microsoft/deberta-v3-base": (
        "deberta-v2",
        "AutoModelForTokenClassification",
        _bert(12, 768, 12, vocab_size=128100, type_vocab_size=0, relative_attention=True, position_buckets=256, pos_att_type=["p2c", "c2p"])
        | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "max_relative_positions": -1},
    ),
    "ibm/PowerLM-3b": ("granite", "AutoModelForCausalLM", _llama(40, 2304, 9216, 36, 36, 49152, tie_word_embeddings=True)),
    "bigcode/gpt_bigcode-santacoder": (
        "gpt_bigcode",
        "AutoModelForCausalLM",
        {"n_layer": 24, "n_embd": 2048, "n_head": 16, "n_inner": 8192, "n_positions": 2048, "vocab_size": 49280},
    ),
    "google/vit-base-patch16-224": ("vit", "AutoModelForImageClassification", {"num_labels": 1000}),
    "google/gemma-2-2b-it": ("gemma2", "AutoModelForCausalLM", _llama(26, 2304, 9216, 8, 4, 256000, head_dim=256)),
    "google-t5/t5-small": ("t5", "AutoModelForSeq2SeqLM", {**_T5, "d_model": 512, "d_ff": 2048, "num_heads": 8, "num_layers": 6}),
    "google-t5/t5-base": ("t5", "AutoModelForSeq2SeqLM", {**_T5, "d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12}),
    "meta-llama/Llama-2-7b-hf": ("llama", "AutoModelForCausalLM", _llama(32, 4096, 11008, 32, 32, 32000)),
    "meta-llama/Llama-2-13b-hf": ("llama", "AutoModelForCausalLM", _llama(40, 5120, 13824, 40, 40, 32000)),
    "meta-llama/Llama-2-70b-hf": ("llama", "AutoModelForCausalLM", _llama(80, 8192, 28672, 64, 8, 32000)),
    "meta-llama/Meta-Llama-3-8B": ("llama", "AutoModelForCausalLM", _llama(32, 4096, 14336, 32, 8, 128256)),
    "meta-llama/Llama-3.2-1B": ("llama", "AutoModelForCausalLM", _llama(16, 2048, 8192, 32, 8, 128256, head_dim=64, tie_word_embeddings=True)),
    "meta-llama/Llama-3.2-3B": ("llama", "AutoModelForCausalLM", _llama(28, 3072, 8192, 24, 8, 128256, head_dim=128, tie_word_embeddings=True)),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", "AutoModelForCausalLM", _llama(28, 3072, 8192, 24, 8, 128256, head_dim=128, tie_word_embeddings=True)),
    "mistralai/Mistral-7B-v0.1": ("mistral", "AutoModelForCausalLM", _llama(32, 4096, 14336, 32, 8, 32000)),
    "TinyLlama/TinyLlama-1.1B": ("llama", "AutoModelForCausalLM", _llama(22, 2048, 5632, 32, 4, 32000)),
    "Qwen/Qwen2-0.5B": ("qwen2", "AutoModelForCausalLM", _llama(24, 896, 4864, 14, 2, 151936, tie_word_embeddings=True)),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", "AutoModelForCausalLM", _llama(28, 1536, 8960, 12, 2, 151936, tie_word_embeddings=False)),
    "Qwen/Qwen3-4B": ("qwen3", "AutoModelForCausalLM", _llama(36, 2560, 9728, 32, 8, 151936, head_dim=128, tie_word_embeddings=True)),
}
