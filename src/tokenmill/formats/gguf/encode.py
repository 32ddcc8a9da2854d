"""Quantise with torch into the GGUF types that need no importance matrix, equal bit for bit to the gguf package.

F32, F16, BF16 (rounded to nearest even), Q8_0, Q4_0, Q4_1, Q5_0, Q5_1; F64 and integers only from the same dtype. (One
bit may differ: the sign of a zero minimum in a block that holds both zeros, where numpy's choice depends on the CPU.)
Refused: rows that are not whole blocks, and values a type cannot hold (NaN, infinity or beyond half precision in a
quantised block, beyond half precision in F16), because the file would decode to NaN. Where the gguf package's result is
not defined (it casts infinity to a byte, for blocks of values below 1e-37) ours is, and decodes to the same zeros.
Source: ggml-quants.c quantize_row_*_ref. Axes: N blocks, V values a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.formats.gguf.types import GGMLType, type_named

# as in decode: pieces that stay in cache, and no float32 copy of a whole bfloat16 tensor
_PIECE = 1 << 18


def _half(x_N1: Tensor) -> Tensor:
    """A scale as the two bytes of a float16."""
    half = x_N1.half()
    if not torch.isfinite(half).all():
        raise UsageError("it has NaN, infinity or values too large for a half-precision scale")
    return half.view(torch.uint8)


def _inverse(d_N1: Tensor) -> Tensor:
    """1/d, and 0 where that is infinite: such blocks (all values below 1e-37) have a scale of 0 in half precision."""
    inverse = 1.0 / d_N1
    return torch.where(torch.isfinite(inverse), inverse, 0.0)


def _nibbles(q_NV: Tensor) -> Tensor:
    """The low four bits of 32 codes in 16 bytes: value i and value i + 16 share one."""
    return (q_NV[:, :16] & 15) | (q_NV[:, 16:] << 4)


def _fifth_bits(q_NV: Tensor) -> Tensor:
    """Bit 4 of 32 codes in four bytes, lowest first."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return ((q_NV >> 4).view(-1, 4, 8) * weights).sum(dim=2, dtype=torch.uint8)


def _symmetric(x_NV: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes 0..2*levels-1 around `levels`; the value of largest magnitude becomes exactly code 0."""
    largest = x_NV.gather(1, x_NV.abs().argmax(dim=1, keepdim=True))
    d = largest / -levels
    scale = _half(d)
    q = (x_NV * _inverse(d)).add_(levels + 0.5).trunc_().clamp_(0, 2 * levels - 1)
    return scale, q.to(torch.uint8)


def _affine(x_NV: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Codes 0..top from the minimum to the maximum; the scale's and the minimum's bytes together."""
    low, high = x_NV.amin(dim=1, keepdim=True), x_NV.amax(dim=1, keepdim=True)
    d = (high - low) / top
    scale = torch.cat([_half(d), _half(low)], dim=1)
    q = ((x_NV - low) * _inverse(d)).add_(0.5).trunc_().clamp_(0, top)
    return scale, q.to(torch.uint8)


def _q4_0(x_NV: Tensor) -> Tensor:
    scale, q = _symmetric(x_NV, 8)
    return torch.cat([scale, _nibbles(q)], dim=1)


def _q4_1(x_NV: Tensor) -> Tensor:
    scale, q = _affine(x_NV, 15)
    return torch.cat([scale, _nibbles(q)], dim=1)


def _q5_0(x_NV: Tensor) -> Tensor:
    scale, q = _symmetric(x_NV, 16)
    return torch.cat([scale, _fifth_bits(q), _nibbles(q)], dim=1)


def _q5_1(x_NV: Tensor) -> Tensor:
    scale, q = _affine(x_NV, 31)
    return torch.cat([scale, _fifth_bits(q), _nibbles(q)], dim=1)


def _q8_0(x_NV: Tensor) -> Tensor:
    d = x_NV.abs().amax(dim=1, keepdim=True) / 127
    scale = _half(d)
    x = x_NV * _inverse(d)
    # round half away from zero, as C's roundf; torch.round takes halves to even
    magnitude = x.abs()
    floor = magnitude.floor()
    q = x.sign() * (floor + (2 * (magnitude - floor)).floor_())
    return torch.cat([scale, q.to(torch.int8).view(torch.uint8)], dim=1)


_ENCODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
}
WRITABLE = ("F32", "F16", "BF16", *_ENCODERS)


def quantize(tensor: Tensor, type: str) -> Tensor:
    """Encode [..., values a row] -> uint8 [..., bytes a row], on the CPU.

    UsageError for a type that cannot be written, rows that do not fit its block, or values it cannot hold.
    """
    kind = type_named(type)
    row = tensor.shape[-1] if tensor.ndim else 1
    if row % kind.block:
        raise UsageError(
            f"rows of {row} values do not divide into {type}'s blocks of {kind.block}; use F16 or BF16 for this tensor"
        )
    tensor = tensor.detach().cpu()
    if kind.dtype is not None:
        stored = _plain(tensor, kind, kind.dtype).contiguous()
        return stored.view(-1).view(torch.uint8).view(*tensor.shape[:-1], kind.row_bytes(row))
    encode = _ENCODERS.get(type)
    if encode is None:
        raise UsageError(f"{type} can be read but not written; writable: {', '.join(WRITABLE)}")
    blocks = tensor.reshape(-1, kind.block)
    out = torch.empty(len(blocks), kind.nbytes, dtype=torch.uint8)
    step = _PIECE // kind.block * torch.get_num_threads()
    for start in range(0, len(blocks), step):
        out[start : start + step] = encode(blocks[start : start + step].float())
    return out.view(*tensor.shape[:-1], kind.row_bytes(row))


def _plain(tensor: Tensor, kind: GGMLType, dtype: torch.dtype) -> Tensor:
    """The cast for types that torch stores itself."""
    if tensor.dtype == dtype:
        return tensor
    if kind.name not in ("F32", "F16", "BF16"):
        raise UsageError(f"{kind.name} is written from {dtype} only, not from {tensor.dtype}")
    cast = tensor.to(dtype)
    if kind.name == "F16" and (torch.isinf(cast) & torch.isfinite(tensor)).any():
        raise UsageError("it has values beyond F16's range of 65504; use BF16 or F32")
    return cast
