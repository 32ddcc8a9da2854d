"""The linear layer. Adapters and quantised weights replace this module in place; nothing else in a model multiplies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.ops.linear import linear


class LinearLayer(nn.Module):
    """What every linear layer has, plain or quantised, so that an adapter can sit on any: ``y = x W^T + b``."""

    in_features: int
    out_features: int
    bias: Tensor | None
    quantization: str | None = None
    """The number format that the weight is packed in, as an adapter's folder names it (``nf4-double``)."""

    def dense(self) -> Tensor:
        """The weight [out, in] as it multiplies; a quantised layer unpacks it. Without a gradient."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Linear(LinearLayer):
    """With ``weight`` [out, in], as Hugging Face files have it. Created empty, filled by loading."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def dense(self) -> Tensor:
        return self.weight.detach()
