"""What the block decoders share: reading half-precision scales, spreading packed bits, looking codes up.

All functions take and give tensors whose first axis N is blocks. Bytes are uint8. Packed fields are spread with one
scalar shift for all of them (vectorised by torch) or with a table of 256 entries, never with a shift per element.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

# the values of a four-bit e2m1 float, doubled (OCP Microscaling Formats 1.0; ggml kvalues_mxfp4)
E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def halves(x_NB: Tensor) -> Tensor:
    """Bytes [N, 2k] read as float16, widened to float32 [N, k]."""
    return x_NB.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def words(x_NB: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [N, size * k] read as little-endian integers, widened to int32 [N, k] (the sign bit is not special)."""
    found = x_NB.clone(memory_format=torch.contiguous_format).view(dtype)
    return found.int() & 0xFFFF if dtype == torch.int16 else found


def fields(x_NB: Tensor, width: int, shifts: Sequence[int], mask: int) -> Tensor:
    """Spread packed fields: [N, groups * width] -> [N, groups * len(shifts) * width], still uint8.

    In each group of `width` bytes come first the fields at shifts[0] of all bytes, then those at shifts[1], and so on,
    which is how ggml interleaves every one of its formats.
    """
    x = x_NB.contiguous().view(len(x_NB), -1, width)
    return torch.stack([(x >> shift) & mask if shift else x & mask for shift in shifts], dim=2).view(len(x_NB), -1)


@functools.cache
def _bit_table() -> Tensor:
    """int64 [256]: the eight bits of each byte, lowest first, as eight bytes of 0 or 1."""
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return bits.to(torch.uint8).view(torch.int64).view(-1)


def bits(x_NB: Tensor) -> Tensor:
    """The bits of each byte, lowest first: [N, k] -> [N, 8k], uint8 of 0 or 1."""
    return take(_bit_table(), x_NB).view(torch.uint8).view(len(x_NB), -1)


@functools.cache
def _sign_table() -> Tensor:
    """float32 [256, 8]: -1 where a byte's bit is set, else 1."""
    return 1.0 - 2.0 * ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1).float()


def signs(x_NB: Tensor) -> Tensor:
    """-1 for each set bit, 1 for each clear one, lowest first: [N, ...] -> float32 [N, ..., 8]."""
    return take(_sign_table(), x_NB)


def even_signs(x_NB: Tensor) -> Tensor:
    """Like `signs` for seven-bit codes: the eighth sign makes the number of minuses even (ggml ksigns_iq2xs)."""
    x = x_NB.int()
    parity = x ^ (x >> 4)
    parity = parity ^ (parity >> 2)
    return signs(x | (((parity ^ (parity >> 1)) & 1) << 7))


@functools.cache
def _pair_table(codebook: tuple[int, ...]) -> Tensor:
    """int16 [256]: for each byte the values of its low and high nibble, as two int8."""
    byte = torch.arange(256)
    values = torch.tensor(codebook, dtype=torch.int8)
    return torch.stack([values[byte & 15], values[byte >> 4]], dim=1).view(torch.int16).view(-1)


def nibble_values(x_NB: Tensor, width: int, codebook: tuple[int, ...]) -> Tensor:
    """Nibbles looked up in sixteen int8 values, in the order of `fields(x, width, (0, 4), 15)`: float32 [N, 2k]."""
    pairs = take(_pair_table(codebook), x_NB).view(torch.int8).view(len(x_NB), -1, width, 2)
    return pairs.transpose(2, 3).float().reshape(len(x_NB), -1)


def take(table: Tensor, index: Tensor) -> Tensor:
    """Rows of `table` by an integer tensor of any shape: [*index.shape, *table.shape[1:]]."""
    rows = table.to(index.device).index_select(0, index.reshape(-1).int())
    return rows.view(*index.shape, *table.shape[1:])
