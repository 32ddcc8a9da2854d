"""The numbers that a weight may become: even steps or FP8, with a scale a group, a row or the matrix.

One rounding for all methods and for training with rounded weights, so that what is learned is what is written.

Axes: O out · I in · G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tokenmill.formats.codes import Codes
from tokenmill.ops.rounding import FP8_MOST

LEAST_GROUP = 32
TINY = 1e-7  # of a scale: the least float16 that is not zero


@dataclass(frozen=True)
class Grid:
    """How a matrix is rounded."""

    bits: int = 4
    group_size: int = 128
    """Columns that share a scale; -1: a row; 0: the whole matrix."""
    symmetric: bool = True
    """Zero is the middle code; otherwise each group has a zero of its own, and all codes are used."""
    kind: Literal["int", "fp8"] = "int"
    scale_dtype: torch.dtype = torch.float16

    def fitted(self, columns: int) -> Grid:
        """This grid for rows of so many columns: groups are halved until they divide the row, down to 32, and are whole
        rows below that."""
        size = self.group_size
        while size > LEAST_GROUP and columns % size:
            size //= 2
        return self if size == self.group_size else replace(self, group_size=size if columns % size == 0 else -1)

    def groups(self, columns: int) -> int:
        """Groups of a row."""
        return columns // self.group_size if self.group_size > 0 else 1


@dataclass(frozen=True)
class Scales:
    """Scales as they are stored, and zeros, float32 [O, G] both ([1, 1] for one of the whole matrix)."""

    scales_OG: Tensor
    zeros_OG: Tensor | None

    def columns(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero of every column, [O, I] or [O, 1] each; zeros are half of the range where there are none."""
        scales_OG, zeros_OG = self.scales_OG, self.zeros_OG
        if zeros_OG is None:
            zeros_OG = torch.zeros_like(scales_OG)
        if scales_OG.shape[1] == 1:
            return scales_OG, zeros_OG
        each = columns // scales_OG.shape[1]
        return scales_OG.repeat_interleave(each, 1), zeros_OG.repeat_interleave(each, 1)


def fit_scales(weight_OI: Tensor, grid: Grid, clip_OG: Tensor | None = None) -> Scales:
    """Scales that reach a group's largest numbers, or ``clip_OG`` (0 to 1) of them. Rounded as they are stored."""
    rows, columns = weight_OI.shape
    grouped = (
        weight_OI.float().view(1, 1, -1)
        if grid.group_size == 0
        else weight_OI.float().view(rows, grid.groups(columns), -1)
    )
    if grid.kind == "fp8":
        most_OG = grouped.abs().amax(-1)
        return Scales(_stored(most_OG / FP8_MOST, grid), None)
    steps = 2**grid.bits - 1
    clip_OG = torch.ones(()) if clip_OG is None else clip_OG
    if grid.symmetric:
        most_OG = grouped.abs().amax(-1) * clip_OG
        return Scales(_stored(most_OG * 2 / steps, grid), None)
    low_OG = grouped.amin(-1).clamp(max=0) * clip_OG
    high_OG = grouped.amax(-1).clamp(min=0) * clip_OG
    scales_OG = _stored((high_OG - low_OG) / steps, grid)
    return Scales(scales_OG, (-low_OG / scales_OG).round().clamp(0, steps))


def _stored(scales_OG: Tensor, grid: Grid) -> Tensor:
    return scales_OG.clamp(min=TINY).to(grid.scale_dtype).float()


def round_weight(weight_OI: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """The numbers nearest to a weight on its grid, float32 [O, I]."""
    grouped_OGS = weight_OI.reshape(len(weight_OI), scales.scales_OG.shape[1], -1)
    scale_OG1 = scales.scales_OG.unsqueeze(-1)
    zero_OG1 = torch.zeros_like(scale_OG1) if scales.zeros_OG is None else scales.zeros_OG.unsqueeze(-1)
    return _values(_codes(grouped_OGS, scale_OG1, zero_OG1, grid), scale_OG1, zero_OG1, grid).view(weight_OI.shape)


def encode(weight_OI: Tensor, scales: Scales, grid: Grid) -> Codes:
    """The codes nearest to a weight."""
    scale_OI, zero_OI = scales.columns(weight_OI.shape[1])
    codes_OI = _codes(weight_OI, scale_OI, zero_OI, grid)
    scales_OG = scales.scales_OG.to(grid.scale_dtype)
    if grid.kind == "fp8":
        return Codes(codes_OI.to(torch.float8_e4m3fn), scales_OG, None, 8)
    zeros_OG = None if scales.zeros_OG is None else scales.zeros_OG.to(torch.uint8)
    return Codes(codes_OI.to(torch.uint8), scales_OG, zeros_OG, grid.bits)


def _codes(weight_OI: Tensor, scale_OI: Tensor, zero_OI: Tensor, grid: Grid) -> Tensor:
    steps_OI = weight_OI.float() / scale_OI
    if grid.kind == "fp8":
        return steps_OI.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).float()
    if grid.symmetric:
        zero_OI = torch.full_like(zero_OI, 2 ** (grid.bits - 1))
    return steps_OI.round_().add_(zero_OI).clamp_(0, 2**grid.bits - 1)


def _values(codes_OI: Tensor, scale_OI: Tensor, zero_OI: Tensor, grid: Grid) -> Tensor:
    """What codes stand for; they are used up."""
    if grid.kind == "fp8":
        return codes_OI.mul_(scale_OI)
    if grid.symmetric:
        zero_OI = torch.full_like(zero_OI, 2 ** (grid.bits - 1))
    return codes_OI.sub_(zero_OI).mul_(scale_OI)


def round_to_nearest(weight_OI: Tensor, grid: Grid, clip_OG: Tensor | None = None) -> Codes:
    """RTN: the plainest quantisation, each weight by itself."""
    return encode(weight_OI, fit_scales(weight_OI, grid, clip_OG), grid)
