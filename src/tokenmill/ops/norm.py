"""Normalisation over the last axis: RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenmill.ops import native_train
from tokenmill.ops.recompute import remember
from tokenmill.ops.registry import Op

CACHE_VALUES = 1 << 18
"""Values that the backward pass takes in float32 at once: a copy of all of them would leave the cache."""


@Op
def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last axis, computed in float32, returned in x's dtype and shape."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (normed * weight_D.float()).to(x.dtype)


def _no_gradient(x: Tensor, weight_D: Tensor, eps: float) -> str | None:
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight_D.requires_grad)
    return None if wanted else "no gradient is wanted"


@rms_norm.backend("recompute", _no_gradient)
def _differentiable(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The values of the backends below; the backward pass needs x alone, where autograd would keep float32 copies."""
    return remember(_RMSNorm.apply(x, weight_D, eps), _rms_norm_values, x, weight_D, eps)


def _no_kernels(x: Tensor, weight_D: Tensor, eps: float) -> str | None:
    return None if native_train.native_for(x) else "the kernels are not here, or not for this dtype or device"


@rms_norm.backend("native", _no_kernels)
def _native_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    found = native_train.native_for(x)
    assert found is not None
    return native_train.rms_norm(found, x, weight_D, eps)


@rms_norm.backend(
    "torch", lambda x, weight_D, eps: None if weight_D.dtype == x.dtype else "weight and x differ in dtype"
)
def _torch_rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def _rms_norm_values(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    if native_train.native_for(x) is not None:
        return _native_rms_norm(x, weight_D, eps)
    same = weight_D.dtype == x.dtype
    return _torch_rms_norm(x, weight_D, eps) if same else rms_norm.reference(x, weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.eps = eps
        return _rms_norm_values(x, weight_D, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D = ctx.saved_tensors
        found = native_train.native_for(x, d)
        if found is not None:
            d_x, d_weight32_D = native_train.rms_norm_backward(found, x, d, weight_D, ctx.eps)
            return d_x, d_weight32_D.to(weight_D.dtype), None
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight_wide_D = weight_D.to(wide)
        d_weight_D = torch.zeros_like(weight_wide_D)
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = max(1, CACHE_VALUES // x.shape[-1]) if x.device.type == "cpu" else max(1, x.numel())
        flat = (t.reshape(-1, x.shape[-1]).split(rows) for t in (x, d, d_x))
        for x_RD, d_RD, d_x_RD in zip(*flat, strict=True):
            lengths_R1 = torch.linalg.vector_norm(x_RD, dim=-1, keepdim=True, dtype=wide)
            inverse_R1 = torch.rsqrt(lengths_R1.square() / x.shape[-1] + ctx.eps)
            normed_RD = x_RD * inverse_R1
            product_RD = normed_RD * d_RD
            d_weight_D += product_RD.sum(0)
            inner_R1 = product_RD.mv(weight_wide_D)[:, None] / x.shape[-1]
            d_x_RD.copy_((d_RD * weight_wide_D).sub_(normed_RD.mul_(inner_R1)).mul_(inverse_R1))
        return d_x, d_weight_D.to(weight_D.dtype), None


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
