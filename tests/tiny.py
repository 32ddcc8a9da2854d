"""Tiny models of every family: configurations as the hub has them, weights that any machine makes the same.

Weights are drawn from a generator seeded by the tensor's name (numpy's RandomState, whose stream is frozen), so golden
logits stay valid where transformers is not installed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenmill.formats.hf_folder import write_hf_folder
from tokenmill.models import read_any_config
from tokenmill.models.load import build
from tokenmill.models.weights import file_tensors

GOLDEN = Path(__file__).parent / "data" / "golden"
PROMPTS = [[5, 1, 17, 60, 2, 33, 9, 88, 41, 3, 70, 12, 11], [7], [90, 4, 4, 31, 8], list(range(20, 61))]

_BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def _config(model_type: str, architecture: str, **special: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **_BASE, "hidden_act": "silu", **special}


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _config("llama", "LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "llama-tied": _config("llama", "LlamaForCausalLM", tie_word_embeddings=True, head_dim=16, num_key_value_heads=1),
    "mistral": _config("mistral", "MistralForCausalLM", sliding_window=7, head_dim=10),
    "qwen2": _config("qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": _config("qwen3", "Qwen3ForCausalLM", head_dim=16, attention_bias=False, tie_word_embeddings=True),
    "gemma2": _without(
        _config(
            "gemma2",
            "Gemma2ForCausalLM",
            hidden_activation="gelu_pytorch_tanh",
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=5,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            tie_word_embeddings=True,
        ),
        "hidden_act",
    ),
    "gemma3": _without(
        _config(
            "gemma3_text",
            "Gemma3ForCausalLM",
            hidden_activation="gelu_pytorch_tanh",
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=5,
            sliding_window_pattern=2,
            rope_local_base_freq=100.0,
            rope_scaling={"rope_type": "linear", "factor": 4.0},
            tie_word_embeddings=True,
        ),
        "hidden_act",
    ),
    "phi3": _config(
        "phi3",
        "Phi3ForCausalLM",
        original_max_position_embeddings=32,
        rope_scaling={"type": "longrope", **LONG},
        sliding_window=30,
    ),
    "granite": _config(
        "granite",
        "GraniteForCausalLM",
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=0.1,
    ),
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 97,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 128,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_by_inverse_layer_idx": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    },
    "starcoder2": _without(
        _config(
            "starcoder2",
            "Starcoder2ForCausalLM",
            norm_epsilon=1e-5,
            use_bias=True,
            sliding_window=6,
            tie_word_embeddings=True,
        )
        | {"hidden_act": "gelu_pytorch_tanh"},
        "rms_norm_eps",
    ),
    "mixtral": _config(
        "mixtral", "MixtralForCausalLM", num_local_experts=5, num_experts_per_tok=2, sliding_window=None
    ),
    "qwen3_moe": _config(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
    ),
}

_BERT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
    "dtype": "float32",
}
_T5: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-6,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "dtype": "float32",
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"], **_BERT},
    "roberta": {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], **_BERT, "pad_token_id": 6},
    "t5": {**_T5, "feed_forward_proj": "relu"},
    "t5-gated": {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic-short": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "dynamic-long": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
    "yarn": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "yarn-full": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
        }
    },
    "yarn-attention-factor": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "attention_factor": 0.7,
            "original_max_position_embeddings": 32,
            "truncate": False,
        }
    },
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "longrope": {
        "rope_scaling": {"rope_type": "longrope", **LONG, "factor": 4.0, "original_max_position_embeddings": 32}
    },
}


def packed(prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Prompts one after the other, as the decoder takes them."""
    return torch.tensor(list(chain.from_iterable(prompts)))


def weights(config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Deterministic weights under the hub's names; norms too are away from one, so that a forgotten one shows."""
    family, decoder_config = read_any_config(config, "tiny")
    for name, shape in [(name, t.shape) for name, t in file_tensors(build(decoder_config), family.weights)]:
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)) * 0.15
        yield (
            name,
            torch.from_numpy(values.astype(np.float32)) + (0.9 if "norm" in name.lower() or "ln_" in name else 0.0),
        )


def write(config: dict[str, Any], folder: Path) -> Path:
    """A Hugging Face folder of this tiny model."""
    write_hf_folder(folder, config, weights(config))
    assert json.loads((folder / "config.json").read_text()) == config
    return folder
