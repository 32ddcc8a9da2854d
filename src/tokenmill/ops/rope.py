"""Rotary position embedding (Su et al. 2021), half-split layout as Hugging Face weights have it.

Axes: T tokens · H heads · D head size · R rotated part of it (R <= D), the first R features; feature ``i`` turns with
feature ``i + R/2``. Files that interleave the pair instead (GGUF's llama) are reordered once, when they are loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.ops.registry import Op


@Op
def apply_rope(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn each head's first R features by its token's angles; the rest passes through. Returns [T, H, D]."""
    rotary = cos_TR.shape[-1]
    x_THR = x_THD[..., :rotary]
    first, second = x_THR.chunk(2, dim=-1)
    turned = x_THR * cos_TR[:, None] + torch.cat((-second, first), dim=-1) * sin_TR[:, None]
    return turned if rotary == x_THD.shape[-1] else torch.cat((turned, x_THD[..., rotary:]), dim=-1)
