"""StarCoder 2: LayerNorm, biases, an ungated GELU feed-forward, grouped queries, an optional window."""

from __future__ import annotations

from typing import Any

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
from tokenmill.models.weights import changed, row
from tokenmill.nn.config import DecoderConfig, NormConfig


def read(r: ConfigReader) -> DecoderConfig:
    shape, bias = read_shape(r), r.flag("use_bias", True)
    attention = read_attention(
        r, shape, rope=read_rope(r, shape.head_dim), window=read_window(r), qkv_bias=bias, out_bias=bias
    )
    r.only("mlp_type", "default")
    r.only("norm_type", "layer_norm")
    mlp = read_mlp(r, activation="gelu_pytorch_tanh", gated=False, bias=bias)
    norm = NormConfig("layer", r.number("norm_epsilon", 1e-5), bias=True)
    return decoder(r, shape, attention, mlp, norm=norm, tied=True)


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    del r
    config["use_bias"] = config.pop("attention_bias", False)


WEIGHTS = changed(
    LLAMA_WEIGHTS,
    row(f"{LAYER}.mlp.c_fc", f"{OURS}.mlp.up"),
    row(f"{LAYER}.mlp.c_proj", f"{OURS}.mlp.down"),
)

FAMILY = Family("starcoder2", "Starcoder2ForCausalLM", read, WEIGHTS, GGUF_WEIGHTS, gguf_config)
