"""The searches for good scales of GGUF's blocks: a readable twin of ``native/src/encode_fit.inl``.

Every function takes groups x [M, n] with weights w [M, n] of the same shape, float32, and works on all of them at once.
Codes are whole numbers in floats, rounded to nearest even. Source: ggml-quants.c make_qkx2_quants, make_qkx3_quants,
make_qx_quants, make_q3_quants, make_qp_quants. Sums are torch's, so that a scale may differ from ggml's in the last
bit; the native kernels are equal to it in all bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_SCALE = 1e-15
"""ggml's GROUP_MAX_EPS: what is smaller is zero."""


class Affine(NamedTuple):
    """x is about ``scale * code - least``, all [M, 1]; the codes are ``round(inverse * (x - start))``."""

    scale: Tensor
    least: Tensor
    inverse: Tensor
    start: Tensor


def largest(x_MN: Tensor) -> Tensor:
    """The value of largest magnitude, with its sign: [M, 1]."""
    return x_MN.gather(1, x_MN.abs().argmax(dim=1, keepdim=True))


def fit_affine(
    x_MN: Tensor, w_MN: Tensor, top: int, first: float, step: float, steps: int, absolute: bool = False
) -> Affine:
    """Codes 0..top with a minimum that is not above zero.

    The scale that the range gives is varied in ``steps`` steps; after each, scale and minimum are fitted by weighted
    least squares, and the pair with the least weighted error (``absolute`` or squared) is kept.
    """
    low, high = x_MN.amin(1, keepdim=True).clamp(max=0), x_MN.amax(1, keepdim=True)
    flat, lowest = high <= low, low
    sum_w, sum_x = w_MN.sum(1, keepdim=True), (w_MN * x_MN).sum(1, keepdim=True)

    def error(scale: Tensor, codes: Tensor, least: Tensor) -> Tensor:
        off = scale * codes + least - x_MN
        return (w_MN * (off.abs() if absolute else off * off)).sum(1, keepdim=True)

    inverse, start = top / (high - low), low
    scale = 1 / inverse
    best = error(scale, (inverse * (x_MN - low)).round().clamp(0, top), low)
    for number in range(steps + 1):
        tried = (first + step * number + top) / (high - low)
        codes = (tried * (x_MN - low)).round().clamp(0, top)
        weighted = w_MN * codes
        l1, l2 = weighted.sum(1, keepdim=True), (weighted * codes).sum(1, keepdim=True)
        xl = (weighted * x_MN).sum(1, keepdim=True)
        determinant = sum_w * l2 - l1 * l1
        new_scale, new_low = (sum_w * xl - sum_x * l1) / determinant, (l2 * sum_x - l1 * xl) / determinant
        new_scale = torch.where(new_low > 0, xl / l2, new_scale)
        new_low = new_low.clamp(max=0)
        now = error(new_scale, codes, new_low)
        better = (determinant > 0) & (now < best)
        best, scale = torch.where(better, now, best), torch.where(better, new_scale, scale)
        inverse, start = torch.where(better, tried, inverse), torch.where(better, low, start)
        low = torch.where(better, new_low, low)
    zero = torch.zeros_like(scale)
    return Affine(
        torch.where(flat, zero, scale),
        -torch.where(flat, lowest, low),
        torch.where(flat, zero, inverse),
        torch.where(flat, zero, start),
    )


def fit_symmetric(x_MN: Tensor, w_MN: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes -levels..levels-1 without a minimum: (scale, inverse), [M, 1] each; the codes are round(inverse * x)."""
    peak = largest(x_MN)
    scale, kept, quality = (torch.zeros_like(peak) for _ in range(3))
    for tenths in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(levels + 0.1 * tenths) / peak
        codes = (inverse * x_MN).round().clamp(-levels, levels - 1)
        xl, l2 = (w_MN * x_MN * codes).sum(1, keepdim=True), (w_MN * codes * codes).sum(1, keepdim=True)
        better = (l2 > 0) & ((xl * xl > quality * l2) | (tenths == 0))
        scale = torch.where(better, xl / l2, scale)
        quality = torch.where(better, xl / l2 * xl, quality)
        kept = torch.where(better | (tenths == 0), inverse, kept)
    zero = peak.abs() < NO_SCALE
    return scale.masked_fill(zero, 0), kept.masked_fill(zero, 0)


def fit_by_codes(x_MN: Tensor, levels: int) -> Tensor:
    """A scale [M, 1] for codes -levels..levels-1, weighted by x^2, improved code by code."""
    peak = largest(x_MN)
    w_MN = x_MN * x_MN
    codes = (x_MN * (-levels / peak)).round().clamp(-levels, levels - 1)
    xl, l2 = (w_MN * x_MN * codes).sum(1), (w_MN * codes * codes).sum(1)
    columns = list(zip(x_MN.unbind(1), w_MN.unbind(1), strict=True))
    kept = list(codes.unbind(1))
    for _ in range(5):
        for n, (x, w) in enumerate(columns):
            kept[n], xl, l2 = _improved(x, w, kept[n], xl, l2, -levels, levels - 1)
    none = (peak[:, 0].abs() < NO_SCALE) | (l2 <= 0)
    return (xl / l2).masked_fill(none, 0).unsqueeze(1)


def _improved(
    x: Tensor, w: Tensor, code: Tensor, xl: Tensor, l2: Tensor, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One value's code chosen anew, given all others; with the sums that follow from it."""
    rest_xl, rest_l2 = xl - w * x * code, l2 - w * code * code
    new = (x * rest_l2 / rest_xl).round().clamp(low, high)
    new_xl, new_l2 = rest_xl + w * x * new, rest_l2 + w * new * new
    better = (rest_xl > 0) & (new_l2 > 0) & (new_xl * new_xl * l2 > xl * xl * new_l2)
    return torch.where(better, new, code), torch.where(better, new_xl, xl), torch.where(better, new_l2, l2)


def fit_positive(x_MN: Tensor, w_MN: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Codes 0..top [M, n] of numbers that are not negative (a block's scales), and their scale [M, 1]."""
    high = x_MN.amax(1, keepdim=True)
    inverse, best = top / high, torch.full_like(high, torch.inf)
    for tenths in (0, *range(-4, 0), *range(1, 5)):
        tried = (0.1 * tenths + top) / high
        off = x_MN - (tried * x_MN).round().clamp(max=top) / tried
        now = (w_MN * off * off).sum(1, keepdim=True)
        better = now < best
        best, inverse = torch.where(better, now, best), torch.where(better, tried, inverse)
    codes = (inverse * x_MN).round().clamp(max=top)
    xl, l2 = (w_MN * x_MN * codes).sum(1), (w_MN * codes * codes).sum(1)
    kept = list(codes.unbind(1))
    for _ in range(5):
        for n in range(x_MN.shape[1]):
            kept[n], xl, l2 = _improved(x_MN[:, n], w_MN[:, n], kept[n], xl, l2, 0, top)
    zero = high < NO_SCALE
    scale = (xl / l2).unsqueeze(1).masked_fill(zero | (l2 <= 0).unsqueeze(1), 0)
    return torch.stack(kept, 1).masked_fill(zero, 0), scale
