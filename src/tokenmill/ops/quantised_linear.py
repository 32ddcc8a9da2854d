"""The product of a linear layer whose weight is codes (``formats/codes.py``).

The reference unpacks the whole matrix for each product. On CUDA the Triton kernels (``ops/triton_linear.py``) multiply
codes as they lie in memory; codes of at most 4 bits lie two to a byte.

Axes: T tokens · I in · O out · G groups of a row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from tokenmill.formats.codes import Codes
from tokenmill.ops.linear import linear
from tokenmill.ops.registry import Op
from tokenmill.ops.rounding import ROUNDINGS

LEAST_GROUP = 32
"""Columns of a group that the kernels know: two halves of 16, the shortest side of a product of tiles."""


@dataclass(frozen=True)
class Held:
    """Codes as they lie in memory."""

    codes: Tensor
    """uint8 [O, I], float8 [O, I], or with ``paired`` uint8 [O, I / 2]: an even column in the lower half of a byte, the
    odd one behind it in the upper half."""
    paired: bool
    scales_OG: Tensor
    zeros_OG: Tensor | None
    bits: int
    groups_I: Tensor | None = None
    levels_OK: Tensor | None = None

    @classmethod
    def of(cls, codes: Codes) -> Held:
        """Codes put together two to a byte where they fit."""
        columns_OI, paired = codes.codes_OI, codes.bits <= 4 and codes.shape[1] % 2 == 0
        if paired:
            columns_OI = columns_OI[:, ::2] | columns_OI[:, 1::2] << 4
        return cls(columns_OI, paired, codes.scales_OG, codes.zeros_OG, codes.bits, codes.groups_I, codes.levels_OK)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        rows, columns = self.codes.shape
        return rows, 2 * columns if self.paired else columns

    def matrix(self) -> Codes:
        """One code a byte."""
        codes_OI = self.codes
        if self.paired:
            codes_OI = torch.stack((codes_OI & 15, codes_OI >> 4), -1).flatten(1)
        return Codes(codes_OI, self.scales_OG, self.zeros_OG, self.bits, self.groups_I, self.levels_OK)


@Op
def quantised_linear(x_TI: Tensor, weight: Held, bias_O: Tensor | None = None, inputs: str | None = None) -> Tensor:
    """``round(x) W^T + b``; returns [T, O] in x's dtype. ``inputs``: how x is rounded (``ops/rounding.py``)."""
    rounded_TI = x_TI if inputs is None else ROUNDINGS[inputs](x_TI)
    bias = None if bias_O is None else bias_O.to(x_TI.dtype)
    return linear(rounded_TI, weight.matrix().dense(x_TI.dtype), bias)


@cache
def _no_triton() -> str | None:
    return None if find_spec("triton") else "Triton is not installed"


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels on the CPU, for tests (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _not_by_triton(x_TI: Tensor, weight: Held, bias_O: Tensor | None = None, inputs: str | None = None) -> str | None:
    del bias_O
    if not (x_TI.is_cuda or interpreted()):
        return "not on CUDA"
    if x_TI.dtype not in (torch.float16, torch.bfloat16):
        return "inputs are not in 16 bits"
    if torch.is_grad_enabled() and x_TI.requires_grad:
        return "a gradient is wanted"
    if weight.levels_OK is not None or weight.groups_I is not None or weight.codes.dtype != torch.uint8:
        return "codes are no even steps in groups side by side"
    rows, columns = weight.shape
    groups = weight.scales_OG.shape[1]
    size = columns // groups
    if (
        weight.scales_OG.shape[0] != rows
        or columns % groups
        or (groups > 1 and (size < LEAST_GROUP or size & (size - 1)))
    ):
        return f"groups of {size} columns"
    if inputs == "int8" and (weight.bits != 8 or weight.zeros_OG is not None or groups > 1):
        return "rounded inputs go with 8 bits and a scale a row"
    if inputs not in (None, "int8"):
        return f"inputs rounded as {inputs}"
    return _no_triton()


@quantised_linear.backend("triton", _not_by_triton)
def _triton(x_TI: Tensor, weight: Held, bias_O: Tensor | None = None, inputs: str | None = None) -> Tensor:
    from tokenmill.ops import triton_linear

    rows_TI = x_TI.reshape(-1, x_TI.shape[-1]).contiguous()
    run = triton_linear.int8_product if inputs == "int8" else triton_linear.group_product
    y_TO = run(rows_TI, weight)
    if bias_O is not None:
        y_TO += bias_O
    return y_TO.to(x_TI.dtype).view(*x_TI.shape[:-1], weight.shape[0])
