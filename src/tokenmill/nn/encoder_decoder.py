"""T5's pair of stacks: an encoder that sees all of its text, a decoder that sees its own past and the encoder.

Positions come as a learned bias by distance, shared by the layers of a stack. Documents lie in one row each side,
without padding. Axes: S source tokens · T target tokens · C hidden size · H heads · V vocabulary · R distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenmill.nn.attention import Attention
from tokenmill.nn.config import AttentionConfig, EncoderDecoderConfig, LayerConfig, MLPConfig, RelativeBias
from tokenmill.nn.context import Bidirectional
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.mlp import MLP
from tokenmill.nn.norm import Norm
from tokenmill.ops.cross_entropy import finish_logits
from tokenmill.ops.full_attention import full_attention
from tokenmill.ops.linear import linear


def distance_buckets(longest: int, bias: RelativeBias, *, both_ways: bool, device: torch.device) -> Tensor:
    """The bucket of every distance from ``-(longest - 1)`` to ``longest - 1``, int64 [R] (Raffel et al. 2020)."""
    distance_R = torch.arange(1 - longest, longest, device=device)
    buckets, first_R = bias.num_buckets, torch.zeros_like(distance_R)
    if both_ways:
        buckets //= 2
        first_R = (distance_R > 0).long() * buckets
        distance_R = distance_R.abs()
    else:
        distance_R = (-distance_R).clamp(min=0)
    exact = buckets // 2
    # in float32 and in this order, so that borders fall where transformers has them
    logs_R = torch.log(distance_R.clamp(min=1).float() / exact) / math.log(bias.max_distance / exact)
    far_R = (exact + (logs_R * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first_R + torch.where(distance_R < exact, distance_R, far_R)


class CrossAttention(nn.Module):
    """Queries of the target over keys and values of the source, document by document."""

    def __init__(self, hidden_size: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        size = config.num_heads * config.head_dim
        self.q, self.k, self.v = (Linear(hidden_size, size) for _ in range(3))
        self.out = Linear(size, hidden_size)

    def forward(self, x_TC: Tensor, memory_SC: Tensor, lengths: Sequence[int], memory_lengths: Sequence[int]) -> Tensor:
        q_THD, k_SHD, v_SHD = (
            layer(x).unflatten(-1, (-1, self.config.head_dim))
            for layer, x in ((self.q, x_TC), (self.k, memory_SC), (self.v, memory_SC))
        )
        scale = self.config.scale
        out_THD = full_attention(q_THD, k_SHD, v_SHD, q_lens=lengths, kv_lens=memory_lengths, scale=scale)
        return self.out(out_THD.flatten(1))


class PairBlock(nn.Module):
    """One layer of either stack: each part is normalised before, and added."""

    def __init__(self, model: EncoderDecoderConfig, config: LayerConfig, layer: int, *, decodes: bool) -> None:
        super().__init__()
        assert isinstance(config.mlp, MLPConfig)
        size = model.hidden_size
        self.attn_norm = Norm(size, model.norm)
        self.attn = Attention(size, config.attention, model.norm, layer)
        self.cross_norm = Norm(size, model.norm) if decodes else None
        self.cross = CrossAttention(size, config.attention) if decodes else None
        self.mlp_norm = Norm(size, model.norm)
        self.mlp = MLP(size, config.mlp)

    def forward(
        self, x_TC: Tensor, context: Bidirectional, memory_SC: Tensor | None, memory_lengths: Sequence[int]
    ) -> Tensor:
        x_TC = x_TC + self.attn(self.attn_norm(x_TC), None, context)
        if self.cross is not None and self.cross_norm is not None and memory_SC is not None:
            x_TC = x_TC + self.cross(self.cross_norm(x_TC), memory_SC, context.lengths, memory_lengths)
        return x_TC + self.mlp(self.mlp_norm(x_TC))


class Stack(nn.Module):
    """Layers with one bias by distance."""

    def __init__(self, model: EncoderDecoderConfig, layers: Sequence[LayerConfig], *, decodes: bool) -> None:
        super().__init__()
        self.relative, self.decodes = model.relative_bias, decodes
        self.bias = Embedding(model.relative_bias.num_buckets, layers[0].attention.num_heads)
        self.layers = nn.ModuleList(PairBlock(model, layer, i, decodes=decodes) for i, layer in enumerate(layers))
        self.norm = Norm(model.hidden_size, model.norm)

    def forward(
        self, x_TC: Tensor, lengths: Sequence[int], memory_SC: Tensor | None = None, memory_lengths: Sequence[int] = ()
    ) -> Tensor:
        longest, device = max(lengths), x_TC.device
        buckets_R = distance_buckets(longest, self.relative, both_ways=not self.decodes, device=device)
        context = Bidirectional(lengths, device, bias_HR=self.bias(buckets_R).t(), causal=self.decodes)
        for block in self.layers:
            x_TC = block(x_TC, context, memory_SC, memory_lengths)
        return self.norm(x_TC)


class EncoderDecoder(nn.Module):
    """A model from one text to another. Built empty; ``models`` fills it from files."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config, config.layers, decodes=False)
        self.decoder = Stack(config, config.decoder_layers, decodes=True)
        self.head = None if config.tied_embeddings else Linear(config.hidden_size, config.vocab_size)

    def encode(self, tokens_S: Tensor, lengths: Sequence[int]) -> Tensor:
        """The source as the decoder sees it, [S, C]; ``lengths`` of its documents."""
        return self.encoder(self.embed(tokens_S), lengths)

    def hidden(
        self, tokens_T: Tensor, lengths: Sequence[int], memory_SC: Tensor, memory_lengths: Sequence[int]
    ) -> Tensor:
        """The decoder's state for every target token, [T, C]; document i attends to document i of the source."""
        return self.decoder(self.embed(tokens_T), lengths, memory_SC, memory_lengths)

    def logits(self, hidden_TC: Tensor) -> Tensor:
        """Scores over the vocabulary, [T, V]. Pass only the rows that are needed."""
        logits_TV = linear(hidden_TC, self.embed.weight) if self.head is None else self.head(hidden_TC)
        return finish_logits(logits_TV, self.config.logit_scale, self.config.logit_softcap)

    def forward(
        self, tokens_S: Tensor, source_lengths: Sequence[int], tokens_T: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Logits of every target token, [T, V]."""
        return self.logits(self.hidden(tokens_T, lengths, self.encode(tokens_S, source_lengths), source_lengths))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self.encoder.norm.weight.dtype
