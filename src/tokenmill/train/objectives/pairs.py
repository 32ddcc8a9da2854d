"""Objectives over pairs of a chosen and a rejected answer: DPO and its variants, SimPO, ORPO.

They agree with TRL 1.16 (``tests/parity/test_preferences.py``): IPO takes means over tokens, as its authors confirmed
there; ORPO's likelihood covers the prompt too. Conservative label smoothing (Mitchell 2023), which TRL has dropped, is
checked against its formula. Metrics have TRL's names. Axes: P pairs · 2 chosen, rejected.

Sources: Rafailov 2023 (2305.18290), Azar 2023 (2310.12036), Zhao 2023 (SLiC, 2305.10425), Chowdhury 2024 (robust,
2403.00409), Meng 2024 (SimPO, 2405.14734), Hong 2024 (ORPO, 2403.07691).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokenmill.config.parts import PreferenceConfig
from tokenmill.train.objectives.base import Loss
from tokenmill.train.objectives.logprobs import NO_LABEL, batch_logprobs, document_sums

if TYPE_CHECKING:
    from tokenmill.data.batch import ComparedBatch


class Dpo:
    """Direct preference optimisation: the log-ratio of policy and reference is the reward that wins or loses."""

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config

    def __call__(self, model: Any, batch: ComparedBatch) -> Loss:
        config = self.config
        policy = _Policy(model, batch)
        ratios_P2 = policy.logps_P2 - batch.reference_P2
        losses_P = dpo_losses(ratios_P2, policy.counts_P2, config)
        rewards_P2 = config.beta * ratios_P2.detach()
        metrics = _metrics(rewards_P2, policy.logps_P2.detach())
        # the estimate k1 on the data's answers: how far the policy is from the reference where it was trained
        metrics["kl"] = float(ratios_P2.detach().mean(1).sum())
        return policy.loss(losses_P, metrics, config.sft_weight)


class SimPo:
    """Mean log-probability as the reward, a margin instead of a reference model."""

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config

    def __call__(self, model: Any, batch: ComparedBatch) -> Loss:
        config = self.config
        policy = _Policy(model, batch)
        rewards_P2 = config.beta * policy.means_P2
        losses_P = smoothed_sigmoid(rewards_P2[:, 0] - rewards_P2[:, 1] - config.gamma, config.label_smoothing)
        metrics = _metrics(rewards_P2.detach(), policy.means_P2.detach())
        return policy.loss(losses_P, metrics, config.sft_weight)


class Orpo:
    """Likelihood of the chosen answer, and the odds by which it beats the rejected one; no reference model."""

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config

    def __call__(self, model: Any, batch: ComparedBatch) -> Loss:
        beta = self.config.beta
        policy = _Policy(model, batch)
        chosen_P, rejected_P = policy.means_P2.unbind(1)
        log_odds_P = (chosen_P - rejected_P) - (log1mexp(chosen_P) - log1mexp(rejected_P))
        ratio_P = logsigmoid(log_odds_P)
        metrics = _metrics(beta * policy.means_P2.detach(), policy.means_P2.detach())
        metrics["log_odds_ratio"] = float(ratio_P.detach().sum())
        metrics["log_odds_chosen"] = float(log_odds_P.detach().sum())
        return policy.loss(-beta * ratio_P, metrics, 1.0)


class _Policy:
    """What the policy makes of a batch, in one forward pass."""

    def __init__(self, model: Any, batch: ComparedBatch) -> None:
        self.batch = batch
        answers_T = batch.labels_T != NO_LABEL
        logprobs_T = batch_logprobs(model, batch, batch.labels_T.where(answers_T, batch.nll_labels_T))
        self._nll = -logprobs_T.where(batch.nll_labels_T != NO_LABEL, 0.0).sum()
        logps_N = document_sums(logprobs_T.where(answers_T, 0.0), batch.lengths)
        self.logps_P2 = logps_N.view(-1, 2)
        self.counts_P2 = document_sums(answers_T, batch.lengths).view(-1, 2)
        """Tokens of each answer."""

    @property
    def means_P2(self) -> Tensor:
        """Log-probability a token."""
        return self.logps_P2 / self.counts_P2

    def loss(self, losses_P: Tensor, metrics: dict[str, float | tuple[float, float]], nll_weight: float) -> Loss:
        """The sum over pairs, and the likelihood of the chosen answers where it counts."""
        nll = None
        if nll_weight:
            nll = nll_weight * self._nll
            metrics = {**metrics, "nll_loss": (float(self._nll.detach()), float(self.batch.num_nll))}
        return Loss(losses_P.sum(), self.batch.num_labels, metrics, nll)


def dpo_losses(ratios_P2: Tensor, counts_P2: Tensor, config: PreferenceConfig) -> Tensor:
    """The loss of every pair, [P]. ``ratios_P2``: log of policy over reference; ``counts_P2``: tokens of answers."""
    beta, smoothing = config.beta, config.label_smoothing
    delta_P = ratios_P2[:, 0] - ratios_P2[:, 1]
    if config.loss == "hinge":
        return torch.relu(1 - beta * delta_P)
    if config.loss == "ipo":
        means_P2 = ratios_P2 / counts_P2
        return (means_P2[:, 0] - means_P2[:, 1] - 1 / (2 * beta)).square()
    if config.loss == "robust":
        right_P, flipped_P = -logsigmoid(beta * delta_P), -logsigmoid(-beta * delta_P)
        return ((1 - smoothing) * right_P - smoothing * flipped_P) / (1 - 2 * smoothing)
    return smoothed_sigmoid(beta * delta_P, smoothing)


def smoothed_sigmoid(margins_P: Tensor, smoothing: float) -> Tensor:
    """Negative log-likelihood that the chosen side wins by this margin, where a share of the labels is flipped."""
    if not smoothing:
        return -logsigmoid(margins_P)
    return -logsigmoid(margins_P) * (1 - smoothing) - logsigmoid(-margins_P) * smoothing


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x below 0, each half by the form that loses no digits there (Mächler 2012)."""
    x = x.clamp(max=-1e-7)  # a certain answer has infinite odds
    near_zero = x > -math.log(2)
    # where() computes both: each gets arguments that its gradient can bear
    return torch.where(
        near_zero, (-torch.expm1(x.where(near_zero, -1.0))).log(), torch.log1p(-x.where(~near_zero, -1.0).exp())
    )


def _metrics(rewards_P2: Tensor, logps_P2: Tensor) -> dict[str, float | tuple[float, float]]:
    """Sums over pairs, by TRL's names."""
    chosen_P, rejected_P = rewards_P2.unbind(1)
    return {
        "rewards/chosen": float(chosen_P.sum()),
        "rewards/rejected": float(rejected_P.sum()),
        "rewards/accuracies": float((chosen_P > rejected_P).sum()),
        "rewards/margins": float((chosen_P - rejected_P).sum()),
        "logps/chosen": float(logps_P2[:, 0].sum()),
        "logps/rejected": float(logps_P2[:, 1].sum()),
    }
