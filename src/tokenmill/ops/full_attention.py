"""Attention that may look both ways, with a learned bias by distance: encoders, and T5's decoder and cross-attention.

Sequences are packed as in ``ops/attention.py`` and axes are its axes; H heads each with their own keys. R distances
from ``-(R // 2)`` to ``R // 2`` (key position minus query position).

Sources: Devlin et al. 2019 (BERT), Raffel et al. 2020 (T5's relative bias).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.ops.registry import Op


def _added(q_len: int, kv_len: int, bias_HR: Tensor | None, causal: bool, like: Tensor) -> Tensor | None:
    """What is added to the scores, [H or 1, q_len, kv_len] in ``like``'s dtype; None for nothing."""
    if bias_HR is None and not causal:
        return None
    positions = torch.arange(max(q_len, kv_len), device=like.device)
    distance_QC = positions[None, :kv_len] - positions[:q_len, None]
    if bias_HR is None:
        added_HQC = torch.zeros(1, q_len, kv_len, dtype=like.dtype, device=like.device)
    else:
        added_HQC = bias_HR.to(like.dtype)[:, distance_QC + bias_HR.shape[1] // 2]
    return added_HQC.masked_fill(distance_QC > 0, float("-inf")) if causal else added_HQC


@Op
def full_attention(
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    bias_HR: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Sequence i's queries see all of its keys (with ``causal`` those up to their own position); [T, H, D].

    ``bias_HR`` is added to the scores by distance. Scores and softmax are computed in float32.
    """
    outputs = []
    parts = zip(q_THD.split(list(q_lens)), k_SHD.split(list(kv_lens)), v_SHD.split(list(kv_lens)), strict=True)
    for q_QHD, k_CHD, v_CHD in parts:
        scores_HQC = q_QHD.transpose(0, 1).float() @ k_CHD.permute(1, 2, 0).float() * scale
        added = _added(q_QHD.shape[0], k_CHD.shape[0], bias_HR, causal, scores_HQC)
        weights_HQC = torch.softmax(scores_HQC if added is None else scores_HQC + added, dim=-1)
        outputs.append((weights_HQC @ v_CHD.transpose(0, 1).float()).transpose(0, 1).to(q_THD.dtype))
    return torch.cat(outputs)


@full_attention.backend("sdpa")
def _sdpa(
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    *,
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
    bias_HR: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """torch's fused attention, one call a sequence."""
    outputs = []
    parts = zip(q_THD.split(list(q_lens)), k_SHD.split(list(kv_lens)), v_SHD.split(list(kv_lens)), strict=True)
    for q_QHD, k_CHD, v_CHD in parts:
        added = _added(q_QHD.shape[0], k_CHD.shape[0], bias_HR, causal, q_QHD)
        q, k, v = (x.transpose(0, 1)[None] for x in (q_QHD, k_CHD, v_CHD))
        out_1HQD = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if added is None else added[None], scale=scale
        )
        outputs.append(out_1HQD[0].transpose(0, 1))
    return torch.cat(outputs)
