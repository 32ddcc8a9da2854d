"""Training attention on a CPU: a backward pass of matrix products, a block of queries at a time.

The compiled kernels have it in ``native/src/attention_backward.inl``; what follows is the same in plain torch.
torch's own one for CPUs takes seven times as long as its forward pass, and keeps keys and values repeated for every
query head. This keeps queries, keys and values as they are, and computes a block's probabilities again (as in
FlashAttention, Dao et al. 2022). All of it is in float32, which for matrices this small is no slower than bfloat16 with
its conversions. Axes as in ``ops/attention.py``, and B a block of queries, G query heads of one key/value head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tokenmill.ops import native_train

QUERY_BLOCK = 128

Forward = Callable[..., Tensor]


class DocumentAttention(torch.autograd.Function):
    """Causal self-attention over whole documents; ``forward_pass`` is any backend's, and decides the values."""

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        lens: Sequence[int],
        scale: float,
        window: int | None,
        forward_pass: Forward,
    ) -> Tensor:
        ctx.save_for_backward(q_THD, k_TKD, v_TKD)
        ctx.lens, ctx.scale, ctx.window = list(lens), scale, window
        return forward_pass(q_THD, k_TKD, v_TKD, q_lens=lens, kv_lens=lens, scale=scale, window=window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_THD: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # asked for once: under a checkpoint a second time is an error
        q_THD, k_TKD, v_TKD = saved
        gradients = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in saved)
        tensors = (q_THD, k_TKD, v_TKD, d_out_THD, *gradients)
        found = native_train.native_for(*tensors) if q_THD.shape[-1] % 16 == 0 else None
        if found is not None:
            native_train.attention_backward(found, tensors[:4], gradients, ctx.lens, ctx.scale, ctx.window)
            return *gradients, None, None, None, None
        for q, k, v, d_out, d_q, d_k, d_v in zip(*(t.split(ctx.lens) for t in tensors), strict=True):
            _document(q, k, v, d_out, (d_q, d_k, d_v), ctx.scale, ctx.window)
        return *gradients, None, None, None, None


def _document(
    q_QHD: Tensor,
    k_QKD: Tensor,
    v_QKD: Tensor,
    d_out_QHD: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    scale: float,
    window: int | None,
) -> None:
    """Fill one document's gradients of queries, keys and values."""
    length, kv_heads, _ = k_QKD.shape
    wide = torch.float64 if q_QHD.dtype == torch.float64 else torch.float32
    keys, values = (t.transpose(0, 1).to(wide, memory_format=torch.contiguous_format) for t in (k_QKD, v_QKD))
    d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)  # [K, Q, D]
    for begin in range(0, length, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, length)
        first = 0 if window is None else max(0, begin - window + 1)
        q_KND, d_out_KND = (_by_kv_head(t[begin:end].to(wide), kv_heads) for t in (q_QHD, d_out_QHD))  # N = G * B
        scores = torch.bmm(q_KND * scale, keys[:, first:end].transpose(1, 2))
        _hide(scores.unflatten(1, (-1, end - begin)), begin, first, window)
        p = torch.softmax(scores, -1)
        d_p = torch.bmm(d_out_KND, values[:, first:end].transpose(1, 2))
        d_values[:, first:end].baddbmm_(p.transpose(1, 2), d_out_KND)
        d_p -= (p * d_p).sum(-1, keepdim=True)
        d_scores = p.mul_(d_p).mul_(scale)
        d_keys[:, first:end].baddbmm_(d_scores.transpose(1, 2), q_KND)
        d_q_KGBD = torch.bmm(d_scores, keys[:, first:end]).unflatten(1, (-1, end - begin))
        gradients[0][begin:end] = d_q_KGBD.flatten(0, 1).transpose(0, 1)
    gradients[1].copy_(d_keys.transpose(0, 1))
    gradients[2].copy_(d_values.transpose(0, 1))


def _by_kv_head(x_BHD: Tensor, kv_heads: int) -> Tensor:
    """[B, H, D] to [K, G * B, D]: the query heads that read the same keys, one after the other."""
    return x_BHD.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _hide(scores_KGBS: Tensor, begin: int, first: int, window: int | None) -> None:
    """-inf where a key is in the future of its query or has left its window."""
    block, keys = scores_KGBS.shape[-2:]
    # Without a window only the last keys, the block's own, can be in the future of a query
    looked_at = block if window is None else keys
    queries_B1 = torch.arange(begin, begin + block, device=scores_KGBS.device)[:, None]
    distance_BS = queries_B1 - torch.arange(begin + block - looked_at, begin + block, device=scores_KGBS.device)
    hidden_BS = distance_BS < 0
    if window is not None:
        hidden_BS |= distance_BS >= window
    scores_KGBS[..., keys - looked_at :].masked_fill_(hidden_BS, float("-inf"))
