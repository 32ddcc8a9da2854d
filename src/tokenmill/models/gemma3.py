"""Gemma 3, text: Gemma 2's blocks with normalised queries and keys, and another rotary base for the sliding layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenmill.models import gemma2
from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import Family, read_layer_types, read_shape
from tokenmill.models.mistral import read_window
from tokenmill.models.rope_config import LEAST_THETA, read_rope
from tokenmill.nn.config import DecoderConfig, RopeConfig


def read(r: ConfigReader) -> DecoderConfig:
    shape, window = read_shape(r), read_window(r, 4096)
    softcap = r.optional("attn_logit_softcapping")
    everywhere = read_rope(r, shape.head_dim, theta=1e6, layer_type="full_attention")
    nested = r.get("rope_parameters")
    if isinstance(nested, Mapping) and "sliding_attention" in nested:
        nearby = read_rope(r, shape.head_dim, layer_type="sliding_attention")
        r.get("rope_local_base_freq")
    else:  # the scaling of older files concerns the full layers only
        nearby = RopeConfig(
            everywhere.dim, r.number("rope_local_base_freq", 1e4, least=LEAST_THETA), None, everywhere.max_position
        )
    attention = gemma2.read_gemma_attention(r, shape, rope=everywhere, softcap=softcap, qk_norm=True)
    period = r.integer("sliding_window_pattern", r.get("_sliding_window_pattern", 6))
    slides = read_layer_types(r, shape.num_layers, lambda layer: (layer + 1) % period != 0)
    attentions = [replace(attention, window=window, rope=nearby) if slide else attention for slide in slides]
    return gemma2.gemma_decoder(r, shape, attentions, final_softcap=None)


def gguf_config(r: ConfigReader, config: dict[str, Any]) -> None:
    # As in llama.cpp: the 27B (62 layers) scales by its share of the hidden size, the others by the head size
    wide = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = wide if config["num_hidden_layers"] == 62 else config["head_dim"]
    local = r.get("rope.freq_base_swa", 10000.0)
    config["rope_local_base_freq"] = local


FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, gemma2.WEIGHTS, gemma2.GGUF, gguf_config)
