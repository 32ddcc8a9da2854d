"""GPT-2: learned positions, LayerNorm, GELU, fused and transposed projections, its own key names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import GGUF_WEIGHTS, MAX_LAYERS, OURS, Family, Shape, read_activation, read_attention
from tokenmill.models.weights import Table, changed, row
from tokenmill.nn.config import DecoderConfig, LayerConfig, MLPConfig, NormConfig


def read(r: ConfigReader) -> DecoderConfig:
    hidden, heads = r.integer("n_embd"), r.integer("n_head")
    if hidden % heads:
        r.problem(f"n_embd {hidden} is no multiple of n_head {heads}")
    shape = Shape(hidden, r.integer("n_layer", most=MAX_LAYERS), heads, heads, max(1, hidden // heads))
    scale = shape.head_dim**-0.5 if r.flag("scale_attn_weights", True) else 1.0
    attention = read_attention(r, shape, scale=scale, qkv_bias=True, out_bias=True)
    by_depth = r.flag("scale_attn_by_inverse_layer_idx")
    mlp = MLPConfig(
        r.integer("n_inner", 4 * hidden), read_activation(r, "activation_function", "gelu_new"), gated=False, bias=True
    )
    return DecoderConfig(
        vocab_size=r.integer("vocab_size"),
        hidden_size=hidden,
        layers=tuple(
            LayerConfig(replace(attention, scale=scale / (layer + 1)) if by_depth else attention, mlp)
            for layer in range(shape.num_layers)
        ),
        max_position=r.integer("n_positions", 1024),
        norm=NormConfig("layer", r.number("layer_norm_epsilon", 1e-5), bias=True),
        learned_positions=True,
        tied_embeddings=r.flag("tie_word_embeddings", True),
    )


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    del r
    for ours, theirs in (
        ("hidden_size", "n_embd"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
        ("intermediate_size", "n_inner"),
        ("max_position_embeddings", "n_positions"),
        ("norm_epsilon", "layer_norm_epsilon"),
    ):
        config[theirs] = config.pop(ours)
    for implied in ("num_key_value_heads", "head_dim", "rope_parameters", "attention_bias"):
        config.pop(implied, None)


QKV = (f"{OURS}.attn.q", f"{OURS}.attn.k", f"{OURS}.attn.v")
WEIGHTS: Table = (
    row("transformer.wte", "embed"),
    row("transformer.wpe", "positions"),
    row("transformer.h.{layer}.ln_1", f"{OURS}.attn_norm"),
    row("transformer.h.{layer}.attn.c_attn", *QKV, transposed=True),
    row("transformer.h.{layer}.attn.c_proj", f"{OURS}.attn.out", transposed=True),
    row("transformer.h.{layer}.ln_2", f"{OURS}.mlp_norm"),
    row("transformer.h.{layer}.mlp.c_fc", f"{OURS}.mlp.up", transposed=True),
    row("transformer.h.{layer}.mlp.c_proj", f"{OURS}.mlp.down", transposed=True),
    row("transformer.ln_f", "norm"),
    row("lm_head", "head"),
)
GGUF: Table = changed(GGUF_WEIGHTS, row("blk.{layer}.attn_qkv", *QKV), row("position_embd", "positions"))

IGNORED = r"\.attn\.(masked_)?bias$|^lm_head\.weight$"  # the causal mask, kept as a buffer by old versions

FAMILY = Family("gpt2", "GPT2LMHeadModel", read, WEIGHTS, GGUF, gguf_config, IGNORED)
