"""What a state is worth: a scalar head on a policy's hidden states, or on those of a model of its own.

The value of a token stands where its label stands, at the position before it: what is left to be had when it is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenmill.nn.context import Packed
from tokenmill.nn.linear import Linear
from tokenmill.nn.scorer import Scorer


class Critic(nn.Module):
    """Values of all positions of packed documents.

    Args:
        hidden_size: of the policy, whose hidden states are read.
        trunk: a model of its own instead, with its score head.
    """

    def __init__(self, hidden_size: int, trunk: Scorer | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        # zero: before it has learned anything every state is worth the same, and no noise enters the advantages
        self.weight = None if trunk else nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_TC: Tensor, tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """[T] float32. ``hidden_TC``: the policy's."""
        if self.trunk is None:
            assert self.weight is not None
            values_T: Tensor = hidden_TC.float() @ self.weight
        else:
            own_TC = self.trunk.hidden(tokens_T, Packed(lengths, tokens_T.device))
            head = self.trunk.score
            if isinstance(head, Linear):  # in float32, as reward models are trained, over a trunk in 16 bits
                own_TC = own_TC.to(head.weight.dtype)
            values_T = head(own_TC).float()[:, 0]
        return values_T + self.bias
