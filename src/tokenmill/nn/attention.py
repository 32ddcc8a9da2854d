"""The attention block: project, normalise and turn heads, attend through the context, project back.

MHA, GQA, MQA, sliding windows, soft-capping, QK-norm, biases and ALiBi are fields of the configuration.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.nn.config import AttentionConfig, NormConfig, alibi_slopes
from tokenmill.nn.context import AttentionContext, How
from tokenmill.nn.linear import Linear
from tokenmill.nn.norm import Norm
from tokenmill.ops.rope import apply_rope


class Attention(nn.Module):
    """Axes: T tokens · C hidden size · H, K, D as in ``ops/attention.py`` · R rotated features."""

    def __init__(self, hidden_size: int, config: AttentionConfig, norm: NormConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = Linear(hidden_size, q_size, config.qkv_bias)
        self.k = Linear(hidden_size, kv_size, config.qkv_bias)
        self.v = Linear(hidden_size, kv_size, config.qkv_bias)
        self.out = Linear(q_size, hidden_size, config.out_bias)
        self.q_norm = Norm(config.head_dim, norm) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, norm) if config.qk_norm else None

    def forward(self, x_TC: Tensor, rotary: tuple[Tensor, Tensor] | None, context: AttentionContext) -> Tensor:
        """``rotary``: cosines and sines [T, R], or None where positions come in another way. Returns [T, C]."""
        q_THD = self.q(x_TC).unflatten(-1, (-1, self.config.head_dim))
        k_TKD = self.k(x_TC).unflatten(-1, (-1, self.config.head_dim))
        v_TKD = self.v(x_TC).unflatten(-1, (-1, self.config.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_THD, k_TKD = self.q_norm(q_THD), self.k_norm(k_TKD)
        if rotary is not None:
            q_THD, k_TKD = apply_rope(q_THD, *rotary), apply_rope(k_TKD, *rotary)
        out_THD = context.attend(self.layer, q_THD, k_TKD, v_TKD, self._how(x_TC.device))
        return self.out(out_THD.flatten(1))

    def _how(self, device: torch.device) -> How:
        c = self.config
        alibi_H = torch.tensor(alibi_slopes(c.num_heads), device=device) if c.alibi else None
        return How(scale=c.scale, window=c.window, softcap=c.softcap, alibi_H=alibi_H)
