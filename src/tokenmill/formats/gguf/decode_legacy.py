"""Decoders of the formats with one scale (or a scale and a minimum) a block, and of the ternary and binary ones.

Each takes the blocks as uint8 [N, bytes a block] and gives float32 [N, values a block], by the same operations in the
same order as ggml's dequantize_row_* (no fused multiply-add), so results are equal bit for bit.
Source: ggml-quants.c; MXFP4: OCP Microscaling Formats 1.0. Axes: N blocks, B bytes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tokenmill.formats.gguf.bits import E2M1_DOUBLED, bits, fields, halves, nibble_values, take


def q4_0(x_NB: Tensor) -> Tensor:
    q = fields(x_NB[:, 2:], 16, (0, 4), 15).view(torch.int8) - 8
    return q.float().mul_(halves(x_NB[:, :2]))


def q4_1(x_NB: Tensor) -> Tensor:
    scale = halves(x_NB[:, :4])
    return fields(x_NB[:, 4:], 16, (0, 4), 15).float().mul_(scale[:, :1]).add_(scale[:, 1:])


def _five_bits(high_NB: Tensor, low_NB: Tensor) -> Tensor:
    return fields(low_NB, 16, (0, 4), 15) | (bits(high_NB) << 4)


def q5_0(x_NB: Tensor) -> Tensor:
    q = _five_bits(x_NB[:, 2:6], x_NB[:, 6:]).view(torch.int8) - 16
    return q.float().mul_(halves(x_NB[:, :2]))


def q5_1(x_NB: Tensor) -> Tensor:
    scale = halves(x_NB[:, :4])
    return _five_bits(x_NB[:, 4:8], x_NB[:, 8:]).float().mul_(scale[:, :1]).add_(scale[:, 1:])


def q8_0(x_NB: Tensor) -> Tensor:
    return x_NB[:, 2:].view(torch.int8).float().mul_(halves(x_NB[:, :2]))


def q8_k(x_NB: Tensor) -> Tensor:
    """A float32 scale, 256 int8, and sums of 16 that only dot products use."""
    scale = x_NB[:, :4].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return x_NB[:, 4:260].view(torch.int8).float().mul_(scale)


def q1_0(x_NB: Tensor) -> Tensor:
    """One bit a value: plus or minus the scale."""
    scale = halves(x_NB[:, :2])
    return torch.where(bits(x_NB[:, 2:]).bool(), scale, -scale)


def tq1_0(x_NB: Tensor) -> Tensor:
    """Five ternary digits a byte (four in the last four bytes); a digit is read by multiplying it to the top."""
    digits = [
        torch.stack([part * power for power in powers], dim=1).flatten(1)
        for part, powers in (
            (x_NB[:, :32], (1, 3, 9, 27, 81)),
            (x_NB[:, 32:48], (1, 3, 9, 27, 81)),
            (x_NB[:, 48:52], (1, 3, 9, 27)),
        )
    ]
    q = ((torch.cat(digits, dim=1).to(torch.int16) * 3) >> 8) - 1
    return q.float().mul_(halves(x_NB[:, 52:]))


def tq2_0(x_NB: Tensor) -> Tensor:
    q = fields(x_NB[:, :64], 32, (0, 2, 4, 6), 3).view(torch.int8) - 1
    return q.float().mul_(halves(x_NB[:, 64:]))


@functools.cache
def _e8m0_halved() -> Tensor:
    """float32 [256]: 2^(e - 128), the scale of MXFP4 for values that are doubled; the two smallest are subnormal."""
    exponent = torch.arange(256, dtype=torch.int32)
    return torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23).view(torch.float32)


def mxfp4(x_NB: Tensor) -> Tensor:
    return nibble_values(x_NB[:, 1:], 16, E2M1_DOUBLED).mul_(take(_e8m0_halved(), x_NB[:, :1]))


@functools.cache
def _ue4m3_halved() -> Tensor:
    """float32 [256]: half an unsigned e4m3 float, the scale of NVFP4 for values that are doubled; 0x7f reads as 0."""
    byte = torch.arange(256, dtype=torch.int32)
    exponent, mantissa = (byte >> 3) & 15, (byte & 7).float()
    normal = (1.0 + mantissa / 8.0) * torch.pow(2.0, (exponent - 7).float())
    value = torch.where(exponent == 0, mantissa * 2.0**-9, normal) * 0.5
    return torch.where(byte == 0x7F, 0.0, value)


def nvfp4(x_NB: Tensor) -> Tensor:
    """Four groups of sixteen e2m1 values, each with its own scale byte."""
    scale = take(_ue4m3_halved(), x_NB[:, :4]).unsqueeze(2)
    return nibble_values(x_NB[:, 4:], 8, E2M1_DOUBLED).view(-1, 4, 16).mul_(scale).view(-1, 64)
