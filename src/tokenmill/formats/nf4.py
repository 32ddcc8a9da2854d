"""NF4 with double quantisation (Dettmers et al. 2023, QLoRA), bit for bit as bitsandbytes 0.50 has it.

A weight is cut into blocks of 64, each divided by its largest magnitude and rounded to one of 16 levels, the quantiles
of a normal distribution. Double quantisation then takes the mean off these magnitudes and keeps the rest as 8-bit
codes of a dynamic map in blocks of 256: 4.127 bits a weight instead of 4.5.

bitsandbytes finds an 8-bit code by bisecting the midpoints on a GPU, and in a table of 65536 steps on a CPU, which
rounds 1 in 700 scales to the neighbouring code. Both are done here, each on its own device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, NESTED_BLOCK = 64, 256
# The quantiles of N(0, 1) over [-1, 1] with an exact zero (bitsandbytes.functional.get_4bit_type)
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
TINY = 1e-38  # what bitsandbytes divides by where a block is all zeros


@cache
def levels(device: torch.device) -> Tensor:
    """The 16 levels, float32, ascending."""
    return torch.tensor(LEVELS, device=device)


@cache
def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values of the signed dynamic 8-bit type (Dettmers 2015), float32, ascending."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        for sign in (1, -1):
            values += (sign * 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2.0)).tolist()
    return torch.tensor(sorted(values), device=device)


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels that a byte holds, [256, 2]: first element in the high half."""
    bytes_ = torch.arange(256, device=device)
    return torch.stack((levels(device)[bytes_ >> 4], levels(device)[bytes_ & 15]), dim=1)


@dataclass(frozen=True)
class NF4:
    """A packed tensor. ``scales``: float32, or 8-bit codes with ``nested`` scales and ``offset`` (double)."""

    packed: Tensor
    """uint8 [ceil(n / 2)]"""
    scales: Tensor
    """[ceil(n / 64)]"""
    nested: Tensor | None
    """float32 [ceil(n / 64 / 256)]"""
    offset: Tensor | None
    """float32, the mean of the scales"""
    shape: torch.Size
    dtype: torch.dtype


def quantize(weight: Tensor, *, double: bool = True) -> NF4:
    """Pack a float tensor of any shape."""
    flat = weight.detach().reshape(-1).float()
    blocks, scales = _blocks(flat, BLOCK)
    normed = (blocks * (1.0 / scales.clamp(min=TINY))[:, None]).reshape(-1)[: len(flat)]
    if rest := len(flat) % BLOCK:  # bitsandbytes divides in the incomplete block, and multiplies in the others
        scales[-1].clamp_(min=TINY)
        normed[-rest:] = flat[-rest:] / scales[-1]
    code = levels(flat.device)
    indices = torch.bucketize(normed.clamp(-1, 1), (code[:-1] + code[1:]) / 2)
    indices = F.pad(indices, (0, len(indices) % 2)).to(torch.uint8)
    packed = indices[::2] << 4 | indices[1::2]
    if not double:
        return NF4(packed, scales, None, None, weight.shape, weight.dtype)
    offset = scales.mean()
    codes, nested = _quantize_scales(scales - offset)
    return NF4(packed, codes, nested, offset, weight.shape, weight.dtype)


def dequantize(packed: NF4, dtype: torch.dtype | None = None) -> Tensor:
    """The weight again, in its own dtype or another."""
    n = packed.shape.numel()
    scales, device = scales_of(packed), packed.packed.device
    flat = F.embedding(packed.packed.int(), _pairs(device)).reshape(-1)
    whole = n // BLOCK * BLOCK
    flat[:whole].view(-1, BLOCK).mul_(scales[: n // BLOCK, None])
    if n > whole:
        flat[whole:] *= scales[-1]
    return flat[:n].to(dtype or packed.dtype).view(packed.shape)


def scales_of(packed: NF4) -> Tensor:
    """The scale of every block, float32 [ceil(n / 64)], out of its 8-bit codes where these are double."""
    if packed.nested is None or packed.offset is None:
        return packed.scales
    values = F.embedding(packed.scales.int(), dynamic_map(packed.packed.device)[:, None])[:, 0]
    return values * packed.nested.repeat_interleave(NESTED_BLOCK)[: len(values)] + packed.offset


def _blocks(flat: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``flat`` as rows of ``size``, zeros behind its end, and the largest magnitude of every row."""
    blocks = F.pad(flat, (0, -len(flat) % size)).view(-1, size)
    return blocks, blocks.abs().amax(dim=1)


def _quantize_scales(values: Tensor) -> tuple[Tensor, Tensor]:
    blocks, nested = _blocks(values, NESTED_BLOCK)
    normed = (blocks * (1.0 / nested.clamp(min=TINY))[:, None]).clamp(-1, 1).reshape(-1)[: len(values)]
    normed[(nested == 0).repeat_interleave(NESTED_BLOCK)[: len(values)]] = -1  # 0 / 0 there; any code times 0 is 0
    code = dynamic_map(values.device)
    middles = (code[:-1] + code[1:]) / 2
    if values.device.type == "cpu":
        normed = ((normed + 1) * 0.5 * 65535 + 0.5).floor() * (2 / 65535) - 1
    return torch.bucketize(normed, middles).to(torch.uint8), nested
