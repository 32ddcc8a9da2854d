"""The matrix product of a linear layer. Axes: T tokens · I in · O out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenmill.ops import native_train
from tokenmill.ops.native import Native
from tokenmill.ops.registry import Op

LEAST_TILED = 64
"""Rows and columns that a product must have to be packed for matrix tiles."""


@Op
def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``; returns [T, O]."""
    return F.linear(x_TI, weight_OI, bias_O)


def _not_one_row(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> str | None:
    if x_TI.dtype != torch.bfloat16 or x_TI.device.type != "cpu":
        return "only bfloat16 on the CPU gains from it"
    return None if x_TI.ndim == 2 and x_TI.shape[0] == 1 else "more than one row"


@linear.backend("gemv", _not_one_row)
def _gemv(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """One row times a matrix, as decoding asks for. oneDNN's bfloat16 product, which F.linear takes, reads the weights
    at 2 to 7 GB/s where this reads them at 4 to 13 (one core of a Xeon with AMX)."""
    y_O = torch.mv(weight_OI, x_TI[0])
    return (y_O if bias_O is None else y_O + bias_O)[None]


def _no_tiles(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> str | None:
    if x_TI.ndim != 2 or _tiles_for(x_TI, weight_OI) is None:
        return "not a large product of bfloat16, or no matrix tiles here"
    return None


@linear.backend("tiles", _no_tiles)
def _tiles(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Forward and backward in matrix tiles (native/src/product.cpp)."""
    y_TO: Tensor = _Tiles.apply(x_TI, weight_OI)
    return y_TO if bias_O is None else y_TO + bias_O


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        return multiply(x_TI, weight_OI.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_TI, weight_OI = ctx.saved_tensors
        d_TO = d_TO.contiguous()
        d_x_TI = multiply(d_TO, weight_OI) if ctx.needs_input_grad[0] else None
        return d_x_TI, multiply(d_TO.t(), x_TI) if ctx.needs_input_grad[1] else None


def multiply(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``left @ right`` where autograd does not look: by the compiled kernels where they are faster, else by torch."""
    found = _tiles_for(*(side if side.is_contiguous() else side.t() for side in (left, right)))
    return torch.mm(left, right, out=out) if found is None else native_train.product(found, left, right, out=out)


def _tiles_for(*stored: Tensor) -> Native | None:
    """The kernels, if their matrix tiles multiply matrices that are stored so faster than torch does."""
    if any(side.dtype != torch.bfloat16 or min(side.shape) < LEAST_TILED for side in stored):
        return None
    found = native_train.native_for(*stored)
    return found if found is not None and native_train.has_product(found) else None
