"""Mistral 7B and its kin: Llama with a sliding window in every layer, where the configuration has one."""

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


def read_window(r: ConfigReader, default: int | None = None) -> int | None:
    """``sliding_window``: a count, or null for none; ``default`` where the key is absent."""
    return None if r.get("sliding_window", default) is None else r.integer("sliding_window", default)


def read(r: ConfigReader) -> DecoderConfig:
    shape = read_shape(r)
    attention = read_attention(r, shape, rope=read_rope(r, shape.head_dim), window=read_window(r, 4096))
    return decoder(r, shape, attention, read_mlp(r))


FAMILY = Family("mistral", "MistralForCausalLM", read, LLAMA_WEIGHTS, GGUF_LLAMA_WEIGHTS)
