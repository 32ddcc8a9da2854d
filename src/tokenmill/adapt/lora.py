"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024) as adapters of a linear layer.

``W + scale * B A``, with ``scale = alpha / r``, or ``alpha / sqrt(r)`` rank-stabilised (Kalajdzievski 2023). A is drawn
as PEFT draws it, B is zero, so that training starts from the base. Axes: T tokens · I in · O out · R rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.adapt.layers import Adapter, AddProduct
from tokenmill.nn.linear import LinearLayer
from tokenmill.ops.linear import linear
from tokenmill.ops.registry import Traced

TINY = 1e-24
"""Least square of a row's length: a row of zeros has no direction, and should stay zero."""


def new_a(rank: int, in_features: int, generator: torch.Generator) -> Tensor:
    """Uniform in ±1/sqrt(in): PEFT's kaiming_uniform with a = sqrt(5). Float32 [R, I]."""
    return (torch.rand(rank, in_features, generator=generator) * 2 - 1) / math.sqrt(in_features)


class Lora(Adapter):
    """Layers that a file keeps as one matrix (GPT-2's query, key and value) share their A, as PEFT has one for them."""

    def __init__(self, a_RI: nn.Parameter, b_OR: Tensor, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = a_RI, nn.Parameter(b_OR)
        self.scale, self.dropout = scale, dropout

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        del plain, base
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
        if isinstance(x, Traced):  # recorded for the native kernels, beside a base that is no plain matrix
            return y + linear(linear(x, self.a), self.b) * self.scale
        added: Tensor = AddProduct.apply(y, x, self.a, self.b, self.scale)
        return added

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        del base_OI
        return weight_OI + self.scale * (self.b.float() @ self.a.float()), bias_O

    def merged(self, weight_OI: Tensor, base_OI: Tensor) -> Tensor | None:
        del base_OI
        dtype = weight_OI.dtype  # A and B as the trainer multiplies them
        return torch.addmm(weight_OI, self.b.to(dtype), self.a.to(dtype), alpha=self.scale)


class Dora(Lora):
    """LoRA for the direction of every row of a weight, and its length learned apart.

    The length of ``W + scale B A`` counts as a constant in the backward pass, as the paper has it (section 4.3). It is
    computed from products with A and B; the sum itself is never built.
    """

    def __init__(
        self, a_RI: nn.Parameter, b_OR: Tensor, magnitude_O: Tensor, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(a_RI, b_OR, scale, dropout)
        self.magnitude = nn.Parameter(magnitude_O)
        self._base_squares_O: Tensor | None = None

    @torch.no_grad()
    def lengths(self, base: LinearLayer) -> Tensor:
        """Row lengths of ``W + scale * B A``, float32 [O]."""
        weight_OI = base.dense().float()
        if self._base_squares_O is None or self._base_squares_O.device != weight_OI.device:
            self._base_squares_O = weight_OI.square().sum(1)
        a_RI, b_OR = self.a.float(), self.b.float() * self.scale
        mixed_O = ((weight_OI @ a_RI.t()) * b_OR).sum(1)
        return (self._base_squares_O + 2 * mixed_O + ((b_OR @ (a_RI @ a_RI.t())) * b_OR).sum(1)).clamp(min=TINY).sqrt()

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
            plain = base(x)
        if base.bias is not None:
            plain = plain - base.bias.to(plain.dtype)
        total: Tensor = AddProduct.apply(plain, x, self.a, self.b, self.scale)
        factor_O = (self.magnitude / self.lengths(base)).to(y.dtype)
        return y + (factor_O * total - plain)

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        summed_OI = base_OI + self.scale * (self.b.float() @ self.a.float())
        factor_O = self.magnitude.float() / summed_OI.norm(dim=1).clamp(min=TINY**0.5)
        return weight_OI + (factor_O[:, None] * summed_OI - base_OI), bias_O

    def merged(self, weight_OI: Tensor, base_OI: Tensor) -> Tensor | None:
        return self.fold(weight_OI.float(), None, base_OI.float())[0].to(weight_OI.dtype)
