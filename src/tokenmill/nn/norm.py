"""The norm layer of a :class:`~tokenmill.nn.config.NormConfig`; the arithmetic is in ``ops/norm.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.nn.config import NormConfig
from tokenmill.ops.norm import layer_norm, rms_norm


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis. ``weight`` [D] is kept as the family stores it (see ``unit_offset``)."""

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.config.kind == "layer":
            return layer_norm(x, self.weight, self.bias, self.config.eps)
        # In float32: a bf16 weight near zero loses its digits when one is added (Gemma's own code does the same)
        weight = 1.0 + self.weight.float() if self.config.unit_offset else self.weight
        return rms_norm(x, weight, self.config.eps)
