"""Scaling laws: loss by size and data, and the best split of a budget, as published.

Pure arithmetic, like ``plan/rates.py``.

Kaplan et al. 2020 (arXiv 2001.08361): sizes without embeddings, budgets in petaflop/s-days, its appendix A and tables 2
and 6. Hoffmann et al. 2022 (Chinchilla, arXiv 2203.15556): L = E + A / N^alpha + B / D^beta, its approach 3 in equation
10. Besiroglu et al. 2024 (arXiv 2404.10102) fitted the same data again and found the constants that agree with
Chinchilla's other two approaches; they are the default. Sardana et al. 2023 (arXiv 2401.00448): tokens that will be
served count too. Losses are nats a token of each paper's own data and vocabulary: compare runs, not papers.
"""

from __future__ import annotations

from math import exp, log

PETAFLOP_S_DAY = 8.64e19
"""Operations."""
KAPLAN_N, KAPLAN_D = 1.3e9, 2e10
"""Best parameters and tokens for one petaflop/s-day (table 6)."""
KAPLAN_NC, KAPLAN_DC, KAPLAN_ALPHA_N, KAPLAN_ALPHA_D = 6.4e13, 1.8e13, 0.076, 0.103
"""Of L(N, D) (table 2)."""
TOKENS_PER_PARAMETER = 20.0
"""Chinchilla's approaches 1 and 2, rounded as everybody does."""


def kaplan_parameters(flops: float) -> float:
    """Best size, without embeddings, for a budget."""
    return KAPLAN_N * (flops / PETAFLOP_S_DAY) ** 0.73


def kaplan_tokens(flops: float) -> float:
    """Tokens that the best size is trained on: much fewer than Chinchilla's, as Kaplan stops far from convergence."""
    return KAPLAN_D * (flops / PETAFLOP_S_DAY) ** 0.27


def kaplan_loss(parameters: float, tokens: float) -> float:
    """Loss of ``parameters`` trained on ``tokens`` (equation 1.5)."""
    size = (KAPLAN_NC / parameters) ** (KAPLAN_ALPHA_N / KAPLAN_ALPHA_D)
    return (size + KAPLAN_DC / tokens) ** KAPLAN_ALPHA_D


def power_loss(parameters: float, tokens: float, e: float, a: float, b: float, alpha: float, beta: float) -> float:
    """L = e + a / parameters^alpha + b / tokens^beta."""
    return e + a / parameters**alpha + b / tokens**beta


def best_parameters(flops: float, a: float, b: float, alpha: float, beta: float) -> float:
    """The size that makes :func:`power_loss` least where 6 N D = ``flops`` (Chinchilla, equation 4)."""
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return ratio * (flops / 6) ** (beta / (alpha + beta))


def best_tokens(flops: float, a: float, b: float, alpha: float, beta: float) -> float:
    """The tokens that go with :func:`best_parameters`."""
    return flops / (6 * best_parameters(flops, a, b, alpha, beta))


def rule_parameters(flops: float) -> float:
    """The size that has 20 tokens a parameter within the budget."""
    return (flops / (6 * TOKENS_PER_PARAMETER)) ** 0.5


def tokens_for_loss(parameters: float, loss: float, e: float, a: float, b: float, alpha: float, beta: float) -> float:
    """Tokens after which ``parameters`` reach ``loss``; 1e30 where no number of tokens is enough."""
    rest = loss - e - a / parameters**alpha
    if rest <= 0:
        return 1e30
    return (b / rest) ** (1 / beta)


def life_flops(
    parameters: float, loss: float, served: float, e: float, a: float, b: float, alpha: float, beta: float
) -> float:
    """Operations of training ``parameters`` to ``loss`` and then serving ``served`` tokens: 6 N D + 2 N D_served."""
    tokens = tokens_for_loss(parameters, loss, e, a, b, alpha, beta)
    return 6 * parameters * tokens + 2 * parameters * served


def best_parameters_served(
    loss: float, served: float, start: float, e: float, a: float, b: float, alpha: float, beta: float
) -> float:
    """The size that reaches ``loss`` with the least :func:`life_flops`: golden-section search over the logarithm.

    ``start``: the best size for training alone; serving only makes smaller ones better. Nothing below the size at which
    the loss cannot be reached is asked.
    """
    least = (a / (loss - e)) ** (1 / alpha) * 1.0001
    low, high = log(least), log(start)
    for _ in range(80):
        left = high - 0.6180339887498949 * (high - low)
        right = low + 0.6180339887498949 * (high - low)
        if life_flops(exp(left), loss, served, e, a, b, alpha, beta) < life_flops(
            exp(right), loss, served, e, a, b, alpha, beta
        ):
            high = right
        else:
            low = left
    return exp((low + high) / 2)
