"""Gemma 2: sandwich norms stored as the difference from one, GeGLU, soft-capping, alternating windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import (
    GGUF_WEIGHTS,
    LAYER,
    LLAMA_WEIGHTS,
    OURS,
    Family,
    Shape,
    decoder,
    read_activation,
    read_attention,
    read_layer_types,
    read_shape,
)
from tokenmill.models.mistral import read_window
from tokenmill.models.rope_config import read_rope
from tokenmill.models.weights import Table, changed, row
from tokenmill.nn.config import AttentionConfig, DecoderConfig, MLPConfig, NormConfig


def read_gemma_attention(r: ConfigReader, shape: Shape, **special: Any) -> AttentionConfig:
    bias = r.flag("attention_bias")
    r.only("use_bidirectional_attention", None, False)
    scale = r.number("query_pre_attn_scalar", 256, least=1e-6) ** -0.5
    return read_attention(r, shape, scale=scale, qkv_bias=bias, out_bias=bias, **special)


def gemma_decoder(
    r: ConfigReader, shape: Shape, attentions: list[AttentionConfig], final_softcap: float | None
) -> DecoderConfig:
    r.only("hidden_act", "gelu_pytorch_tanh", "gelu")  # an old spelling that transformers ignores for hidden_activation
    mlp = MLPConfig(r.integer("intermediate_size"), read_activation(r, "hidden_activation", "gelu_pytorch_tanh"))
    return decoder(
        r,
        shape,
        attentions,
        mlp,
        norm=NormConfig(eps=r.number("rms_norm_eps", 1e-6), unit_offset=True),
        tied=True,
        post_norms=True,
        embedding_scale=shape.hidden_size**0.5,
        logit_softcap=r.optional("final_logit_softcapping", final_softcap),
    )


def read(r: ConfigReader) -> DecoderConfig:
    shape, window = read_shape(r), read_window(r, 4096)
    r.only("sliding_window_size", window)  # the 9B says it twice
    softcap = r.optional("attn_logit_softcapping", 50.0)
    attention = read_gemma_attention(r, shape, rope=read_rope(r, shape.head_dim), softcap=softcap)
    slides = read_layer_types(r, shape.num_layers, lambda layer: layer % 2 == 0)
    attentions = [replace(attention, window=window if slide else None) for slide in slides]
    return gemma_decoder(r, shape, attentions, final_softcap=30.0)


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    # Not in the file: llama.cpp knows that only the 27B (46 layers) scales by its share of the hidden size
    wide = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = wide if config["num_hidden_layers"] == 46 else config["head_dim"]


WEIGHTS = changed(
    LLAMA_WEIGHTS,
    row(f"{LAYER}.post_attention_layernorm", f"{OURS}.attn_post_norm"),
    row(f"{LAYER}.pre_feedforward_layernorm", f"{OURS}.mlp_norm"),
    row(f"{LAYER}.post_feedforward_layernorm", f"{OURS}.mlp_post_norm"),
)
GGUF: Table = tuple(row(w.theirs, *w.ours, offset=1.0) if w.theirs.endswith("norm") else w for w in GGUF_WEIGHTS)

FAMILY = Family("gemma2", "Gemma2ForCausalLM", read, WEIGHTS, GGUF, gguf_config)
