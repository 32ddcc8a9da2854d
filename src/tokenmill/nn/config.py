"""What a decoder is, in tokenmill's words: plain frozen dataclasses, no torch.

A family translates its ``config.json`` into these (``models/``); blocks, cost accounting and planner read only these.
Layers may differ from each other (Gemma's sliding layers, Qwen-MoE's dense ones), so each has its own attention and
feed-forward part; equal parts are the same object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the model was trained on. See ``nn/rope.py``."""

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True)
class RopeConfig:
    dim: int
    """How many features of a head are turned; the head size, or a part of it."""
    theta: float = 10000.0
    scaling: RopeScaling | None = None
    max_position: int = 2048
    """The context the model says it can do; dynamic NTK starts to stretch beyond it."""


@dataclass(frozen=True)
class AttentionConfig:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None = None
    alibi: bool = False
    window: int | None = None
    softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised head by head before they are turned (Qwen3, Gemma 3)."""


@dataclass(frozen=True)
class MLPConfig:
    size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class MoEConfig:
    num_experts: int
    experts_per_token: int
    expert: MLPConfig
    normalize_weights: bool = True
    """Divide the chosen experts' router weights by their sum (``norm_topk_prob``)."""


@dataclass(frozen=True)
class NormConfig:
    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    bias: bool = False
    unit_offset: bool = False
    """The stored weight is the difference from one (Gemma)."""


@dataclass(frozen=True)
class LayerConfig:
    attention: AttentionConfig
    mlp: MLPConfig | MoEConfig


@dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    max_position: int
    norm: NormConfig = field(default_factory=NormConfig)
    post_norms: bool = False
    """Also normalise what attention and feed-forward return, before it is added (Gemma's sandwich)."""
    learned_positions: bool = False
    tied_embeddings: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    num_labels: int = 0
    """Numbers that a text is scored with instead of being continued (:class:`tokenmill.nn.scorer.Scorer`)."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder with a head that says what stands in masked places (BERT, RoBERTa)."""

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    max_position: int
    norm: NormConfig
    token_types: int = 0
    position_offset: int = 0
    """The row of the position table that the first token has (RoBERTa: the padding id + 1)."""
    head_activation: str = "gelu"
    tied_embeddings: bool = True

    @property
    def num_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class RelativeBias:
    """T5's learned bias by distance: exact near by, in logarithmic buckets up to ``max_distance``."""

    num_buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """An encoder, and a decoder that attends to it (T5)."""

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    """The encoder's."""
    decoder_layers: tuple[LayerConfig, ...]
    norm: NormConfig
    relative_bias: RelativeBias
    max_position: int
    """No limit of the model's: relative positions have none. What it was trained on."""
    tied_embeddings: bool = True
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    @property
    def num_layers(self) -> int:
        """Layers of the longer side, which is how far weight names count."""
        return max(len(self.layers), len(self.decoder_layers))


Config = DecoderConfig | EncoderConfig | EncoderDecoderConfig


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope a head: a geometric series from 2^(-8/n); heads beyond a power of two take every other of the next."""
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return slopes + [2 ** (-4 * (2 * i + 1) / whole) for i in range(num_heads - whole)]
