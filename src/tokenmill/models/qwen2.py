"""Qwen 2 and 2.5: biases on queries, keys and values; upper layers may slide."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import (
    GGUF_WEIGHTS,
    LLAMA_WEIGHTS,
    Family,
    Shape,
    decoder,
    read_attention,
    read_layer_types,
    read_mlp,
    read_shape,
)
from tokenmill.models.mistral import read_window
from tokenmill.models.rope_config import read_rope
from tokenmill.nn.config import AttentionConfig, DecoderConfig


def sliding_layers(r: ConfigReader, shape: Shape, attention: AttentionConfig) -> list[AttentionConfig]:
    """Qwen's rule: with ``use_sliding_window`` the layers from ``max_window_layers`` on slide."""
    window = read_window(r, 4096) if r.flag("use_sliding_window") else None
    r.get("sliding_window")  # present and meaningless without use_sliding_window
    first = int(r.number("max_window_layers", 28))  # may be 0, which no count is
    slides = read_layer_types(r, shape.num_layers, lambda layer: window is not None and layer >= first)
    if any(slides) and window is None:
        r.problem("'layer_types' asks for sliding layers, but there is no 'sliding_window' (see 'use_sliding_window')")
    return [replace(attention, window=window if slide else None) for slide in slides]


def read(r: ConfigReader) -> DecoderConfig:
    shape = read_shape(r)
    r.only("use_mrope", False)
    attention = read_attention(r, shape, rope=read_rope(r, shape.head_dim), qkv_bias=True)
    return decoder(r, shape, sliding_layers(r, shape, attention), read_mlp(r))


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, LLAMA_WEIGHTS, GGUF_WEIGHTS)
