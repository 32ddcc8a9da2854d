"""GPTQ (Frantar et al. 2022): columns are rounded one after the other, and those left make up for the error.

With the Hessian H of a layer's inputs, rounding column i by e moves the later columns by e times row i of the upper
Cholesky factor of H^-1, over its diagonal. Scales are those of the original groups, also where columns are taken in
the order of their importance ("static groups"): what is written needs no ``g_idx``.

Axes: O out · I in. Columns are worked on transposed, [I, O], so that each lies in one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.log import get_logger
from tokenmill.formats.codes import Codes
from tokenmill.quant.grid import Grid, encode, fit_scales, round_to_nearest

log = get_logger(__name__)
Rounding = Callable[[int, Tensor], Tensor]
BLOCK = 128
"""Columns whose later neighbours are corrected at once: a block's error reaches the rest as one product."""
MOST_DAMPING = 1.0


@dataclass(frozen=True)
class Rounded:
    """A quantised matrix, and how that went."""

    codes: Codes
    damping: float
    """What had to be added to the Hessian's diagonal, as a share of its mean; NaN where rounding was plain."""
    problem: str = ""
    """Why rounding was plain."""


def gptq(
    weight_OI: Tensor, hessian_II: Tensor, grid: Grid, *, damping: float = 0.01, act_order: bool = True
) -> Rounded:
    """Round a matrix so that its outputs change little on inputs with this mean of x x^T.

    A column whose input was always zero is rounded plainly: nothing is known of it. Damping is raised tenfold until the
    Hessian can be inverted; where even 1.0 does not help (or it is not finite) all of the matrix is rounded plainly.
    """
    columns = weight_OI.shape[1]
    order_I, factor_II, used = factored(hessian_II, damping, act_order=act_order)
    if factor_II is None:
        problem = why_not(hessian_II)
        return Rounded(round_to_nearest(weight_OI, grid), float("nan"), problem)
    scales = fit_scales(weight_OI, grid)
    scale_OI, zero_OI = (part.expand(len(part), columns) for part in scales.columns(columns))
    rounding = _to_grid(scale_OI.t()[order_I].contiguous(), zero_OI.t()[order_I].contiguous(), grid)
    return Rounded(encode(in_turn(weight_OI, order_I, factor_II, rounding), scales, grid), used)


def factored(hessian_II: Tensor, damping: float, *, act_order: bool) -> tuple[Tensor, Tensor | None, float]:
    """The order in which columns are taken, :func:`inverse_factor` in that order, and the damping that it took."""
    hessian_II = hessian_II.clone()
    dead_I = hessian_II.diagonal() == 0
    hessian_II.diagonal()[dead_I] = 1
    order_I = torch.arange(len(hessian_II), device=hessian_II.device)
    if act_order:
        order_I = torch.argsort(hessian_II.diagonal().masked_fill(dead_I, 0), descending=True, stable=True)
        hessian_II = hessian_II[order_I][:, order_I]
    return order_I, *inverse_factor(hessian_II, damping)


def why_not(hessian_II: Tensor) -> str:
    """Why a Hessian has no factor; told in the log, too."""
    problem = "its Hessian cannot be inverted" if torch.isfinite(hessian_II).all() else "its inputs are not finite"
    log.warning("a layer is rounded plainly: %s", problem)
    return problem


def inverse_factor(hessian_II: Tensor, damping: float) -> tuple[Tensor | None, float]:
    """The upper Cholesky factor of the damped Hessian's inverse, and the damping that it took."""
    mean = hessian_II.diagonal().mean()
    if not torch.isfinite(hessian_II).all():
        return None, damping
    while True:
        damped_II = hessian_II.clone()
        damped_II.diagonal().add_(damping * mean)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if not failed and torch.isfinite(upper_II).all():
                return upper_II, damping
        if damping >= MOST_DAMPING:
            return None, damping
        damping = min(MOST_DAMPING, max(damping, 0.001) * 10)


def in_turn(weight_OI: Tensor, order_I: Tensor, factor_II: Tensor, rounding: Rounding) -> Tensor:
    """The rounded columns in their own order, float32 [O, I]: each one's error is made up for by those behind it.

    ``order_I`` and ``factor_II`` are those of :func:`factored`; ``rounding`` is given a place in the order and a column
    [O], which it may use up.
    """
    weight_IO = weight_OI.float().t()[order_I].contiguous()
    for start in range(0, len(weight_IO), BLOCK):
        end = min(start + BLOCK, len(weight_IO))
        errors_BO = torch.empty_like(weight_IO[start:end])
        for i in range(start, end):
            column_O = weight_IO[i]
            rounded_O = rounding(i, column_O)
            error_O = torch.sub(column_O, rounded_O, out=errors_BO[i - start]).div_(factor_II[i, i])
            weight_IO[i + 1 : end].addr_(factor_II[i, i + 1 : end], error_O, alpha=-1)
            weight_IO[i] = rounded_O
        weight_IO[end:].addmm_(factor_II[start:end, end:].t(), errors_BO, alpha=-1)
    rounded_OI = torch.empty_like(weight_OI, dtype=torch.float32)
    rounded_OI[:, order_I] = weight_IO.t()
    return rounded_OI


def _to_grid(scale_IO: Tensor, zero_IO: Tensor, grid: Grid) -> Rounding:
    """Rounding to even steps; scales and zeros are in the order of columns."""
    low, high = _code_range(zero_IO, grid)
    each = low.ndim > 1

    def to_grid(i: int, column_O: Tensor) -> Tensor:
        steps_O = torch.div(column_O, scale_IO[i]).round_()
        return steps_O.clamp_(low[i] if each else low, high[i] if each else high).mul_(scale_IO[i])

    return to_grid


def _code_range(zero_IO: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number of steps from zero: of all columns, or of each."""
    if grid.symmetric:
        half = torch.tensor(2 ** (grid.bits - 1))
        return -half, half - 1
    return -zero_IO, 2**grid.bits - 1 - zero_IO
