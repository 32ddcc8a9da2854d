"""Linear layers over NF4 weights (``formats/nf4.py``): what QLoRA trains over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError
from tokenmill.formats.nf4 import NF4, dequantize, dynamic_map, quantize
from tokenmill.nn.linear import Linear, LinearLayer
from tokenmill.ops.linear import linear

__all__ = ["NF4", "NF4Linear", "dequantize", "dynamic_map", "is_quantized_with_qlora", "quantize", "quantize_linears"]


class _Multiply(torch.autograd.Function):
    """``x W^T`` that keeps the packed weight for the backward pass, not the dense one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return linear(x, dequantize(layer.packed_weight(), x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ dequantize(ctx.layer.packed_weight(), grad.dtype), None


class NF4Linear(LinearLayer):
    """A frozen linear layer over an NF4 weight, multiplied in the dtype of its input."""

    packed: Tensor
    scales: Tensor
    nested: Tensor | None
    offset: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, double: bool = True) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        packed = quantize(weight, double=double)
        self.quantization = "nf4-double" if double else "nf4"
        self.dtype = packed.dtype
        self.register_buffer("packed", packed.packed, persistent=False)
        self.register_buffer("scales", packed.scales, persistent=False)
        self.register_buffer("nested", packed.nested, persistent=False)
        self.register_buffer("offset", packed.offset, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def packed_weight(self) -> NF4:
        """The weight as it lies in memory."""
        shape = torch.Size((self.out_features, self.in_features))
        return NF4(self.packed, self.scales, self.nested, self.offset, shape, self.dtype)

    def dense(self) -> Tensor:
        return dequantize(self.packed_weight())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Multiply.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize_linears(model: nn.Module, *, double: bool = True) -> int:
    """Replace the linear layers of a model's blocks by NF4 ones, in place; returns how many.

    The output matrix and the routers of experts stay as they are, as everywhere with QLoRA. ConfigError where there
    is nothing to quantise.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Linear) and is_quantized_with_qlora(name)]
    if not found:
        raise ConfigError("this model has no plain linear layers left that could be quantised")
    for name, module in found:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, NF4Linear(module.weight, module.bias, double=double))
    return len(found)


def is_quantized_with_qlora(name: str) -> bool:
    """Whether QLoRA packs the linear layer of this name."""
    return name.rpartition(".")[2] not in ("head", "router")
