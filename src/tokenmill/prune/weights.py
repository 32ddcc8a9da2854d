"""Which weights of a matrix become zero, and what the others do about it.

- magnitude: the smallest |w| of the matrix (Han 2015); needs no data.
- Wanda: the smallest |w| · ‖x‖ of every row, so that outputs keep the same share of their weights (Sun 2023).
- SparseGPT: of every block of columns the smallest w² / [H⁻¹]²; the later columns make up for the error (Frantar 2023).

``n:m`` keeps n of every m neighbours in a row. Axes: O out · I in · B a block of columns. As in GPTQ, columns are
worked on transposed. Sources: 2306.11695, 2301.00774; 1506.02626.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.quant.gptq import BLOCK, inverse_factor
from tokenmill.quant.statistics import InputStatistics

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Sparsity:
    """How many weights go: a share of them, or all but n of every m neighbours of a row."""

    share: float
    pattern: tuple[int, int] | None = None

    @classmethod
    def of(cls, text: str) -> Sparsity:
        """From ``0.5`` or ``2:4``. UsageError for anything else."""
        kept, colon, group = text.partition(":")
        try:
            if colon:
                n, m = int(kept), int(group)
                if 0 < n < m:
                    return cls(1 - n / m, (n, m))
            elif 0 < float(text) < 1:
                return cls(float(text))
        except ValueError:
            pass
        raise UsageError(f"sparsity {text!r} is neither a share between 0 and 1 nor a pattern such as 2:4")


@dataclass(frozen=True)
class Pruned:
    """A matrix with its zeros, and why a method could not do better where it could not."""

    weight_OI: Tensor
    problem: str = ""


def prune_matrix(
    weight_OI: Tensor, method: Method, sparsity: Sparsity, inputs: InputStatistics | None, *, damping: float = 0.01
) -> Pruned:
    """A matrix pruned, in float32. ``inputs``: what calibration says of its inputs; magnitude needs none."""
    weight_OI = weight_OI.float()
    if sparsity.pattern is not None and weight_OI.shape[1] % sparsity.pattern[1]:
        raise UsageError(f"a row of {weight_OI.shape[1]} weights has no whole groups of {sparsity.pattern[1]}")
    if method == "magnitude":
        return Pruned(weight_OI.masked_fill(_smallest(weight_OI.abs(), sparsity, by_row=False), 0.0))
    assert inputs is not None, "checked by the caller"
    norms_I = inputs.moments_II.diagonal().sqrt()
    if method == "wanda":
        return Pruned(weight_OI.masked_fill(_smallest(weight_OI.abs() * norms_I, sparsity, by_row=True), 0.0))
    hessian_II = inputs.hessian()
    dead_I = hessian_II.diagonal() == 0
    hessian_II.diagonal()[dead_I] = 1
    factor_II, _ = inverse_factor(hessian_II, damping)
    if factor_II is None:
        by_wanda = _smallest(weight_OI.abs() * norms_I, sparsity, by_row=True)
        return Pruned(weight_OI.masked_fill(by_wanda, 0.0), "its Hessian cannot be inverted: pruned as Wanda does")
    weight_IO = weight_OI.t().clone()
    weight_IO[dead_I] = 0.0
    return Pruned(_sparsegpt(weight_IO, factor_II, sparsity).t().contiguous())


def _smallest(scores_OI: Tensor, sparsity: Sparsity, *, by_row: bool) -> Tensor:
    """True where a weight goes: the lowest scores of every group of m, of every row, or of the matrix."""
    if sparsity.pattern is not None:
        kept, group = sparsity.pattern
        return _lowest(scores_OI.unflatten(1, (-1, group)), group - kept).flatten(1)
    if by_row:
        return _lowest(scores_OI, round(sparsity.share * scores_OI.shape[1]))
    return _lowest(scores_OI.flatten(), round(sparsity.share * scores_OI.numel())).view_as(scores_OI)


def _lowest(scores: Tensor, count: int) -> Tensor:
    """True at the ``count`` lowest of the last dimension; ties go by their place, so that the count is exact."""
    order = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def _sparsegpt(weight_IO: Tensor, factor_II: Tensor, sparsity: Sparsity) -> Tensor:
    """Zero columns one after the other; each error moves the later columns by its row of the inverse Hessian's factor.
    ``weight_IO`` is used up."""
    columns = len(weight_IO)
    diagonal_I = factor_II.diagonal()
    kept, group = sparsity.pattern or (1, 1)
    block = max(1, BLOCK // group) * group  # whole groups
    for start in range(0, columns, block):
        end = min(start + block, columns)
        gone_BO = torch.zeros_like(weight_IO[start:end], dtype=torch.bool)
        if sparsity.pattern is None:
            scores_BO = (weight_IO[start:end] / diagonal_I[start:end, None]).square()
            gone_BO = _lowest(scores_BO.flatten(), round(sparsity.share * scores_BO.numel())).view_as(scores_BO)
        errors_BO = torch.zeros_like(weight_IO[start:end])
        for i in range(start, end):
            if sparsity.pattern is not None and i % group == 0:  # chosen when it is next, by what it has become
                scores_OM = (weight_IO[i : i + group] / diagonal_I[i : i + group, None]).square().t()
                gone_BO[i - start : i - start + group] = _lowest(scores_OM.contiguous(), group - kept).t()
            gone_O = gone_BO[i - start]
            error_O = weight_IO[i].where(gone_O, 0.0) / factor_II[i, i]
            weight_IO[i + 1 : end].addr_(factor_II[i, i + 1 : end], error_O, alpha=-1)
            weight_IO[i] = weight_IO[i].masked_fill(gone_O, 0.0)
            errors_BO[i - start] = error_O
        weight_IO[end:].addmm_(factor_II[start:end, end:].t(), errors_BO, alpha=-1)
    return weight_IO
