"""How far a student's next-token distributions are from a teacher's, straight from hidden states, chunk by chunk.

As in :mod:`~tokenmill.ops.cross_entropy` the scores over the vocabulary, here two for every token, are never held all
at once: a few hundred rows are scored by student and teacher, their divergence, their cross-entropy and the gradients
by the student's scores taken at once in float32, and the scores forgotten. The student's product serves both losses.

With p the teacher's distribution, q the student's, both at temperature τ, and D(q) a divergence whose derivative by
q_j is g_j, the derivative by a score is q_v (g_v - Σ q_j g_j) / τ. Where only the teacher's k likeliest tokens are
known, D is taken over these and one category for all others together (the tail), whose members share one g. A
divergence is multiplied by τ², which keeps its gradients beside those of the cross-entropy (Hinton 2015).

Axes: T tokens · N tokens that have a label · R rows of a chunk · C hidden size · V vocabulary · W its part that the
teacher knows too (tables padded to different sizes) · K tokens of a teacher's list · J K and the tail.
Sources: Hinton et al. 2015 (1503.02531); Agarwal et al. 2024 (GKD, 2306.13649: the generalised JSD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tokenmill.ops import cross_entropy as shared
from tokenmill.ops.cross_entropy import IGNORED, finish_logits, wide
from tokenmill.ops.linear import linear, multiply
from tokenmill.ops.registry import Op

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
LEAST_TAIL = -1e-6
"""The log of the largest mass that a list of likeliest tokens is believed to have: float32 knows no tail below it."""


class Taught(NamedTuple):
    """What a teacher says of some rows."""

    values: Tensor
    """Its scores [R, W] as its head gives them; or, with ``ids``, log-probabilities [R, K] at the temperature."""
    ids: Tensor | None = None
    """The tokens [R, K] that it names, int64; each once."""
    width: int | None = None
    """With ``ids``: how many tokens its distribution is over; None is as many as the student has rows."""

    def known(self, vocabulary: int) -> int:
        """How many of so many scores of a student stand for tokens that the teacher knows: W."""
        return self.values.shape[-1] if self.ids is None else self.width or vocabulary


Teacher = Callable[[Tensor], Taught]
"""Given row numbers [R] of the batch, what the teacher says there. Without a gradient."""


@dataclass(frozen=True)
class Divergence:
    """Which distance, and how it is mixed with the data's own cross-entropy."""

    kind: Kind = "forward_kl"
    """KL(teacher, student) covers all that the teacher may say, KL(student, teacher) its likeliest; jsd is between."""
    temperature: float = 1.0
    weight: float = 1.0
    """Of the divergence; cross-entropy has the rest of 1."""
    beta: float = 0.5
    """jsd: the teacher's share of the mixture; near 0 it goes as the forward, near 1 as the reverse divergence."""


class Distilled(NamedTuple):
    """``loss``: the sum over labelled tokens, with a gradient. The rest is detached: each token's own."""

    loss: Tensor
    nll_T: Tensor
    """Negative log-likelihood of the label; 0 without one."""
    divergence_T: Tensor
    """Without the factor τ²."""


# --- one divergence over categories


def _terms(logp_RJ: Tensor, logq_RJ: Tensor, how: Divergence) -> tuple[Tensor, Tensor]:
    """The divergence [R], and q_j g_j of the module's text [R, J], which stays finite where q_j is 0."""
    if how.kind == "forward_kl":
        p_RJ = logp_RJ.exp()
        return _expected(p_RJ, logp_RJ - logq_RJ), -p_RJ
    q_RJ = logq_RJ.exp()
    if how.kind == "reverse_kl":
        terms_RJ = _weighted(q_RJ, logq_RJ - logp_RJ)
        return terms_RJ.sum(-1), terms_RJ
    beta = how.beta
    mixed_RJ = torch.logaddexp(logp_RJ + math.log(beta), logq_RJ + math.log1p(-beta))
    terms_RJ = _weighted(q_RJ, (1 - beta) * (logq_RJ - mixed_RJ))
    return beta * _expected(logp_RJ.exp(), logp_RJ - mixed_RJ) + terms_RJ.sum(-1), terms_RJ


def _weighted(weights_RJ: Tensor, values_RJ: Tensor) -> Tensor:
    # what has no weight counts nothing, whatever its value
    return (weights_RJ * values_RJ).where(weights_RJ > 0, 0.0)


def _expected(weights_RJ: Tensor, values_RJ: Tensor) -> Tensor:
    return _weighted(weights_RJ, values_RJ).sum(-1)


