"""Llama 2 and 3, SmolLM2, Yi, CodeLlama, and DeepSeek's Llama distillates: the plain decoder of this project."""

from __future__ import annotations

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import (
    GGUF_LLAMA_WEIGHTS,
    LLAMA_WEIGHTS,
    Family,
    decoder,
    read_attention,
    read_mlp,
    read_shape,
)
from tokenmill.models.rope_config import read_rope
from tokenmill.nn.config import DecoderConfig


def read(r: ConfigReader) -> DecoderConfig:
    shape, bias = read_shape(r), r.flag("attention_bias")
    r.only("rope_interleaved", False)
    attention = read_attention(r, shape, rope=read_rope(r, shape.head_dim), qkv_bias=bias, out_bias=bias)
    return decoder(r, shape, attention, read_mlp(r, bias=r.flag("mlp_bias")))


FAMILY = Family("llama", "LlamaForCausalLM", read, LLAMA_WEIGHTS, GGUF_LLAMA_WEIGHTS)
