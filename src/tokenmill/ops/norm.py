"""Normalisation over the last axis: RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.ops.registry import Op


@Op
def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last axis, computed in float32, returned in x's dtype and shape."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (normed * weight_D.float()).to(x.dtype)


@rms_norm.backend(
    "torch", lambda x, weight_D, eps: None if weight_D.dtype == x.dtype else "weight and x differ in dtype"
)
def _torch_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


@Op
def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """``(x - mean) / std * weight + bias`` over the last axis, computed in float32, returned in x's dtype and shape."""
    x32 = x.float()
    centred = x32 - x32.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight_D.float()
    return (normed if bias_D is None else normed + bias_D.float()).to(x.dtype)


@layer_norm.backend("torch")
def _torch_layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x, weight_D.shape, weight_D, bias_D, eps)
