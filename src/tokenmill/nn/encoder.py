"""The encoder that BERT's relatives share: every token sees its whole document, norms follow the residual sums.

Documents lie in one row, without padding. Axes: T tokens · C hidden size · V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.nn.attention import Attention
from tokenmill.nn.config import EncoderConfig, LayerConfig, MLPConfig
from tokenmill.nn.context import Bidirectional
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.mlp import MLP
from tokenmill.nn.norm import Norm
from tokenmill.ops.activation import activation
from tokenmill.ops.linear import linear


class EncoderBlock(nn.Module):
    """Attention, then feed-forward, each added and then normalised (post-norm, as Vaswani et al. 2017)."""

    def __init__(self, model: EncoderConfig, config: LayerConfig, layer: int) -> None:
        super().__init__()
        assert isinstance(config.mlp, MLPConfig)
        self.attn = Attention(model.hidden_size, config.attention, model.norm, layer)
        self.attn_norm = Norm(model.hidden_size, model.norm)
        self.mlp = MLP(model.hidden_size, config.mlp)
        self.mlp_norm = Norm(model.hidden_size, model.norm)

    def forward(self, x_TC: Tensor, context: Bidirectional) -> Tensor:
        x_TC = self.attn_norm(x_TC + self.attn(x_TC, None, context))
        return self.mlp_norm(x_TC + self.mlp(x_TC))


class MaskedHead(nn.Module):
    """``norm(act(dense(x)))``, then scores over the vocabulary with a bias; the matrix is the embedding where tied."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.norm = Norm(config.hidden_size, config.norm)
        self.out = None if config.tied_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x_TC: Tensor, embedding_VC: Tensor) -> Tensor:
        x_TC = self.norm(activation(self.config.head_activation)(self.dense(x_TC)))
        return linear(x_TC, embedding_VC, self.bias) if self.out is None else self.out(x_TC) + self.bias


class Encoder(nn.Module):
    """A masked language model. Built empty (``torch.device("meta")`` is fine); ``models`` fills it from files."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.positions = Embedding(config.max_position + config.position_offset, config.hidden_size)
        self.types = Embedding(config.token_types, config.hidden_size) if config.token_types else None
        self.embed_norm = Norm(config.hidden_size, config.norm)
        self.layers = nn.ModuleList(EncoderBlock(config, layer, i) for i, layer in enumerate(config.layers))
        self.head = MaskedHead(config)

    def hidden(self, tokens_T: Tensor, context: Bidirectional, types_T: Tensor | None = None) -> Tensor:
        """The hidden state of every token, [T, C]. ``types_T``: which segment a token belongs to; all 0 without it."""
        x_TC = self.embed(tokens_T) + self.positions(context.positions_T + self.config.position_offset)
        if self.types is not None:
            x_TC = x_TC + self.types(torch.zeros_like(tokens_T) if types_T is None else types_T)
        x_TC = self.embed_norm(x_TC)
        for block in self.layers:
            x_TC = block(x_TC, context)
        return x_TC

    def logits(self, hidden_TC: Tensor) -> Tensor:
        """Scores over the vocabulary for what stands in each place, [T, V]. Pass only the rows that are needed."""
        return self.head(hidden_TC, self.embed.weight)

    def forward(self, tokens_T: Tensor, context: Bidirectional, types_T: Tensor | None = None) -> Tensor:
        """Logits of every token, [T, V]."""
        return self.logits(self.hidden(tokens_T, context, types_T))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self.embed_norm.weight.dtype
