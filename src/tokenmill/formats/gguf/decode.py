"""Dequantise GGUF blocks with torch: every type that ggml stores weights in, equal bit for bit to the gguf package.

Work goes in pieces that stay in a core's cache, so that the several passes over a piece cost little beyond the one
write of the result, and so that decoding to bfloat16 never holds a second, float32 copy of the tensor. Measured on two
cores against the gguf package's numpy code: see tests/parity/test_gguf_decode.py for what is compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.formats.gguf import decode_iq, decode_k, decode_legacy
from tokenmill.formats.gguf.types import type_named

_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": decode_legacy.q4_0,
    "Q4_1": decode_legacy.q4_1,
    "Q5_0": decode_legacy.q5_0,
    "Q5_1": decode_legacy.q5_1,
    "Q8_0": decode_legacy.q8_0,
    "Q8_K": decode_legacy.q8_k,
    "Q1_0": decode_legacy.q1_0,
    "TQ1_0": decode_legacy.tq1_0,
    "TQ2_0": decode_legacy.tq2_0,
    "MXFP4": decode_legacy.mxfp4,
    "NVFP4": decode_legacy.nvfp4,
    "Q2_K": decode_k.q2_k,
    "Q3_K": decode_k.q3_k,
    "Q4_K": decode_k.q4_k,
    "Q5_K": decode_k.q5_k,
    "Q6_K": decode_k.q6_k,
    "IQ1_S": decode_iq.iq1_s,
    "IQ1_M": decode_iq.iq1_m,
    "IQ2_XXS": decode_iq.iq2_xxs,
    "IQ2_XS": decode_iq.iq2_xs,
    "IQ2_S": decode_iq.iq2_s,
    "IQ3_XXS": decode_iq.iq3_xxs,
    "IQ3_S": decode_iq.iq3_s,
    "IQ4_NL": decode_iq.iq4_nl,
    "IQ4_XS": decode_iq.iq4_xs,
}

# 1 MiB of float32 a thread: half of a 2 MiB L2. Measured best of 2^15 to 2^20 values on one and on two threads.
_PIECE = 1 << 18


def dequantize(raw: Tensor, type: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Decode blocks: uint8 [..., bytes a row] -> `dtype` [..., values a row].

    Types that torch stores itself (F32, BF16, I32) are reinterpreted and cast. UsageError for an unknown type or rows
    that are not whole blocks.
    """
    kind = type_named(type)
    if raw.dtype != torch.uint8 or raw.ndim == 0:
        raise UsageError(f"{type} blocks are uint8 [..., bytes a row], not {raw.dtype} {list(raw.shape)}")
    if raw.shape[-1] % kind.nbytes:
        raise UsageError(f"rows of {raw.shape[-1]} bytes are not whole {type} blocks of {kind.nbytes} bytes")
    shape = (*raw.shape[:-1], raw.shape[-1] // kind.nbytes * kind.block)
    blocks = raw.reshape(-1, kind.nbytes)
    if kind.dtype is not None:
        return blocks.clone().view(kind.dtype).to(dtype).view(shape)
    out = torch.empty(len(blocks), kind.block, dtype=dtype, device=raw.device)
    decode = _DECODERS[type]
    step = max(1, _PIECE // kind.block) * (torch.get_num_threads() if raw.device.type == "cpu" else 64)
    for start in range(0, len(blocks), step):
        out[start : start + step] = decode(blocks[start : start + step])
    return out.view(shape)
