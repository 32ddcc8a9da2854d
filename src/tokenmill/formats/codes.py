"""Quantised matrices as numbers: codes with a scale for each group of a row, whatever file they come from or go to.

Axes: O out · I in · G groups of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

_WORD = (1 << 32) - 1


@dataclass(frozen=True)
class Codes:
    """A matrix [O, I]: ``scale * (code - zero)``; ``scale * code`` where codes are FP8 numbers; ``scale * level`` where
    they are numbers of levels."""

    codes_OI: Tensor
    """uint8, 0 to 2^bits - 1; or float8_e4m3fn."""
    scales_OG: Tensor
    """Float. One group is a row of its own; [1, 1] is one scale for the whole matrix."""
    zeros_OG: Tensor | None = None
    """uint8, the code that means zero; None: half of the range (2^(bits - 1))."""
    bits: int = 4
    groups_I: Tensor | None = None
    """int32, the group of each column where they do not lie side by side (GPTQ's ``g_idx``)."""
    levels_OK: Tensor | None = None
    """What each code stands for, ascending: a row of 2^bits for all ([1, K], NF4) or for each row (k-means)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        rows, columns = self.codes_OI.shape
        return rows, columns

    @property
    def is_float(self) -> bool:
        """Whether the codes are FP8 numbers."""
        return self.codes_OI.dtype == torch.float8_e4m3fn

    @property
    def group_size(self) -> int:
        """Columns of a group (the last may have fewer)."""
        return -(-self.shape[1] // self.scales_OG.shape[1])

    @property
    def weight_bits(self) -> float:
        """Bits a weight, scales and zeros included; levels of each row's own instead of scales."""
        rows, columns = self.shape
        if self.levels_OK is not None and len(self.levels_OK) > 1:
            return self.bits + self.levels_OK.numel() * self.levels_OK.element_size() * 8 / (rows * columns)
        scales = self.scales_OG.numel() * self.scales_OG.element_size() * 8
        zeros = 0 if self.zeros_OG is None else self.zeros_OG.numel() * self.bits
        return self.bits + (scales + zeros) / (rows * columns)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix as numbers, computed in float32."""
        values_OI = self.codes_OI.float()
        if self.is_float:
            return (values_OI * self.scales_OG.float()).to(dtype)
        scales_OI, groups_I = self.scales_OG.float(), self.column_groups()
        if self.levels_OK is not None:
            levels_OK = self.levels_OK.float().expand(self.shape[0], -1)
            return (levels_OK.gather(1, self.codes_OI.long()) * scales_OI[:, groups_I]).to(dtype)
        zeros_OI = self._zeros()
        if scales_OI.shape[1] > 1:
            scales_OI, zeros_OI = scales_OI[:, groups_I], zeros_OI[:, groups_I]
        return ((values_OI - zeros_OI) * scales_OI).to(dtype)

    def minima(self) -> Tensor:
        """What code 0 means in each group, float32 [O, G]."""
        return -self._zeros() * self.scales_OG.float()

    def _zeros(self) -> Tensor:
        if self.zeros_OG is not None:
            return self.zeros_OG.float()
        return torch.full_like(self.scales_OG, 2 ** (self.bits - 1), dtype=torch.float32)

    def column_groups(self) -> Tensor:
        """The group of each column, int64 [I]."""
        if self.groups_I is not None:
            return self.groups_I.long()
        return torch.arange(self.shape[1], device=self.codes_OI.device) // self.group_size

    def split(self, rows: Sequence[int]) -> list[Codes]:
        """Its rows as matrices of these many rows each."""
        bounds = list(pairwise([0, *accumulate(rows)]))
        return [self._rows(start, end) for start, end in bounds]

    def _rows(self, start: int, end: int) -> Codes:
        whole = self.scales_OG.shape[0] == 1 < self.shape[0]  # one scale for the whole matrix
        scales_OG = self.scales_OG if whole else self.scales_OG[start:end]
        zeros_OG = self.zeros_OG if self.zeros_OG is None or whole else self.zeros_OG[start:end]
        levels_OK = self.levels_OK
        if levels_OK is not None and len(levels_OK) > 1:
            levels_OK = levels_OK[start:end]
        return Codes(self.codes_OI[start:end], scales_OG, zeros_OG, self.bits, self.groups_I, levels_OK)


def stacked(parts: Sequence[Codes]) -> Codes:
    """The rows of several matrices one after the other. ValueError where they are not quantised alike."""
    first = parts[0]
    if len(parts) == 1:
        return first
    levels = [p.levels_OK for p in parts if p.levels_OK is not None and len(p.levels_OK) == p.shape[0]]
    if any(p.levels_OK is not None for p in parts) and len(levels) < len(parts):
        raise ValueError("matrices that share levels cannot be put into one")
    like = (first.bits, first.scales_OG.shape[1], first.zeros_OG is None, first.codes_OI.dtype)
    if any((p.bits, p.scales_OG.shape[1], p.zeros_OG is None, p.codes_OI.dtype) != like for p in parts):
        raise ValueError("matrices that a file keeps as one are quantised in different ways")
    scales = [p.scales_OG.expand(p.shape[0], -1) for p in parts]
    zeros = None if first.zeros_OG is None else torch.cat([p.zeros_OG for p in parts if p.zeros_OG is not None])
    codes_OI, levels_OK = torch.cat([p.codes_OI for p in parts]), torch.cat(levels) if levels else None
    return Codes(codes_OI, torch.cat(scales), zeros, first.bits, first.groups_I, levels_OK)


def pack_words(values_RN: Tensor, bits: int) -> Tensor:
    """Unsigned numbers of ``bits`` bits, [R, N], one behind the other from the lowest bit on: int32 [R, N bits / 32].

    Rows are padded with zeros to whole words; numbers may lie across two. GPTQ and compressed-tensors do it so.
    """
    rows, count = values_RN.shape
    run = 32 // math.gcd(bits, 32)  # numbers after which a word begins anew
    values = torch.nn.functional.pad(values_RN, (0, -count % run)).view(rows, -1, run).to(torch.int64)
    words = torch.zeros(*values.shape[:2], run * bits // 32 + 1, dtype=torch.int64, device=values.device)
    for number, (word, shift) in enumerate(divmod(n * bits, 32) for n in range(run)):
        moved = values[:, :, number] << shift
        words[:, :, word] |= moved & _WORD
        words[:, :, word + 1] |= moved >> 32
    packed = words[:, :, :-1].reshape(rows, -1)[:, : -(-count * bits // 32)]
    return torch.where(packed > _WORD >> 1, packed - (1 << 32), packed).to(torch.int32)


def unpack_words(words_RW: Tensor, bits: int, count: int) -> Tensor:
    """The way back: uint8 [R, count]."""
    rows, run = words_RW.shape[0], 32 // math.gcd(bits, 32)
    per_run = run * bits // 32
    words = words_RW.to(torch.int64) & _WORD
    words = torch.nn.functional.pad(words, (0, -words.shape[1] % per_run)).view(rows, -1, per_run)
    words = torch.nn.functional.pad(words, (0, 1))
    values = [
        (words[:, :, word] | words[:, :, word + 1] << 32) >> shift & (1 << bits) - 1
        for word, shift in (divmod(n * bits, 32) for n in range(run))
    ]
    return torch.stack(values, dim=-1).view(rows, -1)[:, :count].to(torch.uint8)
