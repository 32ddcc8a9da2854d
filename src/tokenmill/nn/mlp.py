"""The feed-forward block: GELU, SwiGLU, GeGLU (Shazeer 2020), by the configuration's ``activation`` and ``gated``."""

from __future__ import annotations

from torch import Tensor, nn

from tokenmill.nn.config import MLPConfig
from tokenmill.nn.linear import Linear
from tokenmill.ops.activation import gated_activation, plain_activation


class MLP(nn.Module):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate. [T, C] to [T, C]."""

    def __init__(self, hidden_size: int, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(hidden_size, config.size, config.bias) if config.gated else None
        self.up = Linear(hidden_size, config.size, config.bias)
        self.down = Linear(config.size, hidden_size, config.bias)

    def forward(self, x_TC: Tensor) -> Tensor:
        up_TF = self.up(x_TC)
        if self.gate is None:
            return self.down(plain_activation(up_TF, self.config.activation))
        return self.down(gated_activation(self.gate(x_TC), up_TF, self.config.activation))
