"""Paged attention of the native kernels against the reference of ops/attention.py, chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_native import sets

from tokenmill.ops.attention import attention
from tokenmill.ops.native import native

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not here")
BLOCK = 32


class Paged:
    """Sequences in one cache with scattered blocks; ``attend`` appends new rows to each and returns what they see."""

    def __init__(self, isa: str, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, blocks: int = 64) -> None:
        here = native()
        assert here is not None
        self.native, self.kernels = here, here.module.kernels(isa)
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        # what no sequence has written is NaN: it must never be seen
        self.keys, self.values = (torch.full((blocks * BLOCK * kv_heads * dim,), torch.nan, dtype=dtype) for _ in "kv")
        self.free = list(np.random.default_rng(0).permutation(blocks))
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def attend(
        self, counts: dict[int, int], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        spans, slots, start = [], [], 0
        for name, count in counts.items():
            table, length = self.tables.setdefault(name, []), self.lengths.get(name, 0)
            while len(table) * BLOCK < length + count:
                table.append(int(self.free.pop()))
            slots += [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(length, length + count)]
            self.lengths[name] = length + count
            spans.append([start, count, length + count])
            start += count
        tables = np.zeros((len(counts), max(map(len, self.tables.values()))), dtype=np.int32)
        for row, name in zip(tables, counts, strict=True):
            row[: len(self.tables[name])] = self.tables[name]
        y = torch.full_like(q, torch.nan)
        program = self.native.module.Program(len(q))
        bf16 = self.keys.dtype == torch.bfloat16
        where = (self.keys.data_ptr(), self.values.data_ptr(), bf16, BLOCK, self.kv_heads, self.dim, self.heads)
        options = (how["scale"], how.get("softcap") or 0.0, how.get("window") or 0)
        program.attend(q.data_ptr(), k.data_ptr(), v.data_ptr(), *where, *options, y.data_ptr())
        slots_T, spans_S3 = np.array(slots), np.array(spans)
        addresses = (slots_T.ctypes.data, len(spans), spans_S3.ctypes.data, tables.ctypes.data, tables.shape[1])
        program.run(self.native.pool, self.kernels, len(q), 0, 0, *addresses, False)
        return y


@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "how"),
    [
        (9, 3, 64, {}),
        (4, 4, 16, {"window": 21}),
        (8, 1, 32, {"softcap": 5.0}),
        (6, 2, 80, {"window": 70, "softcap": 20.0}),
    ],
    ids=["grouped", "window", "one key head, soft cap", "both, odd heads"],
)
def test_chunks_and_decoding_see_what_the_reference_sees(
    isa: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, how: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    how = {"scale": dim**-0.5, **how}
    paged = Paged(isa, heads, kv_heads, dim, dtype)
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    # a long prompt, prompts beside decoding, decoding past a split of 512 keys, a chunk after a cached beginning
    for counts in [{0: 100, 1: 7}, {0: 1, 1: 1, 2: 33}, {0: 430, 2: 1}, {0: 1, 1: 2, 2: 5}, {0: 65}]:
        rows = sum(counts.values())
        q, k, v = (torch.randn(rows, h, dim, generator=generator) for h in (heads, kv_heads, kv_heads))
        y = paged.attend(counts, q, k, v, **how)
        pieces = zip(counts, *(part.split([*counts.values()]) for part in (q, k, v)), strict=True)
        expected = []
        for name, q_part, k_part, v_part in pieces:
            seen.setdefault(name, []).append((k_part.to(dtype).float(), v_part.to(dtype).float()))
            keys, values = (torch.cat(parts) for parts in zip(*seen[name], strict=True))
            lens = {"q_lens": [len(q_part)], "kv_lens": [len(keys)]}
            expected.append(attention.reference(q_part, keys, values, **lens, **how))
        exact = dtype == torch.float32 or isa != "amx"  # tiles round queries and weights to bfloat16
        torch.testing.assert_close(y, torch.cat(expected), rtol=1e-4 if exact else 0.02, atol=2e-5 if exact else 0.015)
