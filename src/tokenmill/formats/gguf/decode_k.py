"""Decoders of the K-quants: superblocks of 256 values whose groups have small integer scales of their own.

Each takes uint8 [N, bytes a block] and gives float32 [N, 256], equal bit for bit to ggml's dequantize_row_*_K: the same
operations in the same order, and no fused multiply-add. Source: ggml-quants.c. Axes: N blocks, B bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.formats.gguf.bits import fields, halves


def q2_k(x_NB: Tensor) -> Tensor:
    scales, scale = x_NB[:, :16], halves(x_NB[:, 80:84])
    low = ((scales & 15).float() * scale[:, :1]).unsqueeze(2)
    high = ((scales >> 4).float() * scale[:, 1:]).unsqueeze(2)
    q = fields(x_NB[:, 16:80], 32, (0, 2, 4, 6), 3).float()
    return q.view(-1, 16, 16).mul_(low).sub_(high).view(-1, 256)


def q3_k(x_NB: Tensor) -> Tensor:
    """Six-bit scales, their low four bits in eight bytes and their high two in four; a *clear* mask bit subtracts 4."""
    scales = fields(x_NB[:, 96:104], 8, (0, 4), 15) | (fields(x_NB[:, 104:108], 4, (0, 2, 4, 6), 3) << 4)
    scale = ((scales.view(torch.int8) - 32).float() * halves(x_NB[:, 108:])).unsqueeze(2)
    low = fields(x_NB[:, 32:96], 32, (0, 2, 4, 6), 3)
    high = fields(x_NB[:, :32], 32, range(8), 1) << 2
    q = (low | high).view(torch.int8) - 4
    return q.float().view(-1, 16, 16).mul_(scale).view(-1, 256)


def _scales_and_minima(x_NB: Tensor) -> tuple[Tensor, Tensor]:
    """Eight six-bit scales and eight minima from twelve bytes, float32 [N, 8] each."""
    scale, minimum, rest = x_NB[:, :4], x_NB[:, 4:8], x_NB[:, 8:]
    scales = torch.cat([scale & 63, (rest & 15) | ((scale >> 2) & 0x30)], dim=1)
    minima = torch.cat([minimum & 63, (rest >> 4) | ((minimum >> 2) & 0x30)], dim=1)
    return scales.float(), minima.float()


def _scaled(q_NV: Tensor, x_NB: Tensor) -> Tensor:
    """Q4_K and Q5_K begin alike: two halves, twelve bytes of scales."""
    scales, minima = _scales_and_minima(x_NB[:, 4:16])
    scale = halves(x_NB[:, :4])
    scales, minima = scales.mul_(scale[:, :1]).unsqueeze(2), minima.mul_(scale[:, 1:]).unsqueeze(2)
    return q_NV.float().view(-1, 8, 32).mul_(scales).sub_(minima).view(-1, 256)


def q4_k(x_NB: Tensor) -> Tensor:
    return _scaled(fields(x_NB[:, 16:], 32, (0, 4), 15), x_NB)


def q5_k(x_NB: Tensor) -> Tensor:
    high = fields(x_NB[:, 16:48], 32, range(8), 1) << 4
    return _scaled(fields(x_NB[:, 48:], 32, (0, 4), 15) | high, x_NB)


def q6_k(x_NB: Tensor) -> Tensor:
    scale = (x_NB[:, 192:208].view(torch.int8).float() * halves(x_NB[:, 208:])).unsqueeze(2)
    high = fields(x_NB[:, 128:192], 32, (0, 2, 4, 6), 3) << 4
    q = (fields(x_NB[:, :128], 64, (0, 4), 15) | high).view(torch.int8) - 32
    return q.float().view(-1, 16, 16).mul_(scale).view(-1, 256)
