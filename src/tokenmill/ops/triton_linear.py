"""Triton kernels of the quantised linear layer (``ops/quantised_linear.py``). Imported where Triton is, and only then.

A program computes a tile of the output. Codes become numbers in registers: small integers, which 16 bits hold exactly;
their group's scale multiplies the float32 sums, so that nothing is rounded between code and result but the inputs'
products. Two codes of a byte belong to neighbouring columns: the tile's even and odd columns are two products.

Axes: T tokens · I in · O out · G groups of a row. Tile: M tokens · N outputs · K columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenmill.ops.quantised_linear import Held, interpreted

MOST_K = 64
# the interpreter multiplies the bits of bfloat16 as if they were integers; products of 16 bits are exact in float32
_KINDS = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.float32 if interpreted() else tl.bfloat16,
}


def _configs() -> list[Any]:
    """(tokens, outputs) of a tile, warps and stages: decoding, small batches, prompts. The interpreter measures
    nothing."""
    shapes = [(16, 32, 2, 4), (16, 64, 4, 4), (32, 64, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3)]
    found = [triton.Config({"M": m, "N": n}, num_warps=warps, num_stages=stages) for m, n, warps, stages in shapes]
    return found[:1] if interpreted() else found


@triton.jit
def _numbers(codes_KN, zero_N, kind: tl.constexpr):
    """Steps from zero as floats; by way of float32, since the interpreter does not make bfloat16 of integers."""
    return (codes_KN.to(tl.int32) - zero_N[None, :]).to(tl.float32).to(kind)


@triton.autotune(_configs(), key=["few", "outs", "columns"])
@triton.jit
def _group_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    y_ptr,
    tokens,
    few,
    outs,
    columns,
    groups,
    size,
    MIDDLE: tl.constexpr,
    ZEROS: tl.constexpr,
    PAIRED: tl.constexpr,
    KIND: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    PER: tl.constexpr = 2 if PAIRED else 1
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, columns, K):
        byte = start // PER + tl.arange(0, K // PER)
        there = byte < columns // PER
        codes_KN = tl.load(
            codes_ptr + n[None, :].to(tl.int64) * (columns // PER) + byte[:, None],
            mask=there[:, None] & (n < outs)[None, :],
            other=0,
        )
        at_N = n * groups + start // size
        scale_N = tl.load(scales_ptr + at_N, mask=n < outs, other=0.0).to(tl.float32)
        if ZEROS:
            zero_N = tl.load(zeros_ptr + at_N, mask=n < outs, other=0).to(tl.int32)
        else:
            zero_N = tl.full((N,), MIDDLE, tl.int32)
        x_at = x_ptr + m[:, None].to(tl.int64) * columns + byte[None, :] * PER
        mask_MK = (m < tokens)[:, None] & there[None, :]
        x_MK = tl.load(x_at, mask=mask_MK, other=0.0).to(KIND)
        if PAIRED:
            odd_MK = tl.load(x_at + 1, mask=mask_MK, other=0.0).to(KIND)
            low_KN = _numbers(codes_KN & 15, zero_N, KIND)
            high_KN = _numbers(codes_KN >> 4, zero_N, KIND)
            part_MN = tl.dot(x_MK, low_KN) + tl.dot(odd_MK, high_KN)
        else:
            part_MN = tl.dot(x_MK, _numbers(codes_KN, zero_N, KIND))
        total += part_MN * scale_N[None, :]
    y_at = y_ptr + m[:, None].to(tl.int64) * outs + n[None, :]
    tl.store(y_at, total, mask=(m < tokens)[:, None] & (n < outs)[None, :])


@triton.autotune(_configs(), key=["few", "outs", "columns"])
@triton.jit
def _int8_kernel(
    x_ptr,
    x_scales_ptr,
    codes_ptr,
    scales_ptr,
    y_ptr,
    tokens,
    few,
    outs,
    columns,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.int32)
    for start in range(0, columns, K):
        k = start + tl.arange(0, K)
        mask_MK = (m < tokens)[:, None] & (k < columns)[None, :]
        x_MK = tl.load(x_ptr + m[:, None].to(tl.int64) * columns + k[None, :], mask=mask_MK, other=0)
        mask_KN = (k < columns)[:, None] & (n < outs)[None, :]
        codes_KN = tl.load(codes_ptr + n[None, :].to(tl.int64) * columns + k[:, None], mask=mask_KN, other=128)
        total += tl.dot(x_MK, (codes_KN.to(tl.int16) - 128).to(tl.int8))
    x_scale_M = tl.load(x_scales_ptr + m, mask=m < tokens, other=0.0)
    scale_N = tl.load(scales_ptr + n, mask=n < outs, other=0.0).to(tl.float32)
    y_at = y_ptr + m[:, None].to(tl.int64) * outs + n[None, :]
    y_MN = total.to(tl.float32) * x_scale_M[:, None] * scale_N[None, :]
    tl.store(y_at, y_MN, mask=(m < tokens)[:, None] & (n < outs)[None, :])


def _grid(tokens: int, outs: int) -> Any:
    return lambda meta: (triton.cdiv(tokens, meta["M"]), triton.cdiv(outs, meta["N"]))


def group_product(x_TI: Tensor, weight: Held) -> Tensor:
    """``x W^T`` in float32 [T, O]: codes of 2 to 8 bits with a scale, and a zero perhaps, a group. ``x``: contiguous,
    16 bits."""
    (tokens, columns), (outs, _), groups = x_TI.shape, weight.shape, weight.scales_OG.shape[1]
    size = columns // groups
    y_TO = torch.empty(tokens, outs, device=x_TI.device)
    zeros_OG = weight.scales_OG if weight.zeros_OG is None else weight.zeros_OG
    _group_kernel[_grid(tokens, outs)](
        x_TI, weight.codes, weight.scales_OG, zeros_OG, y_TO, tokens, _few(tokens), outs, columns, groups, size,
        MIDDLE=2 ** (weight.bits - 1), ZEROS=weight.zeros_OG is not None, PAIRED=weight.paired,
        KIND=_KINDS[x_TI.dtype], K=MOST_K if groups == 1 else min(MOST_K, size),
    )  # fmt: skip
    return y_TO


def int8_product(x_TI: Tensor, weight: Held) -> Tensor:
    """``round(x) W^T`` in float32 [T, O], integers times integers: x by token as ``ops.rounding.int8_by_token``."""
    (tokens, columns), (outs, _) = x_TI.shape, weight.shape
    x_TI = x_TI.float()
    scale_T1 = x_TI.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    codes_TI = (x_TI / scale_T1).round().to(torch.int8)
    y_TO = torch.empty(tokens, outs, device=x_TI.device)
    _int8_kernel[_grid(tokens, outs)](
        codes_TI, scale_T1, weight.codes, weight.scales_OG, y_TO, tokens, _few(tokens), outs, columns, K=MOST_K
    )
    return y_TO


def _few(tokens: int) -> int:
    """Numbers of tokens that share what was measured: powers of two, all above 256 alike."""
    return min(256, 1 << (tokens - 1).bit_length())
