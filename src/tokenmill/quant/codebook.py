"""Levels of each row's own instead of even steps: k-means in one dimension, weighted by what an error costs.

SqueezeLLM (Kim et al. 2023) places 2^bits levels for each row where its numbers lie, weighted by sensitivity. Here the
columns are then rounded to the levels in turn, as GPTQ does it, and a column's weight is what GPTQ pays for an error in
it: one over the square of the inverse Hessian's factor on the diagonal. At last the levels are fitted once more, to
the codes that came out, against all that the inputs tell (least squares).

Axes: O out · I in · K levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.formats.codes import Codes
from tokenmill.quant.gptq import Rounded, Rounding, factored, in_turn, why_not

BINS = 64
"""Runs of a row's sorted numbers that are taken together while its levels are looked for."""
ROUNDS = 15
"""Of k-means behind that; it moves next to nothing after them."""
RIDGE = 1e-3
"""Of the last fit: share of the diagonal that keeps levels of rare codes where they were."""
ROWS = 64
"""Rows that are worked on at once: bounds memory."""


def fit_levels(weight_OI: Tensor, importance_I: Tensor, bits: int) -> Tensor:
    """The levels of every row, ascending, float32 [O, 2^bits]: weighted k-means of its numbers.

    Begun with the best partition of the row's sorted numbers into runs, found exactly for neighbours taken together to
    at most ``BINS``, and then moved by Lloyd's rounds. A level that no number is next to stays.
    """
    weight_OI, count = weight_OI.float(), 2**bits
    share_I = importance_I.double() / importance_I.double().sum()
    sorted_OI, order_OI = weight_OI.sort(1)
    share_OI = share_I[order_OI]
    sums = [torch.nn.functional.pad((share_OI * sorted_OI**power).cumsum(1), (1, 0)) for power in range(3)]
    columns = weight_OI.shape[1]
    bins_B = torch.linspace(0, columns, min(columns, BINS) + 1, device=weight_OI.device).round().long()
    parts = zip(*(total.split(ROWS) for total in sums), strict=True)
    edges_OK = bins_B[torch.cat([_best_runs([total[:, bins_B] for total in part], count) for part in parts])]
    levels_OK = _means(edges_OK, sums, sorted_OI.gather(1, (edges_OK[:, 1:] - 1).clamp(min=0)))
    for _ in range(ROUNDS):
        cuts_OK = torch.searchsorted(sorted_OI, (levels_OK[:, 1:] + levels_OK[:, :-1]).contiguous() / 2)
        edges_OK = torch.cat([edges_OK[:, :1], cuts_OK, edges_OK[:, -1:]], 1)
        levels_OK = _means(edges_OK, sums, levels_OK).sort(1).values
    return levels_OK


def _means(edges_OK: Tensor, sums: Sequence[Tensor], otherwise_OK: Tensor) -> Tensor:
    """The weighted means of runs of sorted numbers, float32 [O, K]; ``otherwise`` of empty ones."""
    mass_OK, moment_OK = (total.gather(1, edges_OK).diff(dim=1) for total in sums[:2])
    return torch.where(mass_OK > 0, (moment_OK / mass_OK.clamp(min=1e-300)).float(), otherwise_OK)


def _best_runs(sums: Sequence[Tensor], count: int) -> Tensor:
    """Where each of ``count`` runs begins and the last one ends, int64 [O, count + 1], so that the numbers' distances
    from their runs' means are least: by dynamic programming over ``sums`` [O, B] of mass, moment and
    square from the start of the row to every bin."""
    mass_OB, moment_OB, square_OB = sums
    rows, edges = mass_OB.shape

    def between(sums_OB: Tensor) -> Tensor:
        return sums_OB[:, None, :] - sums_OB[:, :, None]  # [O, from, to]

    spread_OBB = between(square_OB) - between(moment_OB).square() / between(mass_OB).clamp(min=1e-300)
    backwards_BB = torch.ones(edges, edges, dtype=torch.bool, device=mass_OB.device).tril(-1)
    spread_OBB = spread_OBB.clamp_(min=0).masked_fill_(backwards_BB, float("inf"))
    least_OB, begins = spread_OBB[:, 0], []
    for _ in range(count - 1):
        least_OB, begin_OB = (least_OB[:, :, None] + spread_OBB).min(1)
        begins.append(begin_OB)
    found = [torch.full((rows, 1), edges - 1, device=mass_OB.device)]
    for begin_OB in reversed(begins):
        found.append(begin_OB.gather(1, found[-1]))
    return torch.cat([torch.zeros_like(found[0]), *reversed(found)], 1)


