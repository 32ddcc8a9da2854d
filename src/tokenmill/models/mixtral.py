"""Mixtral: Mistral's attention, eight experts of which each token meets two."""

from __future__ import annotations

from typing import Any

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import (
    GGUF_LLAMA_WEIGHTS,
    LAYER,
    LLAMA_WEIGHTS,
    OURS,
    Family,
    decoder,
    read_attention,
    read_mlp,
    read_shape,
)
from tokenmill.models.mistral import read_window
from tokenmill.models.rope_config import read_rope
from tokenmill.models.weights import row
from tokenmill.nn.config import DecoderConfig, MoEConfig


def read(r: ConfigReader) -> DecoderConfig:
    shape = read_shape(r)
    rope = read_rope(r, shape.head_dim, theta=1e6)
    attention = read_attention(r, shape, rope=rope, window=read_window(r))
    num_experts = r.integer("num_local_experts", 8)
    moe = MoEConfig(num_experts, r.integer("num_experts_per_tok", 2, most=num_experts), read_mlp(r))
    return decoder(r, shape, attention, moe)


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    config["num_local_experts"] = r.get("expert_count")
    config["num_experts_per_tok"] = r.get("expert_used_count")


EXPERT = f"{LAYER}.block_sparse_moe.experts.{{expert}}"
WEIGHTS = (
    *LLAMA_WEIGHTS,
    row(f"{LAYER}.block_sparse_moe.gate", f"{OURS}.mlp.router"),
    row(f"{EXPERT}.w1", f"{OURS}.mlp.experts.gate"),
    row(f"{EXPERT}.w3", f"{OURS}.mlp.experts.up"),
    row(f"{EXPERT}.w2", f"{OURS}.mlp.experts.down"),
)

FAMILY = Family("mixtral", "MixtralForCausalLM", read, WEIGHTS, GGUF_LLAMA_WEIGHTS, gguf_config)
