"""Encoders of the K-quants and of the four-bit curve: superblocks of 256 values (IQ4_NL: blocks of 32).

Each takes float32 [N, values a block] and importances of the same shape or None, and gives uint8 [N, bytes a block].
An importance says how much an error of that column counts; a weight is importance * sqrt(spread + x^2). A readable twin
of ``native/src/encode.inl``. Source: ggml-quants.c quantize_row_*_ref and *_impl. Axes: N blocks, V values, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.formats.gguf.decode_iq import CURVE
from tokenmill.formats.gguf.search import NO_SCALE, fit_affine, fit_by_codes, fit_positive, fit_symmetric, largest

WEIGHTED = (-0.9, 0.05, 36)
"""The steps that ggml tries where importances are given."""


def half(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [N, k] as bytes of half precision [N, 2k], and what these mean. Beyond its range: infinity."""
    rounded = x.half()
    return rounded.contiguous().view(torch.uint8), rounded.float()


def _mean_square(x_NV: Tensor) -> Tensor:
    return (x_NV * x_NV).mean(1, keepdim=True)


def weights(x: Tensor, importance: Tensor, spread: Tensor) -> Tensor:
    """How much the error of each value counts."""
    return importance * (spread + x * x).sqrt()


def _recoded(x_MN: Tensor, scale_M1: Tensor, least_M1: Tensor | float, low: int, high: int) -> Tensor:
    """Codes 0..high-low for the scale and minimum that the file will hold; zero where that scale is zero."""
    codes = ((x_MN + least_M1) / scale_M1).round().clamp(low, high) - low
    return torch.where(scale_M1 == 0, 0.0, codes).to(torch.uint8)


def _packed(codes_NV: Tensor, width: int, shifts: Sequence[int]) -> Tensor:
    """The way back from `bits.fields`: [N, groups * len(shifts) * width] -> [N, groups * width]."""
    parts = codes_NV.view(len(codes_NV), -1, len(shifts), width)
    out = torch.zeros_like(parts[:, :, 0])
    for n, shift in enumerate(shifts):
        out |= parts[:, :, n] << shift
    return out.view(len(codes_NV), -1)


