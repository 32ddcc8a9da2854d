"""Paged attention of the native kernels against the reference of ops/attention.py, chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_native import sets

from tokenmill.engine.native_pass import SCALE_BYTES
from tokenmill.ops.attention import attention
from tokenmill.ops.native import native
from tokenmill.ops.program import CACHES

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
        self.dtype = dtype
        size = blocks * BLOCK * kv_heads * (dim * dtype.itemsize + (SCALE_BYTES if dtype == torch.int8 else 0))
        # every byte 0xff: NaN in each of the types, and in int8's scales
        self.keys, self.values = (torch.full((size,), 255, dtype=torch.uint8) for _ in "kv")
        self.free = list(np.random.default_rng(0).permutation(blocks))
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def attend(
        self, counts: dict[int, int], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        spans = []
        for name, count in counts.items():
            table, length = self.tables.setdefault(name, []), self.lengths.get(name, 0)
            while len(table) * BLOCK < length + count:
                table.append(int(self.free.pop()))
            self.lengths[name] = length + count
            spans.append((length, count))
        y = torch.full_like(q, torch.nan)
        program = self.native.module.Program(len(q))
        stored = CACHES.index(self.dtype)
        where = (self.keys.data_ptr(), self.values.data_ptr(), stored, BLOCK, self.kv_heads, self.dim, self.heads)
        options = (how["scale"], how.get("softcap") or 0.0, how.get("window") or 0)
        program.attend(q.data_ptr(), k.data_ptr(), v.data_ptr(), *where, *options, y.data_ptr())
        tables = [self.tables[name] for name in counts]
        program.run_pass(self.native.pool, self.kernels, [0] * len(q), spans, tables, BLOCK, False)
        return y


def stored(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a cache of this type gives back."""
    if dtype != torch.int8:
        return x.to(dtype).float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("dtype", CACHES)
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
            seen.setdefault(name, []).append((stored(k_part, dtype), stored(v_part, dtype)))
            keys, values = (torch.cat(parts) for parts in zip(*seen[name], strict=True))
            lens = {"q_lens": [len(q_part)], "kv_lens": [len(keys)]}
            expected.append(attention.reference(q_part, keys, values, **lens, **how))
        exact = dtype == torch.float32 or isa != "amx"  # tiles round queries and weights to bfloat16
        # int8: a number half way between two codes may go to either
        slack = 0.015 if not exact else 2e-3 if dtype == torch.int8 else 2e-5
        torch.testing.assert_close(y, torch.cat(expected), rtol=1e-4 if exact else 0.02, atol=slack)


@pytest.mark.parametrize("isa", sets())
def test_an_int8_cache_keeps_what_is_no_number_to_its_row(isa: str) -> None:
    """One position with an infinity: whoever sees it gets NaN, whoever does not gets numbers."""
    paged = Paged(isa, 2, 1, 16, torch.int8)
    x = torch.ones(3, 1, 16)
    x[2, 0, 5] = torch.inf
    y = paged.attend({0: 3}, torch.ones(3, 2, 16), x, x, scale=0.25)
    torch.testing.assert_close(y[:2], torch.ones(2, 2, 16), rtol=0, atol=1e-6)
    assert y[2].isnan().all()
