"""The decoder that every family shares: embed, run the layers, normalise, project to the vocabulary.

All sequences of a pass lie in one row of tokens, without padding; the context knows where each begins.
Axes: T tokens · C hidden size · V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.formats.cache_scales import CacheScales
from tokenmill.nn.attention import Attention
from tokenmill.nn.config import DecoderConfig, LayerConfig, MoEConfig, RopeConfig
from tokenmill.nn.context import AttentionContext
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.mlp import MLP
from tokenmill.nn.moe import MoE
from tokenmill.nn.norm import Norm
from tokenmill.nn.rope import Rotary
from tokenmill.ops.cross_entropy import finish_logits


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised before (and after, with ``post_norms``) and added."""

    def __init__(self, model: DecoderConfig, config: LayerConfig, layer: int) -> None:
        super().__init__()
        size = model.hidden_size
        self.residual_scale = model.residual_scale
        self.attn_norm = Norm(size, model.norm)
        self.attn = Attention(size, config.attention, model.norm, layer)
        self.attn_post_norm = Norm(size, model.norm) if model.post_norms else nn.Identity()
        self.mlp_norm = Norm(size, model.norm)
        self.mlp = MoE(size, config.mlp) if isinstance(config.mlp, MoEConfig) else MLP(size, config.mlp)
        self.mlp_post_norm = Norm(size, model.norm) if model.post_norms else nn.Identity()

    def forward(self, x_TC: Tensor, rotary: tuple[Tensor, Tensor] | None, context: AttentionContext) -> Tensor:
        attended_TC = self.attn_post_norm(self.attn(self.attn_norm(x_TC), rotary, context))
        x_TC = x_TC + self._scaled(attended_TC)
        return x_TC + self._scaled(self.mlp_post_norm(self.mlp(self.mlp_norm(x_TC))))

    def _scaled(self, x_TC: Tensor) -> Tensor:
        return x_TC if self.residual_scale == 1.0 else x_TC * self.residual_scale


class Prompt(nn.Module):
    """Learned positions before every document (``adapt/virtual.py``): stands between a decoder's tokens and blocks."""

    @property
    def count(self) -> int:
        """How many positions: token ids from the vocabulary's size on stand for them."""
        raise NotImplementedError

    def forward(self, decoder: Decoder, tokens_T: Tensor, context: AttentionContext) -> Tensor:
        """What :meth:`Decoder.hidden` returns, [T, C]; calls :meth:`Decoder.run` for it."""
        raise NotImplementedError


class Decoder(nn.Module):
    """A causal language model. Built empty (``torch.device("meta")`` is fine); ``models`` fills it from files."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.positions = Embedding(config.max_position, config.hidden_size) if config.learned_positions else None
        self.layers = nn.ModuleList(Block(config, layer, i) for i, layer in enumerate(config.layers))
        self.norm = Norm(config.hidden_size, config.norm)
        self.head = (
            None if config.tied_embeddings or config.num_labels else Linear(config.hidden_size, config.vocab_size)
        )
        ropes = dict.fromkeys(layer.attention.rope for layer in config.layers)  # a set that keeps its order
        self.rotaries = {rope: Rotary(rope) for rope in ropes if rope is not None}
        self.prompt: Prompt | None = None
        self.cache_scales: CacheScales | None = None
        """What the model's folder says of keys and values in 8 bits; an engine's cache asks for it."""

    def hidden(self, tokens_T: Tensor, context: AttentionContext) -> Tensor:
        """The normalised hidden state of every token, [T, C]."""
        if self.prompt is not None:
            hidden_TC: Tensor = self.prompt(self, tokens_T, context)
            return hidden_TC
        return self.run(self.embed(tokens_T), context)

    def begin(self, x_TC: Tensor, context: AttentionContext) -> tuple[Tensor, dict[RopeConfig, tuple[Tensor, Tensor]]]:
        """Embeddings [T, C] as the first layer takes them, and the cosines and sines of every kind of layer."""
        if self.config.embedding_scale != 1.0:
            # Rounded to the weights' dtype first, as Gemma was trained: sqrt(C) is not the same number in bf16
            x_TC = x_TC * torch.tensor(self.config.embedding_scale, dtype=x_TC.dtype, device=x_TC.device)
        if self.positions is not None:
            x_TC = x_TC + self.positions(context.positions_T)
        angles = {
            rope: rotary(context.positions_T, context.lengths_T, x_TC.dtype) for rope, rotary in self.rotaries.items()
        }
        return x_TC, angles

    def run(self, x_TC: Tensor, context: AttentionContext) -> Tensor:
        """From embeddings to hidden states, [T, C] both: what :meth:`hidden` does behind the embedding."""
        x_TC, angles = self.begin(x_TC, context)
        for block, layer in zip(self.layers, self.config.layers, strict=True):
            rope = layer.attention.rope
            x_TC = block(x_TC, None if rope is None else angles[rope], context)
        return self.norm(x_TC)

    def logits(self, hidden_TC: Tensor) -> Tensor:
        """Scores over the vocabulary, [T, V] in the weights' dtype. Pass only the rows that are needed."""
        logits_TV = self.embed.scores(hidden_TC) if self.head is None else self.head(hidden_TC)
        return finish_logits(logits_TV, self.config.logit_scale, self.config.logit_softcap)

    def forward(self, tokens_T: Tensor, context: AttentionContext) -> Tensor:
        """Logits of every token, [T, V]."""
        return self.logits(self.hidden(tokens_T, context))

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype
