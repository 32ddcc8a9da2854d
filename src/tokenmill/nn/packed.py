"""Layers over packed matrices (``ops/packed.py``): they serve, and are not trained."""

from __future__ import annotations

from torch import Tensor, nn

from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import LinearLayer
from tokenmill.ops.packed import Packed, embedding, packed_linear


class PackedLinear(LinearLayer):
    """Stands where a plain linear layer stood and keeps its bias."""

    def __init__(self, packed: Packed, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.packed, self.bias = packed, bias
        self.quantization = packed.kind

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.packed, self.bias)

    def dense(self) -> Tensor:
        return self.packed.dense()


class PackedEmbedding(Embedding):
    """The token table; where a model ties its head to it, also the head."""

    def __init__(self, packed: Packed) -> None:
        nn.Module.__init__(self)
        self.packed = packed

    def forward(self, indices: Tensor) -> Tensor:
        return embedding(indices, self.packed)

    def scores(self, hidden_TC: Tensor) -> Tensor:
        return packed_linear(hidden_TC, self.packed)


def is_packed(model: nn.Module) -> bool:
    """Whether any layer of a model is packed."""
    return any(isinstance(module, PackedLinear | PackedEmbedding) for module in model.modules())
