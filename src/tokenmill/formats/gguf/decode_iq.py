"""Decoders of the i-quants: codes that select points of a lattice (IQ1, IQ2, IQ3) or of a curve (IQ4).

Each takes uint8 [N, bytes a block] and gives float32 [N, values a block], equal bit for bit to ggml's
dequantize_row_iq*. The lattices, up to 2048 points of eight values, are taken from the gguf package, which is imported
only when such a tensor is met. Source: ggml-quants.c, ggml-common.h. Axes: N blocks, B bytes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tokenmill.formats.gguf.bits import bits, even_signs, fields, halves, nibble_values, signs, take, words

_DELTA = 0.125
CURVE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@functools.cache
def _lattice(name: str) -> Tensor:
    """float32 [points, values a point] of one type's lattice."""
    from gguf import quants

    owner = getattr(quants, name)
    owner.init_grid()
    return torch.from_numpy(owner.grid.reshape(owner.grid_shape))


def _half_steps(scale_N1: Tensor, steps: Tensor, unit: float) -> Tensor:
    """d * (0.5 + s) * unit, in ggml's order."""
    return scale_N1 * (0.5 + steps.float()) * unit


def iq2_xxs(x_NB: Tensor) -> Tensor:
    """Eight groups of 32: four lattice points (bytes), then four seven-bit signs and a four-bit scale (one word)."""
    control = words(x_NB[:, 2:], torch.int32).view(-1, 8, 2)[:, :, 1]
    scale = _half_steps(halves(x_NB[:, :2]), (control >> 28) & 15, 0.25).view(-1, 8, 1, 1)
    sign = even_signs(torch.stack([(control >> shift) & 127 for shift in (0, 7, 14, 21)], dim=2))
    points = take(_lattice("IQ2_XXS"), x_NB[:, 2:].view(-1, 8, 8)[:, :, :4])
    return points.mul_(scale).mul_(sign).view(-1, 256)


def iq2_xs(x_NB: Tensor) -> Tensor:
    code = words(x_NB[:, 2:66], torch.int16)
    scale = _half_steps(halves(x_NB[:, :2]), fields(x_NB[:, 66:], 1, (0, 4), 15), 0.25).view(-1, 16, 1, 1)
    points = take(_lattice("IQ2_XS"), code & 511).view(-1, 16, 2, 8)
    return points.mul_(scale).mul_(even_signs(code >> 9).view(-1, 16, 2, 8)).view(-1, 256)


def iq2_s(x_NB: Tensor) -> Tensor:
    scale = _half_steps(halves(x_NB[:, :2]), fields(x_NB[:, 74:], 1, (0, 4), 15), 0.25).view(-1, 16, 1, 1)
    code = x_NB[:, 2:34].int() | (fields(x_NB[:, 66:74], 1, (0, 2, 4, 6), 3).int() << 8)
    points = take(_lattice("IQ2_S"), code).view(-1, 16, 2, 8)
    return points.mul_(scale).mul_(signs(x_NB[:, 34:66]).view(-1, 16, 2, 8)).view(-1, 256)


def iq3_xxs(x_NB: Tensor) -> Tensor:
    control = words(x_NB[:, 66:], torch.int32)
    scale = _half_steps(halves(x_NB[:, :2]), (control >> 28) & 15, 0.5).view(-1, 8, 1, 1)
    sign = even_signs(torch.stack([(control >> shift) & 127 for shift in (0, 7, 14, 21)], dim=2))
    points = take(_lattice("IQ3_XXS"), x_NB[:, 2:66]).view(-1, 8, 4, 8)
    return points.mul_(scale).mul_(sign).view(-1, 256)


def iq3_s(x_NB: Tensor) -> Tensor:
    steps = 1 + 2 * fields(x_NB[:, 106:], 1, (0, 4), 15)
    scale = (halves(x_NB[:, :2]) * steps.float()).view(-1, 8, 1, 1)
    code = x_NB[:, 2:66].int() | (bits(x_NB[:, 66:74]).int() << 8)
    points = take(_lattice("IQ3_S"), code).view(-1, 8, 4, 8)
    return points.mul_(scale).mul_(signs(x_NB[:, 74:106]).view(-1, 8, 4, 8)).view(-1, 256)


def iq1_s(x_NB: Tensor) -> Tensor:
    """Eight groups of 32, each with a word: four times three high bits of a code, a three-bit scale, a shift's sign."""
    control = words(x_NB[:, 34:], torch.int16)
    scale = (halves(x_NB[:, :2]) * (2 * ((control >> 12) & 7) + 1).float()).view(-1, 8, 1, 1)
    shift = torch.where(control & 0x8000 == 0, _DELTA, -_DELTA).view(-1, 8, 1, 1)
    high = torch.stack([(control >> bit) & 7 for bit in (0, 3, 6, 9)], dim=2).flatten(1) << 8
    points = take(_lattice("IQ1_S"), x_NB[:, 2:34].int() | high).view(-1, 8, 4, 8)
    return points.add_(shift).mul_(scale).view(-1, 256)


def iq1_m(x_NB: Tensor) -> Tensor:
    """Like IQ1_S with groups of 16; the half-precision scale is spread over the top four bits of four words."""
    scales = words(x_NB[:, 48:], torch.int16)
    top = scales >> 12
    packed = top[:, 0] | (top[:, 1] << 4) | (top[:, 2] << 8) | (top[:, 3] << 12)
    scale = packed.to(torch.int16).view(torch.float16).float().unsqueeze(1)
    steps = torch.stack([(scales >> bit) & 7 for bit in (0, 3, 6, 9)], dim=2).flatten(1)
    scale = (scale * (2 * steps + 1).float()).view(-1, 16, 1, 1)
    high = fields(x_NB[:, 32:48], 1, (0, 4), 15)
    shift = torch.where(high & 8 == 0, _DELTA, -_DELTA).view(-1, 16, 2, 1)
    points = take(_lattice("IQ1_M"), x_NB[:, :32].int() | ((high & 7).int() << 8)).view(-1, 16, 2, 8)
    return points.add_(shift).mul_(scale).view(-1, 256)


def iq4_nl(x_NB: Tensor) -> Tensor:
    return nibble_values(x_NB[:, 2:], 16, CURVE).mul_(halves(x_NB[:, :2]))


def iq4_xs(x_NB: Tensor) -> Tensor:
    """Eight groups of 32 with six-bit scales: low four bits in nibbles, high two in one 16-bit word."""
    high = fields(x_NB[:, 2:4], 1, (0, 2, 4, 6), 3) << 4
    scales = (fields(x_NB[:, 4:8], 1, (0, 4), 15) | high).view(torch.int8) - 32
    scale = (scales.float() * halves(x_NB[:, :2])).unsqueeze(2)
    return nibble_values(x_NB[:, 8:], 16, CURVE).view(-1, 8, 32).mul_(scale).view(-1, 256)
