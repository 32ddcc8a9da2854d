"""Floats into GGUF blocks: the native kernels where they are, else the torch twin of them.

Both search for scales as ggml does. The kernels' blocks are ggml's in every bit (but the codes of groups whose scale is
zero, which mean nothing); the twin's differ from them in the last bit of some scales, for it adds up in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.formats.gguf import quantize
from tokenmill.formats.gguf.encode import BLOCKS, check_rows, half_scales
from tokenmill.ops.native import Native, native

_PIECE = 1 << 24  # values a call: 64 MB of float32 where the tensor is of another dtype


def encode_blocks(tensor: Tensor, type: str, importance: Tensor | None = None) -> Tensor:
    """Encode [..., values a row] -> uint8 [..., bytes a row], on the CPU; what `quantize` refuses is refused.

    ``importance``: float [values a row], or for a stack of experts [E, values a row], for a tensor [E, …, values].
    """
    if importance is not None and importance.ndim == 2:
        if tensor.ndim != 3 or len(tensor) != len(importance):
            raise UsageError(f"importances {list(importance.shape)} do not fit a tensor {list(tensor.shape)}")
        pairs = zip(tensor, importance, strict=True)
        return torch.stack([encode_blocks(one, type, its) for one, its in pairs])
    kernels = native()
    if kernels is None or type not in BLOCKS:
        return quantize(tensor, type, importance)
    kind = check_rows(tensor, type, importance)
    rows = tensor.detach().cpu().reshape(-1, tensor.shape[-1])
    out = torch.empty(len(rows), kind.row_bytes(rows.shape[1]), dtype=torch.uint8)
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        _encode(kernels, rows[start : start + step], type, importance, out[start : start + step])
    if not torch.isfinite(half_scales(out.view(-1, kind.nbytes), type)).all():
        raise UsageError("it has values too large for a half-precision scale")
    return out.view(*tensor.shape[:-1], out.shape[1])


def _encode(kernels: Native, rows: Tensor, type: str, importance: Tensor | None, out: Tensor) -> None:
    """Rows [R, K] of any float type into their bytes at `out` [R, bytes a row]."""
    x = rows.float().contiguous()
    counted = None if importance is None else importance.float().contiguous()
    at = 0 if counted is None else counted.data_ptr()
    if not kernels.module.encode(kernels.pool, kernels.kernels, type, x.data_ptr(), at, *x.shape, out.data_ptr()):
        raise UsageError("it has NaN or infinity")
