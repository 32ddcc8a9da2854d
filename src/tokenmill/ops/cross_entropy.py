"""Cross-entropy straight from hidden states: the scores over the vocabulary are never held all at once.

2,048 tokens times 49,152 words are 400 MB in float32, and autograd keeps several copies; here a few hundred rows are
scored at a time, their loss and their gradients taken at once, and the scores forgotten (as in Liger's and Apple's
fused losses). Rows without a label are dropped before the product. The arithmetic between the product and the gradient
is in float32 (float64 for float64 inputs).

Axes: T tokens · N tokens that have a label · R rows of a chunk · C hidden size · V vocabulary.
Sources: Gemma Team 2024 (soft-capping), Chowdhery et al. 2022, PaLM (z-loss), Hsu et al. 2024, Liger (chunked loss).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tokenmill.ops import native_train
from tokenmill.ops.activation import soft_cap
from tokenmill.ops.linear import linear, multiply
from tokenmill.ops.registry import Op

IGNORED = -100
"""The label of a token without a loss, as torch and Hugging Face have it."""
CHUNK_VALUES = 1 << 24
"""Scores that autograd or several copies hold at once: 64 MiB in float32."""
SCORED_BYTES = 1 << 28
"""Scores held at once where there is one copy: each chunk more reads the head, and a second one adds up its gradient in
float32 (SmolLM2-135M, 2,048 tokens: one chunk of 200 MB needs no more memory than two and that sum)."""
CACHE_VALUES = 1 << 19
"""Scores that a CPU takes through the softmax together, so that its passes over them stay in the cache."""


class CrossEntropy(NamedTuple):
    """``loss``: the sum over labelled tokens, z-loss included, with a gradient. The rest is for reports, detached:
    ``nll_T`` each token's own negative log-likelihood (0 where there is no label), ``z_loss`` its sum."""

    loss: Tensor
    nll_T: Tensor
    z_loss: Tensor


def finish_logits(raw_TV: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """What follows the product with the head: ``softcap * tanh(scale * raw / softcap)``, each part where it is set."""
    if scale != 1.0:
        raw_TV = raw_TV * scale
    return raw_TV if softcap is None else soft_cap(raw_TV, softcap)


def slope(finished: Tensor, scale: float, softcap: float | None) -> Tensor | float:
    """The derivative of :func:`finish_logits`, from what it returned."""
    return scale if softcap is None else scale * (1.0 - (finished / softcap).square_())


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a loss is computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cross_entropy(logits_TV: Tensor, labels_T: Tensor, z_loss: float = 0.0) -> CrossEntropy:
    """The plain loss, from all the scores."""
    logits_TV = logits_TV.to(wide(logits_TV.dtype))
    counted_T = labels_T != IGNORED
    lse_T = torch.logsumexp(logits_TV, -1)
    picked_T = logits_TV.gather(-1, labels_T.where(counted_T, 0)[:, None])[:, 0]
    # where(), not a product with 0: a row without a label may hold anything, also inf
    nll_T = (lse_T - picked_T).where(counted_T, 0.0)
    penalty = z_loss * lse_T.square().where(counted_T, 0.0).sum()
    return CrossEntropy(nll_T.sum() + penalty, nll_T.detach(), penalty.detach())


@Op
def linear_cross_entropy(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Loss of ``finish_logits(hidden W^T + b, scale, softcap)`` against the labels (:data:`IGNORED`: none).

    ``z_loss`` times the square of the log of the softmax's denominator is added for every labelled token.
    """
    raw_TV = linear(hidden_TC, weight_VC, bias_V)
    return cross_entropy(finish_logits(raw_TV.to(wide(raw_TV.dtype)), scale, softcap), labels_T, z_loss)


@linear_cross_entropy.backend("chunked")
def _chunked(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> CrossEntropy:
    rows_N = (labels_T != IGNORED).nonzero()[:, 0]
    everything = len(rows_N) == len(labels_T)
    hidden_NC, labels_N = (hidden_TC, labels_T) if everything else (hidden_TC[rows_N], labels_T[rows_N])
    loss, nll_N, penalty = _Chunked.apply(hidden_NC, weight_VC, bias_V, labels_N, scale, softcap, z_loss)
    nll_T = nll_N if everything else nll_N.new_zeros(len(labels_T)).index_copy_(0, rows_N, nll_N)
    return CrossEntropy(loss, nll_T, penalty)


class _Chunked(torch.autograd.Function):
    """The gradients are taken in the forward pass, while a chunk's scores are at hand; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        scale: float,
        softcap: float | None,
        z_loss: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll_N = hidden_NC.new_empty(len(hidden_NC), dtype=wide(hidden_NC.dtype))
        lse_N = torch.empty_like(nll_N)
        gradients = HeadGradients(hidden_NC, weight_VC, bias_V, ctx.needs_input_grad)
        how = (scale, softcap, z_loss, gradients.wanted)
        for rows, scores_RV in scored_chunks(hidden_NC, weight_VC, bias_V, labels_N, nll_N, lse_N, *how):
            gradients.add(rows, scores_RV)
        penalty = z_loss * lse_N.square().sum()
        ctx.found = gradients.found()
        ctx.mark_non_differentiable(nll_N, penalty)
        return nll_N.sum() + penalty, nll_N, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *(None if d is None else d * d_loss.to(d.dtype) for d in ctx.found), None, None, None, None


class HeadGradients:
    """Derivatives by hidden states, head and bias, added up chunk by chunk from those by the scores.

    ``needed``: autograd's ``needs_input_grad`` of a function whose first three inputs they are.
    """

    def __init__(self, hidden_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, needed: tuple[bool, ...]) -> None:
        self._hidden_NC, self._weight_VC, self._bias_V = hidden_NC, weight_VC, bias_V
        self.wanted = any(needed[:3])
        self._by_head = needed[1]
        self.d_hidden_NC = torch.empty_like(hidden_NC) if needed[0] else None
        self.d_weight_VC: Tensor | None = None
        wider = wide(hidden_NC.dtype)
        self.d_bias_V = torch.zeros(len(weight_VC), dtype=wider, device=weight_VC.device) if needed[2] else None
        self._product_VC: Tensor | None = None

    def add(self, rows: slice, scores_RV: Tensor) -> None:
        """Take in the derivative by the scores of these rows."""
        hidden_RC = self._hidden_NC[rows]
        if self.d_hidden_NC is not None:
            multiply(scores_RV, self._weight_VC, out=self.d_hidden_NC[rows])
        if self._by_head:
            self._add_by_head(scores_RV, hidden_RC)
        if self.d_bias_V is not None:
            self.d_bias_V += scores_RV.sum(0, dtype=self.d_bias_V.dtype)

    def _add_by_head(self, scores_RV: Tensor, hidden_RC: Tensor) -> None:
        if self.d_weight_VC is None:  # often there is but one chunk: nothing wider to add in, no copies
            self.d_weight_VC = multiply(scores_RV.t(), hidden_RC)
            return
        if scores_RV.dtype == wide(scores_RV.dtype):
            self.d_weight_VC.addmm_(scores_RV.t(), hidden_RC)
            return
        if self._product_VC is None:
            self._product_VC, self.d_weight_VC = self.d_weight_VC, self.d_weight_VC.to(wide(scores_RV.dtype))
        self.d_weight_VC += multiply(scores_RV.t(), hidden_RC, out=self._product_VC)

    def found(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three derivatives, in the dtypes of what they are by."""
        d_weight_VC, d_bias_V = self.d_weight_VC, self.d_bias_V
        if self._by_head and d_weight_VC is None:
            d_weight_VC = torch.zeros_like(self._weight_VC)
        elif self._product_VC is not None and d_weight_VC is not None:
            d_weight_VC = self._product_VC.copy_(d_weight_VC)
        if d_bias_V is not None and self._bias_V is not None:
            d_bias_V = d_bias_V.to(self._bias_V.dtype)
        return self.d_hidden_NC, d_weight_VC, d_bias_V


def chunks(rows: int, most: int) -> Iterator[slice]:
    """Slices of nearly equal size: a short last one would cost a pass over the weights for a few rows."""
    count = -(-rows // max(1, most))
    for i in range(count):
        yield slice(rows * i // count, rows * (i + 1) // count)


def scored_chunks(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    nll_N: Tensor,
    lse_N: Tensor,
    scale: float,
    softcap: float | None,
    z_loss: float,
    gradient: bool,
) -> Iterator[tuple[slice, Tensor]]:
    """Fill ``nll_N`` and ``lse_N`` chunk by chunk; yields a chunk's rows and, with ``gradient``, the loss's derivative
    by its scores, valid until the next chunk."""
    # One buffer for all chunks: a fresh one of this size costs as much in page faults as the product takes
    most = max(1, SCORED_BYTES // (weight_VC.element_size() * len(weight_VC)))
    buffer_RV = hidden_NC.new_empty(min(most, len(hidden_NC)), len(weight_VC))
    for rows in chunks(len(hidden_NC), most):
        hidden_RC = hidden_NC[rows]
        scores_RV = multiply(hidden_RC, weight_VC.t(), out=buffer_RV[: len(hidden_RC)])
        if bias_V is not None:
            scores_RV += bias_V
        softmax_rows(scores_RV, labels_N[rows], nll_N[rows], lse_N[rows], scale, softcap, z_loss, gradient)
        yield rows, scores_RV


def softmax_rows(
    scores_RV: Tensor,
    labels_R: Tensor,
    nll_R: Tensor,
    lse_R: Tensor,
    scale: float,
    softcap: float | None,
    z_loss: float,
    gradient: bool,
) -> None:
    """Fill ``nll_R`` and ``lse_R``; with ``gradient``, put the loss's derivative by each score in place of it."""
    found = native_train.native_for(scores_RV) if softcap is None and scores_RV.dtype != torch.float64 else None
    if found is not None:
        native_train.softmax_loss(found, scores_RV, labels_R, nll_R, lse_R, scale, z_loss, gradient)
        return
    rows, vocabulary = scores_RV.shape
    together = max(1, CACHE_VALUES // vocabulary) if scores_RV.device.type == "cpu" else rows
    for begin in range(0, rows, together):
        here = slice(begin, begin + together)
        labels_R1 = labels_R[here, None]
        finished = finish_logits(scores_RV[here].to(nll_R.dtype), scale, softcap)
        by_raw = slope(finished, scale, softcap) if gradient else 1.0
        top_R1 = finished.amax(-1, keepdim=True)
        picked_R1 = finished.gather(-1, labels_R1)
        # no longer needed as they are: a copy would fall out of the cache
        powers = finished.sub_(top_R1).exp_()
        sums_R1 = powers.sum(-1, keepdim=True)
        lse_R1 = sums_R1.log() + top_R1
        nll_R[here], lse_R[here] = (lse_R1 - picked_R1)[:, 0], lse_R1[:, 0]
        if gradient:
            weight_R1 = 1.0 + 2.0 * z_loss * lse_R1
            d = powers.mul_(weight_R1 / sums_R1).scatter_add_(-1, labels_R1, -torch.ones_like(picked_R1))
            scores_RV[here] = d if isinstance(by_raw, float) and by_raw == 1.0 else d.mul_(by_raw)


def chunked_cross_entropy(
    logits_of: Callable[[Tensor], Tensor], hidden_TC: Tensor, labels_T: Tensor, *, rows: int, z_loss: float = 0.0
) -> CrossEntropy:
    """The same for a head that is more than one matrix (adapted, quantised, with layers of its own).

    ``logits_of`` is run on ``rows`` rows at a time and once more in the backward pass, which is what it costs.
    """
    kept_N = (labels_T != IGNORED).nonzero()[:, 0]
    hidden_NC, labels_N = hidden_TC[kept_N], labels_T[kept_N]

    def part(hidden_RC: Tensor, labels_R: Tensor) -> tuple[Tensor, ...]:
        return tuple(cross_entropy(logits_of(hidden_RC), labels_R, z_loss))

    parts = [
        CrossEntropy(*checkpoint(part, hidden_NC[here], labels_N[here], use_reentrant=False))
        for here in chunks(len(labels_N), rows)
    ]
    if not parts:
        return cross_entropy(logits_of(hidden_TC[:0]), labels_T[:0], z_loss)._replace(
            nll_T=torch.zeros(len(labels_T), dtype=wide(hidden_TC.dtype), device=hidden_TC.device)
        )
    nll_N = torch.cat([p.nll_T for p in parts])
    nll_T = nll_N.new_zeros(len(labels_T)).index_copy_(0, kept_N, nll_N)
    total = torch.stack([p.loss for p in parts]).sum()
    return CrossEntropy(total, nll_T, torch.stack([p.z_loss for p in parts]).sum())
