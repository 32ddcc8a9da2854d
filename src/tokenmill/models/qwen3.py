"""Qwen 3: queries and keys are normalised head by head, biases are gone."""

from __future__ import annotations

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import (
    GGUF_WEIGHTS,
    LLAMA_WEIGHTS,
    Family,
    Shape,
    decoder,
    read_attention,
    read_mlp,
    read_shape,
)
from tokenmill.models.qwen2 import sliding_layers
from tokenmill.models.rope_config import read_rope
from tokenmill.nn.config import AttentionConfig, DecoderConfig


def read_qwen3_attention(r: ConfigReader, shape: Shape) -> AttentionConfig:
    bias = r.flag("attention_bias")
    rope = read_rope(r, shape.head_dim)
    return read_attention(r, shape, rope=rope, qk_norm=True, qkv_bias=bias, out_bias=bias)


def read(r: ConfigReader) -> DecoderConfig:
    shape = read_shape(r)
    return decoder(r, shape, sliding_layers(r, shape, read_qwen3_attention(r, shape)), read_mlp(r))


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, LLAMA_WEIGHTS, GGUF_WEIGHTS)
