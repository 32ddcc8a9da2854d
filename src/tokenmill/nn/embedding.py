"""The token (or position) table. Not torch's: that one draws random numbers as it is made, which on the meta device
imports half of torch and costs 1.6 s of the time to the first token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.ops.linear import linear
from tokenmill.ops.packed import embedding


class Embedding(nn.Module):
    """Rows of ``weight`` [num_rows, size] by index. Created empty, filled by loading or initialisation."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, size))

    def forward(self, indices: Tensor) -> Tensor:
        """[...] int64 to [..., size]."""
        return embedding(indices, self.weight)

    def scores(self, hidden_TC: Tensor) -> Tensor:
        """How well each row fits each token, [T, num_rows]: the head of a model that ties it to its embedding."""
        return linear(hidden_TC, self.weight)