def _plain_scales(x_NG: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """A block's scales as codes 0..top of the greatest."""
    high = x_NG.amax(1, keepdim=True).clamp(min=0)
    codes = torch.where(high > 0, (top / high * x_NG).round().clamp(0, top), 0.0)
    return codes, high / top


def _with_minima(
    x_NV: Tensor, importance: Tensor | None, group: int, top: int, plain: tuple[float, float, int], top_scale: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What Q2_K, Q4_K and Q5_K share: codes [N, V], the groups' scales and minima [N, G], their two halves' bytes."""
    n, groups = len(x_NV), x_NV.shape[1] // group
    x = x_NV.view(-1, group)
    if importance is not None:
        spread = _mean_square(x_NV) * (1 if top == 3 else 2)
        w = weights(x_NV, importance, spread).view(-1, group)
        found = fit_affine(x, w, top, *WEIGHTED)
        sums = w.sum(1).view(n, groups)
        scales, d = fit_positive(found.scale.view(n, groups), sums, top_scale)
        minima, dmin = fit_positive(found.least.view(n, groups), sums, top_scale)
    else:
        w = x.abs() if top == 3 else x.abs() + _mean_square(x).sqrt()
        found = fit_affine(x, w, top, *plain, absolute=top == 3)
        scales, d = _plain_scales(found.scale.view(n, groups), top_scale)
        minima, dmin = _plain_scales(found.least.view(n, groups), top_scale)
    halves, meant = half(torch.cat([d, dmin], 1))
    scale, least = (meant[:, :1] * scales).view(-1, 1), (meant[:, 1:] * minima).view(-1, 1)
    codes = _recoded(x, scale, least, 0, top).view(n, -1)
    return codes, scales.to(torch.uint8), minima.to(torch.uint8), halves


def q2_k(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    codes, scales, minima, halves = _with_minima(x_NV, importance, 16, 3, (-0.5, 0.1, 15), 15)
    return torch.cat([scales | (minima << 4), _packed(codes, 32, (0, 2, 4, 6)), halves], 1)


def _six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight six-bit scales and eight minima in twelve bytes."""
    first = (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6)
    second = (minima[:, :4] & 63) | ((minima[:, 4:] >> 4) << 6)
    return torch.cat([first, second, (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)], 1)


def q4_k(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    codes, scales, minima, halves = _with_minima(x_NV, importance, 32, 15, (-1.0, 0.1, 20), 63)
    return torch.cat([halves, _six_bits(scales, minima), _packed(codes, 32, (0, 4))], 1)


def q5_k(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    codes, scales, minima, halves = _with_minima(x_NV, importance, 32, 31, (-0.5, 0.1, 15), 63)
    high, low = _packed(codes >> 4, 32, range(8)), _packed(codes & 15, 32, (0, 4))
    return torch.cat([halves, _six_bits(scales, minima), high, low], 1)


def q3_k(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    n, x = len(x_NV), x_NV.view(-1, 16)
    if importance is None:
        scales_NG = fit_by_codes(x, 4).view(n, 16)
        peak = largest(scales_NG)
        scales = torch.where(peak == 0, -32.0, (scales_NG * (-32 / peak)).round().clamp(-32, 31))
        d = peak / -32
    else:
        w = weights(x_NV, importance, 2 * _mean_square(x_NV)).view(-1, 16)
        scales_NG = fit_symmetric(x, w, 4)[0].view(n, 16)
        d, inverse = fit_symmetric(scales_NG, w.sum(1).view(n, 16), 32)
        scales = (inverse * scales_NG).round().clamp(-32, 31)
    halves, meant = half(d)
    codes = _recoded(x, (meant * scales).view(-1, 1), 0.0, -4, 3).view(n, -1)
    six = (scales + 32).to(torch.uint8)
    low, high = _packed(six & 15, 8, (0, 4)), _packed(six >> 4, 4, (0, 2, 4, 6))
    return torch.cat([_packed(codes >> 2, 32, range(8)), _packed(codes & 3, 32, (0, 2, 4, 6)), low, high, halves], 1)


def q6_k(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    n, x = len(x_NV), x_NV.view(-1, 16)
    scales_NG = fit_symmetric(x, x * x if importance is None else importance.reshape(-1, 16), 32)[0].view(n, 16)
    peak = largest(scales_NG)
    zero = peak.abs() < NO_SCALE
    halves, meant = half((peak / -128).masked_fill(zero, 0))
    scales = (scales_NG * (-128 / peak)).round().clamp(max=127).masked_fill(zero, 0)
    codes = _recoded(x, (meant * scales).view(-1, 1), 0.0, -32, 31).view(n, -1)
    low, high = _packed(codes & 15, 64, (0, 4)), _packed(codes >> 4, 32, (0, 2, 4, 6))
    return torch.cat([low, high, scales.to(torch.int8).view(torch.uint8), halves], 1)


def _curve_codes(x: Tensor) -> Tensor:
    """Places 0..15 on the curve; of two equally near the greater value."""
    curve = torch.tensor(CURVE, dtype=torch.float32)
    return torch.bucketize(x, (curve[1:] + curve[:-1]) / 2, right=True)


def fit_curve(x_MN: Tensor, w_MN: Tensor) -> Tensor:
    """The best scale [M, 1] of values on the curve, tried at its low end and around it."""
    curve = torch.tensor(CURVE, dtype=torch.float32)
    peak = largest(x_MN)
    scale, quality = torch.zeros_like(peak), torch.zeros_like(peak)
    for shift in (None, *range(-7, 8)):
        inverse = 1 / (peak / 127) if shift is None else (shift + curve[0]) / peak
        q = curve[_curve_codes(inverse * x_MN)]
        xq, q2 = (w_MN * q * x_MN).sum(1, keepdim=True), (w_MN * q * q).sum(1, keepdim=True)
        better = (q2 > 0) & ((xq * xq > quality * q2) | (shift is None))
        scale, quality = torch.where(better, xq / q2, scale), torch.where(better, xq / q2 * xq, quality)
    return scale.masked_fill(peak.abs() < NO_SCALE, 0)


def _on_curve(x_MN: Tensor, scale_M1: Tensor) -> Tensor:
    """Bytes [M, n/2] of codes for a scale."""
    inverse = torch.where(scale_M1 == 0, 0.0, 1 / scale_M1)
    return _packed(_curve_codes(inverse * x_MN).to(torch.uint8), 16, (0, 4))


def _curve_weights(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    return x_NV * x_NV if importance is None else weights(x_NV, importance, 2 * _mean_square(x_NV))


def iq4_nl(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    scale = fit_curve(x_NV, _curve_weights(x_NV, importance))
    return torch.cat([half(scale)[0], _on_curve(x_NV, scale)], 1)


def iq4_xs(x_NV: Tensor, importance: Tensor | None) -> Tensor:
    n, x = len(x_NV), x_NV.view(-1, 32)
    scales_NG = fit_curve(x, _curve_weights(x_NV, importance).view(-1, 32)).view(n, 8)
    d = largest(scales_NG) / -32
    codes = torch.where(d == 0, 0.0, (scales_NG / d).round().clamp(-32, 31))
    six = (codes + 32).to(torch.uint8)
    high = _packed(six >> 4, 1, (0, 2, 4, 6))
    blocks = _on_curve(x, (d * codes).view(-1, 1)).view(n, -1)
    return torch.cat([half(d)[0], high, _packed(six & 15, 1, (0, 4)), blocks], 1)
