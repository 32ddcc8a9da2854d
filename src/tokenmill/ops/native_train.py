"""Training's passes in the compiled kernels (``native/src/train.h``): each has a slow twin in torch beside its caller.

:func:`native_for` says whether the kernels take given tensors; the functions below trust that it was asked, and refuse
shapes that do not go together, as torch would: the kernels see addresses alone. Rows and
pieces are shared out the same way whatever the number of threads, so results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.ops.native import UNARY, Native, native

_REAL = {torch.float32: 0, torch.bfloat16: 1}


def native_for(*tensors: Tensor) -> Native | None:
    """The kernels, if they take these tensors: on a CPU, contiguous, all of float32 or all of bfloat16."""
    dtype = tensors[0].dtype
    if dtype not in _REAL or not all(
        t.device.type == "cpu" and t.dtype == dtype and t.is_contiguous() and t.numel() for t in tensors
    ):
        return None
    return native()


def _fits(condition: bool, what: str, *tensors: Tensor) -> None:
    if not condition:
        raise ValueError(f"{what}: shapes {', '.join(str(list(t.shape)) for t in tensors)} do not go together")


def has_product(found: Native) -> bool:
    """Whether the kernels multiply matrices for training better than torch does."""
    return bool(found.module.has_product(found.kernels))


def product(found: Native, left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``left @ right`` [M, N] of bfloat16 matrices [M, K] and [K, N], each contiguous or such a one's transpose."""
    shape = (left.shape[0], right.shape[1])
    result = out if out is not None else left.new_empty(shape)
    _fits(left.shape[1] == right.shape[0] and tuple(result.shape) == shape, "product", left, right, result)
    arrays = (*_side(left), *_side(right.t()), result.data_ptr(), *shape, left.shape[1])
    found.module.product(found.pool, found.kernels, *arrays)
    return result


def _side(matrix_RK: Tensor) -> tuple[int, int, bool]:
    """Address, stride and whether rows lie across, as ``Side`` in product.h."""
    across = not matrix_RK.is_contiguous()
    stored = matrix_RK.t() if across else matrix_RK
    if stored.dtype != torch.bfloat16 or not stored.is_contiguous():
        raise ValueError(f"product: {matrix_RK.dtype} of strides {matrix_RK.stride()}: contiguous bfloat16 is needed")
    return matrix_RK.data_ptr(), stored.stride(0), across


def gated(found: Native, gate_TF: Tensor, up_TF: Tensor, name: str) -> Tensor:
    """``act(gate) * up`` in one pass."""
    _fits(gate_TF.shape == up_TF.shape, "gated", gate_TF, up_TF)
    y_TF = torch.empty_like(gate_TF)
    arrays = gate_TF.data_ptr(), up_TF.data_ptr(), gate_TF.numel(), y_TF.data_ptr()
    found.module.gated(found.pool, found.kernels, UNARY[name], _REAL[gate_TF.dtype], *arrays)
    return y_TF