def _log_tail(logs_RK: Tensor) -> Tensor:
    """The log of what a list leaves to all other tokens, [R, 1]."""
    inside_R1 = torch.logsumexp(logs_RK, -1, keepdim=True).clamp(max=LEAST_TAIL)
    return torch.log(-torch.expm1(inside_R1))


def _categories(logq_RW: Tensor, taught: Taught, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher's and student's log-probabilities over what the teacher knows apart: every token, or its list and the
    rest."""
    if taught.ids is None:
        return torch.log_softmax(taught.values.to(logq_RW.dtype) / temperature, -1), logq_RW
    logp_RK, logq_RK = taught.values.to(logq_RW.dtype), logq_RW.gather(-1, taught.ids)
    return torch.cat((logp_RK, _log_tail(logp_RK)), -1), torch.cat((logq_RK, _log_tail(logq_RK)), -1)


def divergence(scores_RV: Tensor, taught: Taught, how: Divergence) -> Tensor:
    """The plain divergence of every row [R] from finished scores, by autograd; without the factor τ²."""
    logq_RW = torch.log_softmax(scores_RV[:, : taught.known(scores_RV.shape[-1])] / how.temperature, -1)
    return _terms(*_categories(logq_RW, taught, how.temperature), how)[0]


# --- the losses


def _mixed(scores_RV: Tensor, labels_R: Tensor, taught: Taught, how: Divergence) -> tuple[Tensor, ...]:
    """Loss, likelihoods and divergences of rows that all have a label."""
    nll_R = -torch.log_softmax(scores_RV, -1).gather(-1, labels_R[:, None])[:, 0]
    divergence_R = divergence(scores_RV, taught, how)
    loss = ((1 - how.weight) * nll_R + how.weight * how.temperature**2 * divergence_R).sum()
    return loss, nll_R.detach(), divergence_R.detach()


def _spread(values_N: Tensor, rows_N: Tensor, count: int) -> Tensor:
    return values_N.new_zeros(count).index_copy_(0, rows_N, values_N)


@Op
def linear_distillation(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    teacher: Teacher,
    how: Divergence,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Distilled:
    """Distance of ``finish_logits(hidden W^T + b, scale, softcap)`` to the teacher, on tokens that have a label
    (:data:`~tokenmill.ops.cross_entropy.IGNORED`: none)."""
    rows_N = (labels_T != IGNORED).nonzero()[:, 0]
    raw_NV = linear(hidden_TC[rows_N], weight_VC, bias_V)
    finished_NV = finish_logits(raw_NV.to(wide(raw_NV.dtype)), scale, softcap)
    loss, nll_N, divergence_N = _mixed(finished_NV, labels_T[rows_N], teacher(rows_N), how)
    return Distilled(loss, _spread(nll_N, rows_N, len(labels_T)), _spread(divergence_N, rows_N, len(labels_T)))


@linear_distillation.backend("chunked")
def _chunked(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    teacher: Teacher,
    how: Divergence,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Distilled:
    rows_N = (labels_T != IGNORED).nonzero()[:, 0]
    given = (hidden_TC[rows_N], weight_VC, bias_V, labels_T[rows_N], rows_N, teacher, how, scale, softcap)
    loss, nll_N, divergence_N = _Chunked.apply(*given)
    return Distilled(loss, _spread(nll_N, rows_N, len(labels_T)), _spread(divergence_N, rows_N, len(labels_T)))


class _Chunked(torch.autograd.Function):
    """The gradients are taken in the forward pass, while a chunk's scores are at hand; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        rows_N: Tensor,
        teacher: Teacher,
        how: Divergence,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll_N = hidden_NC.new_empty(len(hidden_NC), dtype=wide(hidden_NC.dtype))
        divergence_N = torch.empty_like(nll_N)
        gradients = shared.HeadGradients(hidden_NC, weight_VC, bias_V, ctx.needs_input_grad)
        most = max(1, shared.CHUNK_VALUES // len(weight_VC))
        buffer_RV = hidden_NC.new_empty(min(most, len(hidden_NC)), len(weight_VC))
        for rows in shared.chunks(len(hidden_NC), most):
            hidden_RC = hidden_NC[rows]
            scores_RV = multiply(hidden_RC, weight_VC.t(), out=buffer_RV[: len(hidden_RC)])
            if bias_V is not None:
                scores_RV += bias_V
            taught, out = teacher(rows_N[rows]), (nll_N[rows], divergence_N[rows])
            _rows(scores_RV, labels_N[rows], taught, how, scale, softcap, *out, gradients.wanted)
            if gradients.wanted:
                gradients.add(rows, scores_RV)
        ctx.found = gradients.found()
        ctx.mark_non_differentiable(nll_N, divergence_N)
        loss = (1 - how.weight) * nll_N.sum() + how.weight * how.temperature**2 * divergence_N.sum()
        return loss, nll_N, divergence_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return *(None if d is None else d * d_loss.to(d.dtype) for d in ctx.found), *(None,) * 6


def _rows(
    scores_RV: Tensor,
    labels_R: Tensor,
    taught: Taught,
    how: Divergence,
    scale: float,
    softcap: float | None,
    nll_R: Tensor,
    divergence_R: Tensor,
    gradient: bool,
) -> None:
    """Fill ``nll_R`` and ``divergence_R``; with ``gradient``, put the loss's derivative by each raw score in place of
    it. A CPU takes as many rows together as stay in its cache."""
    rows, vocabulary = scores_RV.shape
    together = max(1, shared.CACHE_VALUES // vocabulary) if scores_RV.device.type == "cpu" else rows
    for begin in range(0, rows, together):
        here = slice(begin, begin + together)
        finished_RV = finish_logits(scores_RV[here].to(nll_R.dtype), scale, softcap)
        said = Taught(taught.values[here], None if taught.ids is None else taught.ids[here], taught.width)
        logq_RV = torch.log_softmax(finished_RV, -1)
        labels_R1 = labels_R[here, None]
        nll_R[here] = -logq_RV.gather(-1, labels_R1)[:, 0]
        width = said.known(vocabulary)
        as_is = how.temperature == 1.0 and width == vocabulary
        logq_RW = logq_RV if as_is else torch.log_softmax(finished_RV[:, :width] / how.temperature, -1)
        divergence_R[here], d_RW = _slopes(logq_RW, said, how)
        if not gradient:
            continue
        d_RV = logq_RV.exp_().scatter_add_(-1, labels_R1, -torch.ones_like(labels_R1, dtype=nll_R.dtype))
        d_RV *= 1 - how.weight
        d_RV[:, :width] += d_RW.mul_(how.weight * how.temperature)  # τ² of the loss, 1/τ of the slope
        slope = shared.slope(finished_RV, scale, softcap)
        scores_RV[here] = d_RV if isinstance(slope, float) and slope == 1.0 else d_RV.mul_(slope)


def _slopes(logq_RW: Tensor, taught: Taught, how: Divergence) -> tuple[Tensor, Tensor]:
    """The divergence of every row, and τ times its derivative by every score of the student."""
    logp_RJ, logq_RJ = _categories(logq_RW, taught, how.temperature)
    loss_R, terms_RJ = _terms(logp_RJ, logq_RJ, how)
    sum_R1 = terms_RJ.sum(-1, keepdim=True)
    if taught.ids is None:
        return loss_R, terms_RJ - logq_RW.exp().mul_(sum_R1)
    listed_RK = terms_RJ[:, :-1] - logq_RJ[:, :-1].exp() * sum_R1
    of_tail_R1 = terms_RJ[:, -1:] / logq_RJ[:, -1:].exp() - sum_R1
    return loss_R, logq_RW.exp().mul_(of_tail_R1).scatter_(-1, taught.ids, listed_RK)


def chunked_distillation(
    logits_of: Callable[[Tensor], Tensor],
    hidden_TC: Tensor,
    labels_T: Tensor,
    teacher: Teacher,
    how: Divergence,
    *,
    rows: int,
) -> Distilled:
    """The same for a head that is more than one matrix (adapted, quantised); ``logits_of`` runs twice on each chunk."""
    rows_N = (labels_T != IGNORED).nonzero()[:, 0]
    hidden_NC, labels_N = hidden_TC[rows_N], labels_T[rows_N]

    def part(hidden_RC: Tensor, labels_R: Tensor, numbers_R: Tensor) -> tuple[Tensor, ...]:
        logits_RV = logits_of(hidden_RC)
        return _mixed(logits_RV.to(wide(logits_RV.dtype)), labels_R, teacher(numbers_R), how)

    parts = [
        checkpoint(part, hidden_NC[here], labels_N[here], rows_N[here], use_reentrant=False)
        for here in shared.chunks(len(labels_N), rows)
    ] or [part(hidden_NC, labels_N, rows_N)]
    loss = torch.stack([found[0] for found in parts]).sum()
    nll_N, divergence_N = (torch.cat([found[i] for found in parts]) for i in (1, 2))
    return Distilled(loss, _spread(nll_N, rows_N, len(labels_T)), _spread(divergence_N, rows_N, len(labels_T)))
