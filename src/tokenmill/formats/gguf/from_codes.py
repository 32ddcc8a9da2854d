"""Codes of a quantised folder as GGUF blocks: the type that is nearest to them, and its bytes where these say the same.

Codes of at most 4 bits are Q4_0's, with zeros Q4_1's; symmetric ones of up to 8 bits fit Q8_0 too. A group's scale
stands in each of its blocks of 32, as float16. All else (FP8, levels, scattered or odd groups) has to be encoded anew
from its numbers, in the type that loses least of them.

Axes: O out · I in · G groups of a row · N blocks of a row · V values a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.formats.codes import Codes
from tokenmill.formats.gguf.encode import nibbles

BLOCK = 32


def nearest_type(codes: Codes) -> str | None:
    """A GGUF type of blocks of 32; None for rows that these do not divide."""
    if codes.shape[1] % BLOCK:
        return None
    if codes.levels_OK is not None:
        return "IQ4_NL"
    if codes.is_float or codes.bits > 4:
        return "Q8_0"
    return "Q4_0" if _is_even(codes) else "Q4_1"


def blocks_of(codes: Codes, type: str) -> Tensor | None:
    """The bytes of a matrix in a GGUF type, uint8 [O, bytes a row]; None where its blocks cannot say what these codes
    say."""
    (rows, columns), groups = codes.shape, codes.scales_OG.shape[1]
    if codes.levels_OK is not None or codes.groups_I is not None or codes.is_float or columns % (BLOCK * groups):
        return None
    codes_ONV = codes.codes_OI.view(rows, -1, BLOCK)
    scales_ON1 = _half(_of_blocks(codes.scales_OG.float(), codes_ONV))
    middle = 2 ** (codes.bits - 1)
    if type == "Q8_0" and _is_even(codes):
        return torch.cat([scales_ON1, codes_ONV - middle], -1).flatten(1)  # of bytes: below zero they are int8's
    if type == "Q4_0" and codes.bits <= 4 and _is_even(codes):
        return torch.cat([scales_ON1, nibbles(codes_ONV + (8 - middle))], -1).flatten(1)
    if type == "Q4_1" and codes.bits <= 4:
        minima_ON1 = _half(_of_blocks(codes.minima(), codes_ONV))
        return torch.cat([scales_ON1, minima_ON1, nibbles(codes_ONV)], -1).flatten(1)
    return None


def _is_even(codes: Codes) -> bool:
    """Whether zero is the middle code everywhere: GPTQ's files have zeros even where they say nothing."""
    return codes.zeros_OG is None or bool((codes.zeros_OG == 2 ** (codes.bits - 1)).all())


def _of_blocks(values_OG: Tensor, codes_ONV: Tensor) -> Tensor:
    """What a group has, for each of its blocks, [O, N, 1]; one value for the whole matrix stands in all."""
    rows, blocks, _ = codes_ONV.shape
    return values_OG.expand(rows, -1).repeat_interleave(blocks // values_OG.shape[1], 1)[..., None]


def _half(x_ON1: Tensor) -> Tensor:
    return x_ON1.half().contiguous().view(torch.uint8)
