"""Columns of a weight made larger and what feeds them smaller by the same factor: the model computes what it did.

AWQ (Lin et al. 2023) does it so that columns with large inputs are rounded finely, SmoothQuant (Xiao et al. 2022) so
that inputs have no outliers. The factors go into the norm, or the rows of the linear layer, that the inputs come from.

Axes: O out · I in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenmill.nn.decoder import Block
from tokenmill.nn.linear import Linear
from tokenmill.nn.mlp import MLP
from tokenmill.nn.norm import Norm
from tokenmill.quant.grid import Grid, fit_scales, round_weight
from tokenmill.quant.statistics import InputStatistics

STEPS = 20
"""Exponents from 0 to 1 that AWQ tries."""


@dataclass(frozen=True)
class Source:
    """Layers with the same inputs, and what these inputs come from: a norm, or rows of a linear layer."""

    fed: tuple[str, ...]
    by: str
    heads: tuple[int, int] = (1, 1)
    """Heads of values, and how many query heads share each: their columns have one factor, that of the value's row."""

    def shared(self, factor_I: Tensor) -> Tensor:
        """Factors as they can be folded: query heads of one value head have their geometric mean."""
        if self.heads[1] == 1:
            return factor_I
        by_head = factor_I.view(*self.heads, -1).log().mean(1, keepdim=True).exp()
        return by_head.expand(-1, self.heads[1], -1).flatten()

    def rows(self, factor_I: Tensor) -> Tensor:
        """One of each factor that is shared."""
        return factor_I.view(*self.heads, -1)[:, 0].flatten()


def sources(block: Block) -> list[Source]:
    """Where a block's inputs can be rescaled. Not behind a mixture of experts' norm (its router reads it too) or an
    activation."""
    heads = block.attn.config.num_kv_heads, block.attn.config.num_heads // block.attn.config.num_kv_heads
    found = [Source(("attn.q", "attn.k", "attn.v"), "attn_norm"), Source(("attn.out",), "attn.v", heads)]
    if isinstance(block.mlp, MLP):
        gated = block.mlp.gate is not None
        found.append(Source(("mlp.gate", "mlp.up") if gated else ("mlp.up",), "mlp_norm"))
        if gated:
            found.append(Source(("mlp.down",), "mlp.up"))
    return found


@torch.no_grad()
def rescale(block: Block, source: Source, factor_I: Tensor) -> None:
    """Multiply the columns of the fed layers by the factors, and divide what they are fed by them. Factors that are to
    be shared have to be the same (:meth:`Source.shared`)."""
    for name in source.fed:
        layer = block.get_submodule(name)
        assert isinstance(layer, Linear)
        layer.weight = _frozen(layer.weight * factor_I)
    by = block.get_submodule(source.by)
    if isinstance(by, Norm):
        one = 1.0 if by.config.unit_offset else 0.0
        by.weight = _frozen((one + by.weight) / factor_I - one)
    else:
        assert isinstance(by, Linear)
        factor_I = source.rows(factor_I)
        by.weight = _frozen(by.weight / factor_I[:, None])
    if by.bias is not None:
        by.bias = _frozen(by.bias / factor_I)


