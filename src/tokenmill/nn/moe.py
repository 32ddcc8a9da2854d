"""Mixture of experts (Shazeer et al. 2017, Jiang et al. 2024): a router sends each token to a few of many MLPs.

Axes: T tokens · C hidden size · E experts · A experts a token is sent to · F expert size. Expert weights are stacked
[E, out, in], so that grouped kernels and quantisers find them in one tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.nn.config import MoEConfig
from tokenmill.nn.linear import Linear
from tokenmill.ops.activation import gated_activation
from tokenmill.ops.linear import linear


class StackedLinear(nn.Module):
    """One bias-free linear layer an expert, ``weight`` [E, out, in]."""

    def __init__(self, num_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return linear(x, self.weight[expert])


class Experts(nn.Module):
    """Gated MLPs side by side."""

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        self.activation = config.expert.activation
        self.gate = StackedLinear(config.num_experts, hidden_size, config.expert.size)
        self.up = StackedLinear(config.num_experts, hidden_size, config.expert.size)
        self.down = StackedLinear(config.num_experts, config.expert.size, hidden_size)

    def forward(self, x_TC: Tensor, expert: int) -> Tensor:
        hidden_TF = gated_activation(self.gate(x_TC, expert), self.up(x_TC, expert), self.activation)
        return self.down(hidden_TF, expert)


class MoE(nn.Module):
    """Route, run the chosen experts, add up what they say by the router's weights. [T, C] to [T, C]."""

    def __init__(self, hidden_size: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Linear(hidden_size, config.num_experts)
        self.experts = Experts(hidden_size, config)

    def forward(self, x_TC: Tensor) -> Tensor:
        # Softmax in float32: a tie broken by rounding would send a token to another expert
        weights_TE = torch.softmax(self.router(x_TC).float(), dim=-1)
        weights_TA, chosen_TA = weights_TE.topk(self.config.experts_per_token, dim=-1)
        if self.config.normalize_weights:
            weights_TA = weights_TA / weights_TA.sum(-1, keepdim=True)
        out_TC = torch.zeros_like(x_TC)
        for expert in chosen_TA.unique().tolist():
            tokens, slots = (chosen_TA == expert).nonzero(as_tuple=True)
            said = self.experts(x_TC[tokens], expert) * weights_TA[tokens, slots, None].to(x_TC.dtype)
            out_TC = out_TC.index_add(0, tokens, said)
        return out_TC
