"""Every fast backend against its reference, over shapes, dtypes and options."""

from __future__ import annotations

import itertools

import pytest
import torch

from tokenmill.core.errors import UsageError
from tokenmill.nn.config import alibi_slopes
from tokenmill.ops.attention import attention
from tokenmill.ops.linear import linear
from tokenmill.ops.norm import layer_norm, rms_norm
from tokenmill.ops.registry import use_backend

LENGTHS = [([5], [5]), ([1], [9]), ([3], [9]), ([4, 1, 7], [4, 6, 7]), ([1, 1], [12, 3]), ([2], [40])]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("q_lens", "kv_lens"), LENGTHS)
@pytest.mark.parametrize(
    ("window", "alibi", "kv_heads"), list(itertools.product([None, 1, 4, 100], [False, True], [1, 2, 4]))
)
def test_sdpa_equals_reference(
    q_lens: list[int], kv_lens: list[int], window: int | None, alibi: bool, kv_heads: int
) -> None:
    heads, size = 4, 16
    q = random(sum(q_lens), heads, size, seed=1)
    k = random(sum(kv_lens), kv_heads, size, seed=2)
    v = random(sum(kv_lens), kv_heads, size, seed=3)
    how = {
        "q_lens": q_lens,
        "kv_lens": kv_lens,
        "scale": 0.3,
        "window": window,
        "alibi_H": torch.tensor(alibi_slopes(heads)) if alibi else None,
    }
    with use_backend(attention="sdpa"):
        got = attention(q, k, v, **how)
    torch.testing.assert_close(got, attention.reference(q, k, v, **how), rtol=1e-4, atol=1e-5)


def test_reference_attention_by_hand() -> None:
    """One head, scores written out: the query at position 2 with window 2 sees keys 1 and 2 only."""
    q, k = torch.tensor([[[1.0]]] * 3), torch.tensor([[[0.0]], [[1.0]], [[2.0]]])
    v = torch.tensor([[[1.0]], [[10.0]], [[100.0]]])
    out = attention.reference(q, k, v, q_lens=[3], kv_lens=[3], scale=1.0, window=2)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(out[0, 0, 0], torch.tensor(1.0))
    torch.testing.assert_close(out[2, 0, 0], (10.0 + 100.0 * e) / (1 + e))


def test_soft_capping_is_the_reference_only() -> None:
    q = random(2, 2, 8)
    capped = attention(q, q, q, q_lens=[2], kv_lens=[2], scale=5.0, softcap=1.0)
    assert not torch.allclose(capped, attention(q, q, q, q_lens=[2], kv_lens=[2], scale=5.0))
    with use_backend(attention="sdpa"), pytest.raises(UsageError, match="soft-capping"):
        attention(q, q, q, q_lens=[2], kv_lens=[2], scale=5.0, softcap=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_equal_references(dtype: torch.dtype) -> None:
    x, weight, bias = random(3, 5, 32, dtype=dtype), random(32, dtype=dtype, seed=1), random(32, dtype=dtype, seed=2)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm.reference(x, weight, 1e-5), **tolerance)
    torch.testing.assert_close(
        layer_norm(x, weight, bias, 1e-5), layer_norm.reference(x, weight, bias, 1e-5), **tolerance
    )


@pytest.mark.parametrize("bias", [False, True])
def test_one_row_products_equal_the_reference(bias: bool) -> None:
    x, weight = random(1, 96, dtype=torch.bfloat16), random(40, 96, dtype=torch.bfloat16, seed=1)
    b = random(40, dtype=torch.bfloat16, seed=2) if bias else None
    with use_backend(linear="gemv"):
        got = linear(x, weight, b)
    torch.testing.assert_close(got, linear.reference(x, weight, b), rtol=2e-2, atol=6e-2)
    with use_backend(linear="gemv"), pytest.raises(UsageError, match="more than one row"):
        linear(x.expand(2, -1), weight, b)


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8) == [2**-i for i in range(1, 9)]
    assert alibi_slopes(12)[:8] == alibi_slopes(8)
    assert alibi_slopes(12)[8:] == alibi_slopes(16)[0::2][:4]