def gated_backward(found: Native, gate_TF: Tensor, up_TF: Tensor, d_TF: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The derivatives by ``gate`` and ``up``."""
    _fits(gate_TF.shape == up_TF.shape == d_TF.shape, "gated", gate_TF, up_TF, d_TF)
    d_gate_TF, d_up_TF = torch.empty_like(gate_TF), torch.empty_like(up_TF)
    inputs = gate_TF.data_ptr(), up_TF.data_ptr(), d_TF.data_ptr(), gate_TF.numel()
    outputs = d_gate_TF.data_ptr(), d_up_TF.data_ptr()
    found.module.gated_backward(found.pool, found.kernels, UNARY[name], _REAL[gate_TF.dtype], *inputs, *outputs)
    return d_gate_TF, d_up_TF


def squares(found: Native, x: Tensor) -> float:
    """The sum of the squares: float32 within 32,768 values, float64 between them."""
    return float(found.module.squares(found.pool, found.kernels, _REAL[x.dtype], x.data_ptr(), x.numel()))


def rms_norm(found: Native, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis."""
    _fits(weight_D.shape == x.shape[-1:], "rms_norm", x, weight_D)
    y, size = torch.empty_like(x), x.shape[-1]
    weight32_D = weight_D.float().contiguous()
    inputs = x.data_ptr(), weight32_D.data_ptr(), eps, x.numel() // size, size
    found.module.rms_norm(found.pool, found.kernels, _REAL[x.dtype], *inputs, y.data_ptr())
    return y


def rms_norm_backward(found: Native, x: Tensor, d: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The derivatives by ``x`` and by the weight, the latter in float32."""
    _fits(x.shape == d.shape and weight_D.shape == x.shape[-1:], "rms_norm", x, d, weight_D)
    size = x.shape[-1]
    rows, together = x.numel() // size, found.module.norm_rows(size)
    d_x = torch.empty_like(x)
    weight32_D = weight_D.float().contiguous()
    d_weights_PD = torch.empty(-(-rows // together), size)
    inputs = x.data_ptr(), d.data_ptr(), weight32_D.data_ptr(), eps, rows, size
    found.module.rms_norm_backward(
        found.pool, found.kernels, _REAL[x.dtype], *inputs, d_x.data_ptr(), d_weights_PD.data_ptr()
    )
    return d_x, d_weights_PD.sum(0)


def turn(found: Native, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, back: bool) -> Tensor:
    """Rotary embedding of the half-split layout, or its derivative."""
    angles = (x_THD.shape[0], cos_TR.shape[-1])
    fits = x_THD.ndim == 3 and angles[1] <= x_THD.shape[2] and tuple(cos_TR.shape) == tuple(sin_TR.shape) == angles
    _fits(fits, "rope", x_THD, cos_TR, sin_TR)
    y_THD = torch.empty_like(x_THD)
    inputs = x_THD.data_ptr(), cos_TR.data_ptr(), sin_TR.data_ptr(), back
    sizes = *x_THD.shape, cos_TR.shape[-1]
    found.module.turn(found.pool, found.kernels, _REAL[x_THD.dtype], *inputs, *sizes, y_THD.data_ptr())
    return y_THD


def softmax_loss(
    found: Native,
    scores_RV: Tensor,
    labels_R: Tensor,
    nll_R: Tensor,
    lse_R: Tensor,
    scale: float,
    z_loss: float,
    gradient: bool,
) -> None:
    """Fill ``nll_R`` and ``lse_R`` (float32); with ``gradient`` the scores become the loss's derivative by them."""
    _fits(len(scores_RV) == len(labels_R) == len(nll_R) == len(lse_R), "loss", scores_RV, labels_R, nll_R, lse_R)
    labels_R = labels_R.to(torch.int64).contiguous()
    arrays = scores_RV.data_ptr(), *scores_RV.shape, labels_R.data_ptr()
    results = nll_R.data_ptr(), lse_R.data_ptr()
    how = scale, z_loss, gradient
    found.module.softmax_loss(found.pool, found.kernels, _REAL[scores_RV.dtype], *arrays, *how, *results)


def adamw(
    found: Native,
    weights: Tensor,
    low: Tensor | None,
    m: Tensor,
    v: Tensor,
    gradient: Tensor,
    numbers: Sequence[float],
) -> None:
    """One step in place. ``numbers``: those of ``AdamW`` in train.h, in its order; ``low``: see ``SplitWeights``."""
    given = [t for t in (weights, low, m, v, gradient) if t is not None]
    _fits(len({t.numel() for t in given}) == 1, "adamw", *given)
    arrays = [t.data_ptr() if t is not None else 0 for t in (weights, low, m, v, gradient)]
    types = [_REAL[t.dtype] for t in (m, v, gradient)]
    found.module.adamw(found.pool, found.kernels, list(numbers), arrays, types, weights.numel())


def attention(
    found: Native, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, lens: Sequence[int], scale: float, window: int | None
) -> Tensor:
    """Causal attention of documents that lie one after the other."""
    out_THD = torch.empty_like(q_THD)
    _attention(found, [q_THD, k_TKD, v_TKD, out_THD, None, None, None, None], lens, scale, window, backward=False)
    return out_THD


def attention_backward(
    found: Native,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    lens: Sequence[int],
    scale: float,
    window: int | None,
) -> None:
    """Fill the gradients of q [T, H, D], k and v [T, K, D]; ``tensors``: these three and that of the output."""
    _attention(found, [*tensors[:3], None, tensors[3], *gradients], lens, scale, window, backward=True)


def _attention(
    found: Native,
    tensors: Sequence[Tensor | None],
    lens: Sequence[int],
    scale: float,
    window: int | None,
    *,
    backward: bool,
) -> None:
    q_THD, k_TKD, v_TKD = tensors[:3]
    assert q_THD is not None
    assert k_TKD is not None
    assert v_TKD is not None
    fits = sum(lens) == len(q_THD) == len(k_TKD) and q_THD.shape[1] % k_TKD.shape[1] == 0
    fits = fits and q_THD.shape[2] == k_TKD.shape[2] and k_TKD.shape == v_TKD.shape
    _fits(fits, f"attention of documents of {list(lens)}", q_THD, k_TKD, v_TKD)
    shape = _REAL[q_THD.dtype], q_THD.shape[1], k_TKD.shape[1], q_THD.shape[2], scale, window or 0
    arrays = [0 if t is None else t.data_ptr() for t in tensors]
    found.module.attention(found.pool, found.kernels, backward, *shape, [n for n in lens if n], arrays)
