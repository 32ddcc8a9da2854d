"""What quantised layers do to their inputs: rounded token by token, kept as floats.

Axes: T tokens · I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MOST = 448.0
"""The largest number of float8_e4m3fn."""


def int8_by_token(x_TI: Tensor) -> Tensor:
    """To 255 even steps between minus and plus a token's largest magnitude."""
    x = x_TI.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    return ((x / scale).round() * scale).to(x_TI.dtype)


def fp8_by_token(x_TI: Tensor) -> Tensor:
    """To float8_e4m3fn, scaled so that a token's largest magnitude is its largest number."""
    x = x_TI.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-10) / FP8_MOST
    return ((x / scale).clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).float() * scale).to(x_TI.dtype)


def int8_with_outliers(x_TI: Tensor, threshold: float = 6.0) -> Tensor:
    """LLM.int8() (Dettmers 2022): columns in which any token reaches ``threshold`` stay as they are, in half precision;
    the rest is rounded as by :func:`int8_by_token`."""
    outlier_I = (x_TI.abs() >= threshold).flatten(0, -2).any(0)
    rest = int8_by_token(x_TI.masked_fill(outlier_I, 0.0))
    return torch.where(outlier_I, x_TI.to(torch.float16).to(x_TI.dtype), rest)


ROUNDINGS = {"int8": int8_by_token, "fp8": fp8_by_token, "int8-outliers": int8_with_outliers}
"""By the name that a layout gives."""
