"""Phi 3, 3.5 and 4-mini: Llama with fused projections, partial rotary and longrope."""

from __future__ import annotations

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import (
    GGUF_WEIGHTS,
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
from tokenmill.models.weights import Table, changed, row
from tokenmill.nn.config import DecoderConfig


def read(r: ConfigReader) -> DecoderConfig:
    shape = read_shape(r)
    r.only("attention_bias", False)
    r.only("mlp_bias", False)
    r.only("lm_head_bias", False)
    r.only("full_attn_mod", 1)  # Phi-4-mini names these two; other values are not known to exist
    r.only("interpolate_factor", 1)
    attention = read_attention(r, shape, rope=read_rope(r, shape.head_dim), window=read_window(r))
    return decoder(r, shape, attention, read_mlp(r))


QKV = (f"{OURS}.attn.q", f"{OURS}.attn.k", f"{OURS}.attn.v")
GATE_UP = (f"{OURS}.mlp.gate", f"{OURS}.mlp.up")
WEIGHTS = changed(LLAMA_WEIGHTS, row(f"{LAYER}.self_attn.qkv_proj", *QKV), row(f"{LAYER}.mlp.gate_up_proj", *GATE_UP))
GGUF: Table = changed(GGUF_WEIGHTS, row("blk.{layer}.attn_qkv", *QKV), row("blk.{layer}.ffn_up", *GATE_UP))

FAMILY = Family("phi3", "Phi3ForCausalLM", read, WEIGHTS, GGUF)
