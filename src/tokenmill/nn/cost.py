"""What a decoder costs: parameters, floating-point operations, KV-cache bytes. From the configuration alone, no torch.

The one source of truth for ``show``, benchmarks and the planner. Formulas: Kaplan et al. 2020 (2 operations a weight
and token), attention counted on top, grouped-query and sliding-window attention as they really are.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.nn.config import (
    AttentionConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    LayerConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
)


def _linear(rows: int, columns: int, bias: bool) -> int:
    return rows * columns + (rows if bias else 0)


def _norm(size: int, config: NormConfig) -> int:
    return size * (2 if config.bias else 1)


def _attention(hidden: int, a: AttentionConfig, norm: NormConfig) -> int:
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    projections = _linear(q, hidden, a.qkv_bias) + 2 * _linear(kv, hidden, a.qkv_bias) + _linear(hidden, q, a.out_bias)
    return projections + (2 * _norm(a.head_dim, norm) if a.qk_norm else 0)


def _mlp(hidden: int, m: MLPConfig) -> int:
    return (2 if m.gated else 1) * _linear(m.size, hidden, m.bias) + _linear(hidden, m.size, m.bias)


def _feed_forward(hidden: int, mlp: MLPConfig | MoEConfig, active: bool) -> int:
    if isinstance(mlp, MLPConfig):
        return _mlp(hidden, mlp)
    experts = mlp.experts_per_token if active else mlp.num_experts
    return _linear(mlp.num_experts, hidden, bias=False) + experts * _mlp(hidden, mlp.expert)


def parameters(config: Config, *, active: bool = False) -> int:
    """Number of weights; with ``active`` only those that one token meets (fewer with a mixture of experts)."""
    if isinstance(config, EncoderConfig):
        return _encoder(config)
    if isinstance(config, EncoderDecoderConfig):
        return _encoder_decoder(config)
    hidden = config.hidden_size
    norms = (4 if config.post_norms else 2) * _norm(hidden, config.norm)
    layers = sum(
        _attention(hidden, layer.attention, config.norm) + _feed_forward(hidden, layer.mlp, active) + norms
        for layer in config.layers
    )
    tables = 1 if config.tied_embeddings or config.num_labels else 2
    embeddings = (config.vocab_size * tables + config.num_labels) * hidden
    positions = config.max_position * hidden if config.learned_positions else 0
    return embeddings + positions + layers + _norm(hidden, config.norm)


def _layers(hidden: int, layers: Iterable[LayerConfig], norm: NormConfig) -> int:
    norms = 2 * _norm(hidden, norm)
    return sum(_attention(hidden, x.attention, norm) + _feed_forward(hidden, x.mlp, False) + norms for x in layers)


def _encoder(c: EncoderConfig) -> int:
    hidden, norm = c.hidden_size, _norm(c.hidden_size, c.norm)
    tables = c.vocab_size + c.max_position + c.position_offset + c.token_types
    head = _linear(hidden, hidden, True) + norm + c.vocab_size * (1 if c.tied_embeddings else 1 + hidden)
    return tables * hidden + norm + _layers(hidden, c.layers, c.norm) + head


def _encoder_decoder(c: EncoderDecoderConfig) -> int:
    hidden, norm = c.hidden_size, _norm(c.hidden_size, c.norm)
    cross = sum(_attention(hidden, layer.attention, c.norm) + norm for layer in c.decoder_layers)
    stacks = _layers(hidden, c.layers, c.norm) + _layers(hidden, c.decoder_layers, c.norm) + 2 * norm
    biases = c.relative_bias.num_buckets * (c.layers[0].attention.num_heads + c.decoder_layers[0].attention.num_heads)
    return c.vocab_size * hidden * (1 if c.tied_embeddings else 2) + stacks + cross + biases


def kv_bytes_per_token(config: DecoderConfig, bytes_per_value: float = 2) -> float:
    """Bytes that the first tokens add to the cache, each, all layers together."""
    return kv_bytes(config, 1, bytes_per_value)


def kv_bytes(config: DecoderConfig, length: int, bytes_per_value: float = 2) -> float:
    """Bytes of the cache of one sequence of ``length`` tokens, where a windowed layer keeps no more than its window."""
    values = sum(
        2 * layer.attention.num_kv_heads * layer.attention.head_dim * min(length, layer.attention.window or length)
        for layer in config.layers
    )
    return values * bytes_per_value


def flops_per_token(config: DecoderConfig, context: int) -> float:
    """Operations of the forward pass for one token that sees ``context`` keys. Training costs three times as much."""
    lookups = config.vocab_size * config.hidden_size  # the embedding is read, not multiplied
    lookups += config.max_position * config.hidden_size if config.learned_positions else 0
    head = config.vocab_size * config.hidden_size if config.tied_embeddings and not config.num_labels else 0
    weights = parameters(config, active=True) - lookups + head
    attention = sum(
        4 * layer.attention.num_heads * layer.attention.head_dim * min(context, layer.attention.window or context)
        for layer in config.layers
    )
    return 2 * weights + attention
