"""Causal attention over sequences of different lengths, packed without padding.

Axes: T query tokens and S key tokens of all sequences one after the other · H query heads · K key/value heads (H is a
multiple of K: MHA when equal, GQA between, MQA when K is 1) · D head size.

Sequence ``i`` owns ``q_lens[i]`` rows of ``q_THD`` and ``kv_lens[i]`` rows of ``k_SKD``; its queries are the *last*
``q_lens[i]`` of its ``kv_lens[i]`` positions, so the same call serves training (the lengths are equal), prefill after
a cached prefix, and decoding (one query). No query sees another sequence: packed documents are isolated.

Sources: Vaswani et al. 2017 (attention), Ainslie et al. 2023 (GQA), Beltagy et al. 2020 (sliding window),
Gemma Team 2024 (soft-capping), Press et al. 2022 (ALiBi).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.ops import native_train
from tokenmill.ops.attention_backward import DocumentAttention
from tokenmill.ops.registry import Op


def _bias(q_len: int, kv_len: int, window: int | None, alibi_H: Tensor | None, like: Tensor) -> Tensor:
    """What is added to the scores: -inf where a key is in the future or has left the window, ALiBi's slope elsewhere.

    Returns [q_len, kv_len], or [H, q_len, kv_len] with ALiBi, in float32.
    """
    q_pos = torch.arange(kv_len - q_len, kv_len, device=like.device)
    distance = q_pos[:, None] - torch.arange(kv_len, device=like.device)[None, :]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    bias = torch.zeros(q_len, kv_len, dtype=torch.float32, device=like.device).masked_fill_(hidden, float("-inf"))
    if alibi_H is not None:
        bias = bias - alibi_H.float()[:, None, None] * distance
    return bias


@Op
def attention(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> Tensor:
    """Attend; returns [T, H, D] in q's dtype. Scores and softmax are computed in float32.

    ``window``: a query sees itself and the ``window - 1`` keys before it. ``softcap``: scores pass through
    ``softcap * tanh(score / softcap)`` before the mask. ``alibi_H``: one slope a head; times the distance it is
    subtracted.
    """
    groups = q_THD.shape[1] // k_SKD.shape[1]
    outputs = []
    for q_QHD, k_CKD, v_CKD in zip(
        q_THD.split(list(q_lens)), k_SKD.split(list(kv_lens)), v_SKD.split(list(kv_lens)), strict=True
    ):
        k_HCD = k_CKD.transpose(0, 1).repeat_interleave(groups, dim=0).float()
        v_HCD = v_CKD.transpose(0, 1).repeat_interleave(groups, dim=0).float()
        scores_HQC = q_QHD.transpose(0, 1).float() @ k_HCD.transpose(1, 2) * scale
        if softcap is not None:
            scores_HQC = softcap * torch.tanh(scores_HQC / softcap)
        scores_HQC = scores_HQC + _bias(q_QHD.shape[0], k_CKD.shape[0], window, alibi_H, q_THD)
        out_HQD = torch.softmax(scores_HQC, dim=-1) @ v_HCD
        outputs.append(out_HQD.transpose(0, 1).to(q_THD.dtype))
    return torch.cat(outputs) if len(outputs) != 1 else outputs[0]


def _documents_refuses(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> str | None:
    if not (torch.is_grad_enabled() and (q_THD.requires_grad or k_SKD.requires_grad or v_SKD.requires_grad)):
        return "no gradient is wanted"
    if q_THD.device.type != "cpu":
        return "only on the CPU is torch's own slower"
    if softcap is not None or alibi_H is not None:
        return "it has no soft-capping and no ALiBi"
    return None if list(q_lens) == list(kv_lens) else "there are keys from before"


@attention.backend("documents", _documents_refuses)
def _documents(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> Tensor:
    """The values of the backends below, with a backward pass of our own."""
    here = _native_refuses(q_THD, k_SKD, v_SKD, q_lens=q_lens, kv_lens=kv_lens, scale=scale, window=window) is None
    return DocumentAttention.apply(q_THD, k_SKD, v_SKD, q_lens, scale, window, _native if here else _sdpa)


def _native_refuses(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> str | None:
    if softcap is not None or alibi_H is not None:
        return "it has no soft-capping and no ALiBi"
    if list(q_lens) != list(kv_lens):
        return "there are keys from before"
    fits = q_THD.shape[-1] % 16 == 0 and native_train.native_for(q_THD, k_SKD, v_SKD)
    return None if fits else "the kernels are not here, or not for this dtype, device or head size"


@attention.backend("native", _native_refuses)
def _native(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> Tensor:
    """Whole documents in the compiled kernels."""
    found = native_train.native_for(q_THD)
    assert found is not None
    return native_train.attention(found, q_THD, k_SKD, v_SKD, q_lens, scale, window)


def _sdpa_refuses(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> str | None:
    return None if softcap is None else "torch's SDPA has no soft-capping"


@attention.backend("sdpa", _sdpa_refuses)
def _sdpa(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_H: Tensor | None = None,
) -> Tensor:
    """torch's fused attention, one call a sequence; a mask is built only where causality alone does not say it."""
    grouped = q_THD.shape[1] != k_SKD.shape[1]
    outputs = []
    for q_QHD, k_CKD, v_CKD in zip(
        q_THD.split(list(q_lens)), k_SKD.split(list(kv_lens)), v_SKD.split(list(kv_lens)), strict=True
    ):
        q_len, kv_len = q_QHD.shape[0], k_CKD.shape[0]
        if window is not None and q_len == 1 and kv_len > window:  # a single query: the window is a slice, not a mask
            k_CKD, v_CKD, kv_len = k_CKD[-window:], v_CKD[-window:], window
        windowed = window is not None and window < kv_len
        mask = None
        if alibi_H is not None or windowed or 1 < q_len < kv_len:
            mask = _bias(q_len, kv_len, window if windowed else None, alibi_H, q_THD).to(q_THD.dtype)
            mask = mask[None] if mask.ndim == 3 else mask  # [1, H, Q, C]: broadcast like the batch of one
        out_1HQD = F.scaled_dot_product_attention(
            q_QHD.transpose(0, 1)[None],
            k_CKD.transpose(0, 1)[None],
            v_CKD.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None and q_len > 1,
            scale=scale,
            enable_gqa=grouped,
        )
        outputs.append(out_1HQD[0].transpose(0, 1))
    return torch.cat(outputs) if len(outputs) != 1 else outputs[0]
