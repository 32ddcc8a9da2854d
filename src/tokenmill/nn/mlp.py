"""The feed-forward block: GELU, SwiGLU, GeGLU (Shazeer 2020), by the configuration's ``activation`` and ``gated``."""

from __future__ import annotations

from torch import Tensor, nn

from tokenmill.nn.config import MLPConfig
from tokenmill.nn.linear import Linear
from tokenmill.ops.activation import gated_activation, plain_activation
from tokenmill.ops.linear import linear
from tokenmill.ops.recompute import remember


class MLP(nn.Module):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate. [T, C] to [T, C]."""

    def __init__(self, hidden_size: int, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(hidden_size, config.size, config.bias) if config.gated else None
        self.up = Linear(hidden_size, config.size, config.bias)
        self.down = Linear(config.size, hidden_size, config.bias)

    def forward(self, x_TC: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(plain_activation(self.up(x_TC), self.config.activation))
        gate_TF, up_TF = (_computed_again(layer, x_TC) for layer in (self.gate, self.up))
        return self.down(gated_activation(gate_TF, up_TF, self.config.activation))


def _computed_again(layer: Linear, x_TC: Tensor) -> Tensor:
    """The layer's result, for the backward pass to be computed anew: gates are the widest that a decoder keeps, half
    of all its activations. Layers that are more than a matrix (adapted, quantised) keep theirs."""
    y_TF: Tensor = layer(x_TC)
    if type(layer) is not Linear or not isinstance(x_TC, Tensor):
        return y_TF
    return remember(y_TF, linear, x_TC, layer.weight, layer.bias)
