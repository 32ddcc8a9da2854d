"""Rotary position embedding (Su et al. 2021), half-split layout as Hugging Face weights have it.

Axes: T tokens · H heads · D head size · R rotated part of it (R <= D), the first R features; feature ``i`` turns with
feature ``i + R/2``. Files that interleave the pair instead (GGUF's llama) are reordered once, when they are loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenmill.ops import native_train
from tokenmill.ops.registry import Op


@Op
def cos_sin(angles_TR: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle."""
    return angles_TR.cos(), angles_TR.sin()


@Op
def rotary_angles(positions_T: Tensor, inv_F: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, R] of every position's angles, times ``scale``; ``inv_F``: the angle a position adds."""
    return scaled_cos_sin(positions_T.float()[:, None] * inv_F, scale, dtype)


def scaled_cos_sin(angles_TF: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of angles [T, F], for both halves of the rotated features: [T, R] each."""
    cos_TR, sin_TR = cos_sin(torch.cat((angles_TF, angles_TF), dim=-1))
    return (cos_TR * scale).to(dtype), (sin_TR * scale).to(dtype)


@Op
def apply_rope(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn each head's first R features by its token's angles; the rest passes through. Returns [T, H, D]."""
    rotary = cos_TR.shape[-1]
    x_THR = x_THD[..., :rotary]
    first, second = x_THR.chunk(2, dim=-1)
    turned = x_THR * cos_TR[:, None] + torch.cat((-second, first), dim=-1) * sin_TR[:, None]
    return turned if rotary == x_THD.shape[-1] else torch.cat((turned, x_THD[..., rotary:]), dim=-1)


def _no_gradient(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> str | None:
    return None if x_THD.requires_grad and torch.is_grad_enabled() else "no gradient is wanted"


@apply_rope.backend("turn-back", _no_gradient)
def _differentiable(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """The same values; the backward pass turns the gradient the other way and needs no intermediate results."""
    return _Turn.apply(x_THD, cos_TR, sin_TR)


@apply_rope.backend("values")
def _turned(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """With the compiled kernels where they are: with a gradient and without, the same bits."""
    found = native_train.native_for(x_THD, cos_TR, sin_TR)
    if found is not None:
        return native_train.turn(found, x_THD, cos_TR, sin_TR, back=False)
    return apply_rope.reference(x_THD, cos_TR, sin_TR)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        return _turned(x_THD, cos_TR, sin_TR)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THD: Tensor) -> tuple[Tensor | None, ...]:
        cos_TR, sin_TR = ctx.saved_tensors
        found = native_train.native_for(d_THD, cos_TR, sin_TR)
        if found is not None:
            return native_train.turn(found, d_THD, cos_TR, sin_TR, back=True), None, None
        rotary = cos_TR.shape[-1]
        d_THR = d_THD[..., :rotary]
        first, second = (d_THR * sin_TR[:, None]).chunk(2, dim=-1)
        turned = (d_THR * cos_TR[:, None]).add_(torch.cat((second, -first), dim=-1))
        whole = turned if rotary == d_THD.shape[-1] else torch.cat((turned, d_THD[..., rotary:]), dim=-1)
        return whole, None, None
