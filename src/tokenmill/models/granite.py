"""IBM Granite 3: Llama with four multipliers (embedding, attention, residual, logits)."""

from __future__ import annotations

from typing import Any

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
    attention = read_attention(
        r,
        shape,
        rope=read_rope(r, shape.head_dim),
        scale=r.number("attention_multiplier", 1.0),
        qkv_bias=bias,
        out_bias=bias,
    )
    return decoder(
        r,
        shape,
        attention,
        read_mlp(r, bias=r.flag("mlp_bias")),
        embedding_scale=r.number("embedding_multiplier", 1.0),
        residual_scale=r.number("residual_multiplier", 1.0),
        logit_scale=1.0 / r.number("logits_scaling", 1.0, least=1e-6),
    )


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    config["attention_multiplier"] = r.get("attention.scale", config["head_dim"] ** -0.5)
    config["embedding_multiplier"] = r.get("embedding_scale", 1.0)
    config["residual_multiplier"] = r.get("residual_scale", 1.0)
    config["logits_scaling"] = r.get("logit_scale", 1.0)


FAMILY = Family("granite", "GraniteForCausalLM", read, LLAMA_WEIGHTS, GGUF_LLAMA_WEIGHTS, gguf_config)
