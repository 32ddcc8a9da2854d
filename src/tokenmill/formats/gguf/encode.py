"""Quantise into GGUF types with torch: what runs where there are no native kernels, and what these are checked against.

F32, F16, BF16 (rounded to nearest even), Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, equal bit for bit to the gguf package; Q2_K to
Q6_K, IQ4_NL and IQ4_XS by ggml's searches (`encode_k`); F64 and integers only from the same dtype. `ops/blocks.py`
chooses between this and the kernels. (One bit may differ: the sign
of a zero minimum in a block that holds both zeros, where numpy's choice depends on the CPU.)
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
from tokenmill.formats.gguf import encode_k
from tokenmill.formats.gguf.search import fit_affine, fit_symmetric
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


def nibbles(q_NV: Tensor) -> Tensor:
    """The low four bits of 32 codes [..., 32] in 16 bytes: value i and value i + 16 share one."""
    return (q_NV[..., :16] & 15) | (q_NV[..., 16:] << 4)


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
    return torch.cat([scale, nibbles(q)], dim=1)


def _q4_1(x_NV: Tensor) -> Tensor:
    scale, q = _affine(x_NV, 15)
    return torch.cat([scale, nibbles(q)], dim=1)


def _q5_0(x_NV: Tensor) -> Tensor:
    scale, q = _symmetric(x_NV, 16)
    return torch.cat([scale, _fifth_bits(q), nibbles(q)], dim=1)


def _q5_1(x_NV: Tensor) -> Tensor:
    scale, q = _affine(x_NV, 31)
    return torch.cat([scale, _fifth_bits(q), nibbles(q)], dim=1)


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
_SEARCHING: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "IQ4_NL": encode_k.iq4_nl,
    "IQ4_XS": encode_k.iq4_xs,
    "Q2_K": encode_k.q2_k,
    "Q3_K": encode_k.q3_k,
    "Q4_K": encode_k.q4_k,
    "Q5_K": encode_k.q5_k,
    "Q6_K": encode_k.q6_k,
}
BLOCKS = (*_ENCODERS, *_SEARCHING)
"""The types with scales and codes that can be written."""
WRITABLE = ("F32", "F16", "BF16", *BLOCKS)


def _weighted_legacy(x_NV: Tensor, importance: Tensor, spread_N1: Tensor, type: str) -> Tensor:
    """Q4_0 … Q5_1 with importances: ggml's searches in place of the plain range. Q8_0 has no use for them."""
    w, bits = encode_k.weights(x_NV, importance, spread_N1), int(type[1])
    if type.endswith("_0"):
        levels = 1 << (bits - 1)
        scale, inverse = fit_symmetric(x_NV, w, levels)
        head = _half(scale)
        q = (inverse * x_NV).round().clamp(-levels, levels - 1) + levels
    else:
        top = (1 << bits) - 1
        found = fit_affine(x_NV, w, top, *encode_k.WEIGHTED)
        head = torch.cat([_half(found.scale), _half(-found.least)], dim=1)
        q = (found.inverse * (x_NV - found.start)).round().clamp(0, top)
    codes = q.to(torch.uint8)
    return torch.cat([head, *([_fifth_bits(codes)] if bits == 5 else []), nibbles(codes)], dim=1)


def check_rows(tensor: Tensor, type: str, importance: Tensor | None) -> GGMLType:
    """The type, if it can be written, rows of this tensor divide into its blocks, and importances fit the columns."""
    kind = type_named(type)
    row = tensor.shape[-1] if tensor.ndim else 1
    if type not in WRITABLE and kind.dtype is None:
        raise UsageError(f"{type} can be read but not written; writable: {', '.join(WRITABLE)}")
    if row % kind.block:
        raise UsageError(
            f"rows of {row} values do not divide into {type}'s blocks of {kind.block}; use F16 or BF16 for this tensor"
        )
    if importance is not None and tuple(importance.shape) != (row,):
        raise UsageError(f"importances {list(importance.shape)} do not fit rows of {row} values")
    if importance is not None and not ((importance >= 0).all() and torch.isfinite(importance).all()):
        raise UsageError("importances must be finite and not negative")
    return kind


def quantize(tensor: Tensor, type: str, importance: Tensor | None = None) -> Tensor:
    """Encode [..., values a row] -> uint8 [..., bytes a row], on the CPU.

    Args:
        importance: float [values a row], how much an error in each column counts (see `imatrix.py`); types without
            a search (Q8_0, F16 …) have no use for it.

    UsageError for a type that cannot be written, rows that do not fit its block, or values it cannot hold.
    """
    kind = check_rows(tensor, type, importance)
    row = tensor.shape[-1] if tensor.ndim else 1
    tensor = tensor.detach().cpu()
    if kind.dtype is not None:
        stored = plain_values(tensor, kind, kind.dtype).contiguous()
        return stored.view(-1).view(torch.uint8).view(*tensor.shape[:-1], kind.row_bytes(row))
    rows = tensor.reshape(-1, row)
    out = torch.empty(len(rows), kind.row_bytes(row), dtype=torch.uint8)
    step = max(1, _PIECE // row * torch.get_num_threads())
    for start in range(0, len(rows), step):
        out[start : start + step] = _encoded(rows[start : start + step].float(), kind, importance)
    return out.view(*tensor.shape[:-1], kind.row_bytes(row))


def _encoded(x_RK: Tensor, kind: GGMLType, importance: Tensor | None) -> Tensor:
    """Rows [R, K] as bytes [R, bytes a row]."""
    if not torch.isfinite(x_RK).all():
        raise UsageError("it has NaN or infinity")
    blocks = x_RK.reshape(-1, kind.block)
    counted = None if importance is None else importance.float().expand(len(x_RK), -1).reshape(-1, kind.block)
    if kind.name in _SEARCHING:
        out = _SEARCHING[kind.name](blocks, counted)
        if not torch.isfinite(half_scales(out, kind.name).float()).all():
            raise UsageError("it has values too large for a half-precision scale")
    elif counted is None or kind.name == "Q8_0":
        out = _ENCODERS[kind.name](blocks)
    else:
        spread = (x_RK * x_RK).mean(1, keepdim=True).expand(-1, x_RK.shape[1] // kind.block).reshape(-1, 1)
        out = _weighted_legacy(blocks, counted, spread, kind.name)
    return out.reshape(len(x_RK), -1)


_HALVES = {"Q4_1": 0, "Q5_1": 0, "Q4_K": 0, "Q5_K": 0, "Q2_K": 80, "Q3_K": 108, "Q6_K": 208}


def half_scales(blocks: Tensor, type: str) -> Tensor:
    """The half-precision numbers at the head (or foot) of blocks uint8 [N, bytes a block]: float16 [N, 1 or 2]."""
    at = _HALVES.get(type, 0)
    width = 4 if type in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K") else 2
    return blocks[:, at : at + width].contiguous().view(torch.float16)


def plain_values(tensor: Tensor, kind: GGMLType, dtype: torch.dtype) -> Tensor:
    """The cast for types that torch stores itself."""
    if tensor.dtype == dtype:
        return tensor
    if kind.name not in ("F32", "F16", "BF16"):
        raise UsageError(f"{kind.name} is written from {dtype} only, not from {tensor.dtype}")
    cast = tensor.to(dtype)
    if kind.name == "F16" and (torch.isinf(cast) & torch.isfinite(tensor)).any():
        raise UsageError("it has values beyond F16's range of 65504; use BF16 or F32")
    return cast