def nearest(values_OI: Tensor, levels_OK: Tensor) -> Tensor:
    """The numbers of the levels next to values, int64 [O, I]."""
    middles_OK = ((levels_OK[:, 1:] + levels_OK[:, :-1]) / 2).contiguous()
    return torch.searchsorted(middles_OK, values_OI.contiguous())


def codebook(
    weight_OI: Tensor,
    hessian_II: Tensor,
    bits: int,
    dtype: torch.dtype,
    *,
    damping: float = 0.01,
    act_order: bool = True,
) -> Rounded:
    """Round a matrix to levels of each row's own so that its outputs change little on inputs with this mean of x x^T.

    ``dtype`` is that of the stored levels. Where the Hessian cannot be inverted all columns count the same and are
    rounded to their nearest levels.
    """
    order_I, factor_II, used = factored(hessian_II, damping, act_order=act_order)
    if factor_II is None:
        return Rounded(plain_codebook(weight_OI, bits, dtype), float("nan"), why_not(hessian_II))
    importance_I = torch.empty_like(factor_II[0])
    importance_I[order_I] = factor_II.diagonal() ** -2
    levels_OK = fit_levels(weight_OI, importance_I, bits)
    rounded_OI = in_turn(weight_OI, order_I, factor_II, _to_levels(levels_OK))
    codes_OI = nearest(rounded_OI, levels_OK)
    levels_OK = _fitted_again(weight_OI.float(), codes_OI, levels_OK, hessian_II)
    return Rounded(_as_codes(codes_OI, levels_OK, bits, dtype), used)


def plain_codebook(weight_OI: Tensor, bits: int, dtype: torch.dtype) -> Codes:
    """Levels by plain k-means, each number to its nearest: where nothing is known of the inputs."""
    levels_OK = fit_levels(weight_OI, torch.ones_like(weight_OI[0]), bits)
    return _as_codes(nearest(weight_OI.float(), levels_OK), levels_OK, bits, dtype)


def _to_levels(levels_OK: Tensor) -> Rounding:
    middles_OK = ((levels_OK[:, 1:] + levels_OK[:, :-1]) / 2).contiguous()

    def to_levels(_: int, column_O: Tensor) -> Tensor:
        codes_O1 = torch.searchsorted(middles_OK, column_O[:, None].contiguous())
        return levels_OK.gather(1, codes_O1)[:, 0]

    return to_levels


def _fitted_again(weight_OI: Tensor, codes_OI: Tensor, levels_OK: Tensor, hessian_II: Tensor) -> Tensor:
    """The levels that lose least with these codes: a small system of equations for each row.

    With S [I, K] saying which column has which code, the outputs' error is (w - S l)^T H (w - S l).
    """
    fitted = []
    parts = zip(weight_OI.split(ROWS), codes_OI.split(ROWS), levels_OK.split(ROWS), strict=True)
    for weight_BI, codes_BI, before_BK in parts:
        chosen_BIK = torch.nn.functional.one_hot(codes_BI, before_BK.shape[1]).to(weight_OI.dtype)
        heard_BIK = torch.einsum("ij,bjk->bik", hessian_II, chosen_BIK)
        left_BKK = chosen_BIK.transpose(1, 2) @ heard_BIK
        off_BI = weight_BI - before_BK.gather(1, codes_BI)
        right_BK = (off_BI[:, None] @ heard_BIK)[:, 0]
        ridge_B = RIDGE * left_BKK.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        left_BKK.diagonal(dim1=1, dim2=2).add_(ridge_B[:, None])
        fitted.append(before_BK + torch.linalg.solve(left_BKK, right_BK))
    return torch.cat(fitted)


def _as_codes(codes_OI: Tensor, levels_OK: Tensor, bits: int, dtype: torch.dtype) -> Codes:
    """Codes whose levels ascend, which those fitted again need not."""
    sorted_OK, order_OK = levels_OK.sort(1)
    codes_OI = order_OK.argsort(1).gather(1, codes_OI)
    one = torch.ones(len(levels_OK), 1, device=levels_OK.device)
    return Codes(codes_OI.to(torch.uint8), one, None, bits, None, sorted_OK.to(dtype))
