"""GGUF metadata to the ``config.json`` that the same model has on the Hugging Face side.

From there on there is one path: a family reads one kind of configuration, wherever the weights come from. Keys:
``docs/gguf.md`` of ggml, and llama.cpp's ``llama-arch.cpp``. An architecture key that is not understood is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.formats.tensors import TensorInfo
from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import MAX_LAYERS
from tokenmill.nn.config import RopeConfig, RopeScaling
from tokenmill.nn.rope import inverse_frequencies

# GGUF's name of an architecture -> ours; what shares a name is told apart by its metadata (see _family)
ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma2", "phi3", "granite", "gpt2", "starcoder2")},
    "gemma3": "gemma3_text",
    "qwen3moe": "qwen3_moe",
}
NEUTRAL = frozenset(
    {
        *("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.value_length"),
        *("attention.key_length", "rope.dimension_count"),
    }
)
IGNORED = r"^rope_(freqs|factors_(long|short))\.weight$"  # tables that config_from_gguf turns into configuration


class Described(Protocol):
    """What is looked at: a file, or the draft of one (`models/gguf_keys.py`)."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def infos(self) -> Mapping[str, TensorInfo]: ...
    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor: ...


def family_name(file: Described) -> str:
    """The family of a GGUF file; ConfigError where its architecture is not supported."""
    architecture = str(file.metadata.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        near = did_you_mean(architecture, ARCHITECTURES)
        known = ", ".join(sorted(ARCHITECTURES))
        raise ConfigError(f"{file.path}: architecture {architecture!r} is not supported{near}; known: {known}")
    if architecture == "llama" and file.metadata.get("llama.expert_count"):
        return "mixtral"
    if architecture == "llama" and file.metadata.get("llama.attention.sliding_window"):
        return "mistral"
    return ARCHITECTURES[architecture]


def reader(file: Described) -> ConfigReader:
    """The architecture's keys without their prefix."""
    prefix = f"{file.metadata.get('general.architecture')}."
    keys = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    return ConfigReader(keys, f"{file.path} (metadata {prefix}*)", NEUTRAL)


def config_from_gguf(file: Described, r: ConfigReader) -> dict[str, Any]:
    """What all architectures have in common; the family's ``gguf_config`` adds the rest, the caller finishes ``r``."""
    infos = file.infos()
    hidden, heads = r.integer("embedding_length"), r.integer("attention.head_count")
    head_dim = r.integer("attention.key_length", max(1, hidden // heads))
    r.only("attention.value_length", head_dim)
    r.only("attention.causal", True)
    for dense_only in ("expert_count", "expert_used_count"):
        r.only(dense_only, r.config.get(dense_only) if family_name(file) in ("mixtral", "qwen3_moe") else 0)
    if "token_embd.weight" not in infos:
        raise ConfigError(f"{file.path}: there is no tensor token_embd.weight; this is not a language model")
    config: dict[str, Any] = {
        "vocab_size": infos["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": r.integer("block_count", most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": r.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": r.integer("feed_forward_length"),
        "max_position_embeddings": r.integer("context_length", 2048),
        "tie_word_embeddings": "output.weight" not in infos,
        **_rope(file, r, head_dim),
    }
    optional = {
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.layer_norm_epsilon": "norm_epsilon",
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    config |= {theirs: r.get(ours) for ours, theirs in optional.items() if ours in r.config}
    if "blk.0.attn_output.bias" in infos:
        config["attention_bias"] = True
    return config


def _rope(file: Described, r: ConfigReader, head_dim: int) -> dict[str, Any]:
    rotated = r.integer("rope.dimension_count", head_dim)
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": r.number("rope.freq_base", 10000.0)}
    if rotated != head_dim:
        parameters["partial_rotary_factor"] = rotated / head_dim
    context = r.integer("context_length", 2048)
    original = r.integer("rope.scaling.original_context_length", context)
    kind = r.get("rope.scaling.type", "linear")  # as in llama.cpp: a factor without a type is linear
    factor = r.number("rope.scaling.factor", r.number("rope.scale_linear", 1.0), least=0) or 1.0  # 0 says nothing
    attn_factor = r.number("rope.scaling.attn_factor", 1.0)
    has_tables = "rope_factors_long.weight" in file.infos()
    if kind == "linear" and factor != 1.0:
        parameters |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        # llama.cpp multiplies its own 0.1 ln(s) + 1 with attn_factor; the Hugging Face key means the product
        scale = attn_factor * (0.1 * math.log(factor) + 1.0)
        parameters |= {"rope_type": "yarn", "factor": factor, "attention_factor": scale}
        parameters["original_max_position_embeddings"] = original
        for ours in ("beta_fast", "beta_slow"):
            if (value := r.get(f"rope.scaling.yarn_{ours}")) is not None:
                parameters[ours] = value
    elif kind == "longrope" and not has_tables:
        r.problem("rope.scaling.type is 'longrope', but there are no tensors rope_factors_long and rope_factors_short")
    elif kind not in ("none", "linear", "longrope"):
        r.problem(f"rope.scaling.type {kind!r} is not supported")
    if attn_factor != 1.0 and kind != "yarn" and not has_tables:
        r.problem(f"rope.scaling.attn_factor = {attn_factor} is not supported for rope.scaling.type {kind!r}")
    if "rope_freqs.weight" in file.infos():
        parameters |= _banded(file, rotated, parameters["rope_theta"], context)
    if has_tables:
        long, short = (file.load(f"rope_factors_{name}.weight", torch.float32).tolist() for name in ("long", "short"))
        parameters |= {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        parameters |= {"original_max_position_embeddings": original, "factor": context / original}
        if attn_factor != 1.0:
            parameters["attention_factor"] = attn_factor
    return {"rope_parameters": parameters}


def _banded(file: Described, dim: int, theta: float, context: int) -> dict[str, Any]:
    """``rope_freqs``: one divisor a frequency. Llama 3.1's and 3.2's are recognised, others kept as they stand."""
    factors = file.load("rope_freqs.weight", torch.float32)
    plain = inverse_frequencies(RopeConfig(dim, theta))
    for factor in (8.0, 32.0):
        scaling = RopeScaling("llama3", factor, 8192)
        if len(factors) == len(plain) and torch.allclose(
            plain / factors, inverse_frequencies(RopeConfig(dim, theta, scaling)), rtol=1e-4
        ):
            low_high = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            return {
                "rope_type": "llama3",
                "factor": factor,
                **low_high,
                "original_max_position_embeddings": 8192,
            }
    table = factors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": table,
        "long_factor": table,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }
