"""Log-probability of every labelled token, each with a gradient of its own, without holding the scores.

:func:`~tokenmill.ops.cross_entropy.linear_cross_entropy` knows in its forward pass that every token weighs the same.
Preference and policy losses weigh a token by what the whole answer, or the other answer, came to, which is known only
afterwards. A token's log-probability depends on its own hidden state alone, so the derivative by that state is taken
while the scores are at hand and scaled in the backward pass; only the gradient of the head's weights, where they are
trained, needs the scores a second time.

Axes: T tokens · N tokens that have a label · R rows of a chunk · C hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tokenmill.ops import cross_entropy as shared
from tokenmill.ops.cross_entropy import IGNORED, finish_logits
from tokenmill.ops.linear import linear, multiply
from tokenmill.ops.registry import Op


def token_logprobs(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """The plain way, from all the scores: [T] in float32 (float64 for float64), 0 where there is no label."""
    logits_TV = logits_TV.to(shared.wide(logits_TV.dtype))
    counted_T = labels_T != IGNORED
    picked_T = logits_TV.gather(-1, labels_T.where(counted_T, 0)[:, None])[:, 0]
    # where(), not a product with 0: a row without a label may hold anything, also inf
    return (picked_T - torch.logsumexp(logits_TV, -1)).where(counted_T, 0.0)


@Op
def linear_token_logprobs(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Log-probabilities [T] of the labels under ``finish_logits(hidden W^T + b, scale, softcap)``; 0 without label."""
    raw_TV = linear(hidden_TC, weight_VC, bias_V)
    return token_logprobs(finish_logits(raw_TV.to(shared.wide(raw_TV.dtype)), scale, softcap), labels_T)


@linear_token_logprobs.backend("chunked")
def _chunked(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    rows_N = (labels_T != IGNORED).nonzero()[:, 0]
    logprobs_N: Tensor = _Chunked.apply(hidden_TC[rows_N], weight_VC, bias_V, labels_T[rows_N], scale, softcap)
    return logprobs_N.new_zeros(len(labels_T)).index_copy(0, rows_N, logprobs_N)


class _Chunked(torch.autograd.Function):
    """The derivative by each hidden state is taken in the forward pass; that by the weights, if wanted, later."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        needs_hidden = ctx.needs_input_grad[0]
        d_hidden_NC = torch.empty_like(hidden_NC) if needs_hidden else None
        nll_N = hidden_NC.new_empty(len(hidden_NC), dtype=shared.wide(hidden_NC.dtype))
        given = (hidden_NC, weight_VC, bias_V, labels_N, nll_N, torch.empty_like(nll_N))
        for rows, scores_RV in shared.scored_chunks(*given, scale, softcap, 0.0, needs_hidden):
            if d_hidden_NC is not None:
                multiply(scores_RV, weight_VC, out=d_hidden_NC[rows])
        ctx.how, ctx.d_hidden_NC = (scale, softcap), d_hidden_NC
        ctx.save_for_backward(hidden_NC, weight_VC, bias_V, labels_N)
        return -nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        hidden_NC, weight_VC, bias_V, labels_N = ctx.saved_tensors
        d_nll_N1 = -gradients[0][:, None]
        d_hidden_NC = None
        if ctx.d_hidden_NC is not None:
            d_hidden_NC = (ctx.d_hidden_NC * d_nll_N1).to(hidden_NC.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        d_weight_VC = torch.zeros_like(weight_VC, dtype=d_nll_N1.dtype) if needs_weight else None
        d_bias_V = torch.zeros(len(weight_VC), dtype=d_nll_N1.dtype, device=weight_VC.device) if needs_bias else None
        if needs_weight or needs_bias:
            unused = torch.empty_like(gradients[0]), torch.empty_like(gradients[0])
            given = (hidden_NC, weight_VC, bias_V, labels_N, *unused)
            scale, softcap = ctx.how
            for rows, scores_RV in shared.scored_chunks(*given, scale, softcap, 0.0, True):
                scores_RV.mul_(d_nll_N1[rows])
                if d_weight_VC is not None:
                    d_weight_VC += multiply(scores_RV.t(), hidden_NC[rows])
                if d_bias_V is not None:
                    d_bias_V += scores_RV.sum(0, dtype=d_bias_V.dtype)
        d_weight = None if d_weight_VC is None else d_weight_VC.to(weight_VC.dtype)
        d_bias = None if d_bias_V is None or bias_V is None else d_bias_V.to(bias_V.dtype)
        return d_hidden_NC, d_weight, d_bias, None, None, None


def chunked_token_logprobs(
    logits_of: Callable[[Tensor], Tensor], hidden_TC: Tensor, labels_T: Tensor, *, rows: int
) -> Tensor:
    """The same for a head that is more than one matrix (adapted, quantised); ``logits_of`` runs twice on each chunk."""
    kept_N = (labels_T != IGNORED).nonzero()[:, 0]
    hidden_NC, labels_N = hidden_TC[kept_N], labels_T[kept_N]

    def part(hidden_RC: Tensor, labels_R: Tensor) -> Tensor:
        return token_logprobs(logits_of(hidden_RC), labels_R)

    parts = [
        checkpoint(part, hidden_NC[here], labels_N[here], use_reentrant=False)
        for here in shared.chunks(len(labels_N), rows)
    ]
    logprobs_N = torch.cat(parts) if parts else part(hidden_NC, labels_N)
    return logprobs_N.new_zeros(len(labels_T)).index_copy(0, kept_N, logprobs_N)