def weight_of(block: Block, name: str) -> Tensor:
    """The weight of a block's linear layer."""
    return block.get_parameter(f"{name}.weight").detach()


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def awq_factors(source: Source, weights: Sequence[Tensor], grid: Grid, inputs: InputStatistics) -> tuple[Tensor, float]:
    """The factors that make rounding these weights [O, I] hurt their outputs least, and the exponent behind them.

    Candidates are mean|x|^a / mean|w|^(1-a), and one for all. The error is the mean square of the layers' outputs on
    the calibration inputs, which follows from the mean of x x^T.
    """
    hessian_II, means_I = inputs.hessian(), inputs.means()
    relative = [
        w.abs()
        / w.abs()
        .view(len(w), grid.groups(w.shape[1]), -1)
        .amax(-1)
        .clamp(min=1e-8)
        .repeat_interleave(w.shape[1] // grid.groups(w.shape[1]), 1)
        for w in weights
    ]
    sizes_I = torch.cat(relative).mean(0)
    best_I, best, exponent = torch.ones_like(means_I), _error(weights, None, grid, hessian_II), -1.0
    for step in range(STEPS):
        ratio = step / STEPS
        factor_I = (means_I.clamp(min=1e-8) ** ratio / (sizes_I ** (1 - ratio) + 1e-4)).clamp(min=1e-4)
        factor_I = source.shared(factor_I / (factor_I.max() * factor_I.min()).sqrt())
        error = _error(weights, factor_I, grid, hessian_II)
        if error < best:
            best_I, best, exponent = factor_I, error, ratio
    return best_I, exponent


def _error(weights: Sequence[Tensor], factor_I: Tensor | None, grid: Grid, hessian_II: Tensor) -> float:
    total = 0.0
    for weight_OI in weights:
        scaled_OI = weight_OI if factor_I is None else weight_OI * factor_I
        rounded_OI = round_weight(scaled_OI, fit_scales(scaled_OI, grid), grid)
        off_OI = (rounded_OI if factor_I is None else rounded_OI / factor_I) - weight_OI
        total += float(((off_OI @ hessian_II) * off_OI).sum())
    return total


def smooth_factors(
    source: Source, weights: Sequence[Tensor], inputs: InputStatistics, strength: float | None
) -> tuple[Tensor, float]:
    """SmoothQuant's factors size(x)^a / max|w|^(1-a) and a: the strength, or where it is None the one that loses least.

    A size is the largest |x| of the calibration; in the search also the root of its mean square over tokens of one
    length, which is not that of a single token with huge inputs (the first one of a text). Columns whose inputs were
    always zero stay. Returns a of -1 where none is better than to leave everything as it is.
    """
    x_TI = inputs.sample()
    x_TI = x_TI / x_TI.norm(dim=1, keepdim=True).clamp(min=1e-10)
    sizes = [inputs.largest_I]
    if strength is None:
        sizes.append(x_TI.square().mean(0).sqrt())
    most_I = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=1e-5)
    best_I, best, used = torch.ones_like(most_I), float("inf"), -1.0
    if strength is None:
        best = _noise(weights, x_TI, best_I)
    for size_I in sizes:
        for a in [strength] if strength is not None else [step / STEPS for step in range(1, STEPS)]:
            factor_I = (size_I.clamp(min=1e-5) ** a / most_I ** (1 - a)).clamp(min=1e-5)
            factor_I = source.shared(torch.where(inputs.largest_I > 0, factor_I, torch.ones_like(factor_I)))
            if (noise := _noise(weights, x_TI, factor_I)) < best:
                best_I, best, used = factor_I, noise, a
    return best_I, used


def _noise(weights: Sequence[Tensor], x_TI: Tensor, factor_I: Tensor) -> float:
    """What 8 bits of inputs and of weights add to the outputs, but for a factor: noise as large as the steps, which go
    by a token's and by a row's largest number. Tokens count alike, however large."""
    x_TI = x_TI / factor_I
    of_inputs, length = x_TI.abs().amax(1).square().mean(), x_TI.square().sum(1).mean()
    scaled = [weight_OI * factor_I for weight_OI in weights]
    return sum(float(of_inputs * w.square().sum() + length * w.abs().amax(1).square().sum()) for w in scaled)


CLIPS = tuple(1 - 0.05 * step for step in range(11))
"""Shares of a group's largest numbers that the clip search tries: 1.0 to 0.5 (AutoAWQ's range)."""


def best_clips(weight_OI: Tensor, grid: Grid, hessian_II: Tensor) -> Tensor:
    """For every group the share of its largest numbers that the scale should reach, [O, G].

    Fewer numbers beyond the grid against finer steps: the one that changes a group's part of the output least.
    """
    rows, columns = weight_OI.shape
    groups = grid.groups(columns)
    size = columns // groups
    blocks_GSS = torch.stack([hessian_II[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(groups)])
    best_OG = torch.full((rows, groups), float("inf"), device=weight_OI.device)
    clip_OG = torch.ones_like(best_OG)
    for clip in CLIPS:
        tried_OG = torch.full_like(clip_OG, clip)
        off_OI = round_weight(weight_OI, fit_scales(weight_OI, grid, tried_OG), grid) - weight_OI
        off_GOS = off_OI.view(rows, groups, size).transpose(0, 1)
        error_OG = ((off_GOS @ blocks_GSS) * off_GOS).sum(-1).t()
        better_OG = error_OG < best_OG
        best_OG = torch.where(better_OG, error_OG, best_OG)
        clip_OG = torch.where(better_OG, tried_OG, clip_OG)
    return clip_OG
