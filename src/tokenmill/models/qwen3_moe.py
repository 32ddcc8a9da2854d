"""Qwen 3 mixture of experts: Qwen 3 attention, many small experts, some layers possibly dense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import GGUF_WEIGHTS, LAYER, LLAMA_WEIGHTS, OURS, Family, decoder, read_mlp, read_shape
from tokenmill.models.mistral import read_window
from tokenmill.models.qwen3 import read_qwen3_attention
from tokenmill.models.weights import row
from tokenmill.nn.config import DecoderConfig, MLPConfig, MoEConfig


def read(r: ConfigReader) -> DecoderConfig:
    shape, dense = read_shape(r), read_mlp(r)
    expert = MLPConfig(r.integer("moe_intermediate_size"), dense.activation)
    num_experts = r.integer("num_experts", r.get("num_local_experts", 128))
    moe = MoEConfig(
        num_experts, r.integer("num_experts_per_tok", 8, most=num_experts), expert, r.flag("norm_topk_prob")
    )
    step, only_dense = r.integer("decoder_sparse_step", 1), r.sequence("mlp_only_layers") or []
    mlps = [moe if layer not in only_dense and (layer + 1) % step == 0 else dense for layer in range(shape.num_layers)]
    window = read_window(r, 4096) if r.flag("use_sliding_window") else None
    r.get("sliding_window")
    r.get("max_window_layers")  # inherited from Qwen 2's files and without effect, in transformers as here
    return decoder(r, shape, replace(read_qwen3_attention(r, shape), window=window), mlps)


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    config["num_experts"] = r.get("expert_count")
    config["num_experts_per_tok"] = r.get("expert_used_count")
    config["moe_intermediate_size"] = r.get("expert_feed_forward_length")
    config["norm_topk_prob"] = True  # llama.cpp's qwen3moe always divides


WEIGHTS = (
    *LLAMA_WEIGHTS,
    row(f"{LAYER}.mlp.gate", f"{OURS}.mlp.router"),
    row(f"{LAYER}.mlp.experts.{{expert}}.gate_proj", f"{OURS}.mlp.experts.gate"),
    row(f"{LAYER}.mlp.experts.{{expert}}.up_proj", f"{OURS}.mlp.experts.up"),
    row(f"{LAYER}.mlp.experts.{{expert}}.down_proj", f"{OURS}.mlp.experts.down"),
)

FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", read, WEIGHTS, GGUF_WEIGHTS, gguf_config)
