"""Matrices in the layout of the native kernels: quantised blocks as a GGUF file has them, or floats.

A packed matrix takes what its file takes (4.5 bits a weight for Q4_0), is multiplied as it is, and never unpacked
whole; its inputs are rounded to 16 bits in blocks of 32 (llama.cpp: 8 bits, which cost 0.6 % of perplexity), or to
bfloat16 for the matrix tiles that many rows meet where the machine has them. float32 and bfloat16 matrices multiply
float32 inputs. Layout: ``native/src/formats.h``.

Axes: T tokens · I in · O out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.ops.batch_invariant import is_batch_invariant
from tokenmill.ops.native import Native, native, why_not
from tokenmill.ops.registry import Op

FLOATS = {torch.float32: "F32", torch.bfloat16: "BF16"}
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
_PANEL = 64  # bytes: panels begin at cache lines


def kernels() -> Native:
    """The native kernels; UsageError where there are none."""
    found = native()
    if found is None:
        raise UsageError(f"packed weights need the native kernels; {why_not()}")
    return found


class Packed:
    """A matrix [O, I] in panels of 16 rows. ``kind``: a GGUF type's name, or ``F32`` or ``BF16``."""

    dtype = torch.float32  # of what it multiplies and gives

    def __init__(
        self, kind: str, rows: int, columns: int, *, group_shift: int = 0, memory: Tensor | None = None
    ) -> None:
        """Without ``memory``: with room that a maker of this class fills. With it: what one has filled, uint8, from a
        file perhaps; ValueError where it is not as large as the matrix or does not begin at a cache line."""
        here = kernels()
        self.kind, self.shape, self.group_shift = kind, torch.Size((rows, columns)), group_shift
        size = here.module.Weight(kind, rows, columns, group_shift, 0).nbytes
        if memory is None:
            room = torch.empty(size + _PANEL, dtype=torch.uint8)
            offset = -room.data_ptr() % _PANEL
            memory = room[offset : offset + size]
        if memory.numel() != size or memory.data_ptr() % _PANEL:
            raise ValueError(f"{memory.numel()} bytes for a {kind} matrix of {rows} x {columns}, which takes {size}")
        self.memory = memory
        self.handle = here.module.Weight(kind, rows, columns, group_shift, self.memory.data_ptr())

    @classmethod
    def from_blocks(cls, kind: str, columns: int, blocks: Tensor) -> Packed:
        """From a GGUF tensor's bytes, uint8 [O, bytes a row]."""
        packed = cls(kind, blocks.shape[0], columns)
        blocks = blocks.contiguous()
        here = kernels()
        here.module.pack_rows(here.pool, packed.handle, blocks.data_ptr())
        return packed

    @classmethod
    def from_floats(cls, weight_OI: Tensor, dtype: torch.dtype | None = None) -> Packed:
        """From a float32 or bfloat16 matrix, as one of ``dtype`` (default: its own)."""
        packed = cls(FLOATS[dtype or weight_OI.dtype], *weight_OI.shape)
        packed.fill(weight_OI)
        return packed

    def fill(self, weight_OI: Tensor) -> None:
        """Put a float matrix of this shape into a packed float matrix."""
        kind = next(dtype for dtype, name in FLOATS.items() if name == self.kind)
        weight_OI = weight_OI.detach().to(kind).contiguous()
        here = kernels()
        here.module.pack_rows(here.pool, self.handle, weight_OI.data_ptr())

    @classmethod
    def from_codes(cls, codes_OI: Tensor, scales_OG: Tensor, minima_OG: Tensor | None, bits: int) -> Packed:
        """From unsigned codes, one a byte, with a scale for each of G equal groups of a row: GPTQ, AWQ and INT8.

        ``bits`` 4: a weight is ``scale * code + minimum``. ``bits`` 8: ``scale * (code - 128)``. Groups are 32 times
        a power of two, or whole rows.
        """
        rows, columns = codes_OI.shape
        groups = scales_OG.shape[1]
        size = -(-columns // groups)
        if groups > 1 and (size % 32 or (size // 32) & (size // 32 - 1)):
            raise UsageError(f"groups of {size} cannot be packed: 32, 64, 128, … or whole rows can")
        if (bits == 4) != (minima_OG is not None) or bits not in (4, 8):
            raise UsageError("codes have 4 bits with minima, or 8 without")
        shift = 31 if groups == 1 else (size // 32).bit_length() - 1
        packed = cls("Q4_1" if bits == 4 else "Q8_0", rows, columns, group_shift=shift)
        codes_OI = codes_OI.to(torch.uint8).contiguous()
        scales_OG = scales_OG.to(torch.float16).contiguous()
        minima = None if minima_OG is None else minima_OG.to(torch.float16).contiguous()
        here = kernels()
        at = 0 if minima is None else minima.data_ptr()
        here.module.pack_codes(here.pool, packed.handle, codes_OI.data_ptr(), scales_OG.data_ptr(), at)
        return packed

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def rows(self, indices: Tensor) -> Tensor:
        """Rows by index, [..., I] in float32. IndexError if one is not there."""
        flat = indices.reshape(-1).to(torch.int64).contiguous()
        if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= self.shape[0]):
            raise IndexError(f"an index is not within 0 … {self.shape[0] - 1}")
        out = torch.empty(len(flat), self.shape[1])
        here = kernels()
        here.module.dequantise(here.pool, here.kernels, self.handle, flat.data_ptr(), len(flat), out.data_ptr())
        return out.view(*indices.shape, self.shape[1])

    def dense(self) -> Tensor:
        """All of it, [O, I] in float32."""
        return self.rows(torch.arange(self.shape[0]))


@Op
def packed_linear(x_TI: Tensor, weight: Packed, bias_O: Tensor | None = None) -> Tensor:
    """``x W^T + b``; returns [T, O] in x's dtype. The reference unpacks the matrix and multiplies in float32."""
    bias = None if bias_O is None else bias_O.float()
    return F.linear(x_TI.float(), weight.dense(), bias).to(x_TI.dtype)


@packed_linear.backend("native")
def _native_linear(x_TI: Tensor, weight: Packed, bias_O: Tensor | None = None) -> Tensor:
    here = kernels()
    x = x_TI.detach().float().reshape(-1, weight.shape[1]).contiguous()
    y = torch.empty(len(x), weight.shape[0])
    bias = None if bias_O is None else bias_O.detach().float().contiguous()
    if len(x):
        program = here.module.Program(len(x))
        program.linear(x.data_ptr(), weight.handle, 0 if bias is None else bias.data_ptr(), y.data_ptr())
        program.run(here.pool, here.kernels, len(x), is_batch_invariant())
    return y.view(*x_TI.shape[:-1], weight.shape[0]).to(x_TI.dtype)


@Op
def embedding(indices: Tensor, weight: Tensor | Packed) -> Tensor:
    """Rows of a table [V, C] by index, [..., C]."""
    return weight.rows(indices) if isinstance(weight, Packed) else F.embedding(indices, weight)
