"""Policy gradients on completions that the policy wrote: GRPO and its variants, RLOO; one loss with named settings.

They agree with TRL 1.16 (``tests/parity/test_policy.py``). The pieces are functions of tokens, so that an objective
with a value head uses :func:`surrogate` with the advantages of its own (``RolloutBatch.advantages_T`` is per token).

Axes: T tokens of the batch · N tokens that have a label · S completions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenmill.config.policy import PolicyConfig, Preset, preset_of
from tokenmill.train.objectives.base import Loss, Metric, Most
from tokenmill.train.objectives.logprobs import NO_LABEL, batch_logprobs

if TYPE_CHECKING:
    from tokenmill.config.recipe import Recipe
    from tokenmill.data.rollout_batch import RolloutBatch

BOUND = 20.0
"""Log-ratios are bounded before they are exponentiated: beyond it a weight says only that something is wrong."""


class Policy:
    """The surrogate of a rollout's advantages, with the divergence from a reference where that is wanted.

    ``config`` has nothing open (``train.plan`` fills it in); ``correct`` is the importance correction in use.
    """

    def __init__(self, config: PolicyConfig, preset: Preset, *, kl_in_loss: bool, correct: str) -> None:
        self.config, self.preset, self.correct = config, preset, correct
        self.beta = (config.beta or 0.0) if kl_in_loss else 0.0

    def __call__(self, model: Any, batch: RolloutBatch) -> Loss:
        tokens = Tokens(batch)
        logps_N = tokens.pick(batch_logprobs(model, batch, temperature=self.config.temperature))
        old_N = logps_N.detach() if batch.old_T is None else tokens.pick(batch.old_T)
        ratios_N = self.ratios(tokens, logps_N - old_N)
        losses_N, clipped = self.surrogate(ratios_N, logps_N, tokens.pick(batch.advantages_T))
        metrics: dict[str, Metric] = {**mismatch(tokens, old_N, tokens.pick(batch.sampler_T))}
        if self.correct != "off":
            weights_N = correction(
                tokens, old_N, tokens.pick(batch.sampler_T), self.correct, self.config.correction_cap
            )
            losses_N = losses_N * weights_N
            metrics["sampling/importance_sampling_ratio/mean"] = tokens.mean(weights_N)
        if batch.reference_T is not None:
            # times the ratio: only so is its gradient that of the divergence (DeepSeek-V3.2, arXiv 2512.02556)
            kl_N = k3(logps_N, tokens.pick(batch.reference_T)) * ratios_N
            metrics["kl"] = tokens.mean(kl_N)
            if self.beta:
                losses_N = losses_N + self.beta * kl_N
        metrics["entropy"] = tokens.mean(-logps_N)
        for name, clipped_N in clipped.items():
            each = tokens.mean if self.preset.ratio == "token" else tokens.mean_of_sequences
            metrics[name] = each(clipped_N.float())
        return Loss(self._sum(tokens, losses_N), batch.num_labels, {**metrics, **batch.measured})

    def ratios(self, tokens: Tokens, log_ratios_N: Tensor) -> Tensor:
        """Of the policy to the one that wrote, of every token or of the completion that it is in."""
        if self.preset.ratio != "token":
            log_ratios_S = tokens.sums(log_ratios_N)
            if self.preset.ratio == "sequence_mean":
                log_ratios_S = log_ratios_S / tokens.counts_S.clamp(min=1)
            log_ratios_N = log_ratios_S[tokens.owner_N]
        return log_ratios_N.clamp(-BOUND, BOUND).exp()

    def surrogate(self, ratios_N: Tensor, logps_N: Tensor, advantages_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every token, and which tokens are clipped, by the metric's name."""
        low, high = self.config.clip_low or 0.0, self.config.clip_high or 0.0
        if not self.preset.weighted:
            return clipped_surrogate(ratios_N, advantages_N, low, high)
        weights_N = ratios_N.detach().clamp(max=high)
        over_N = (ratios_N > high) & (advantages_N > 0)
        return -weights_N * advantages_N * logps_N, {"cispo_clip_ratio": over_N}

    def _sum(self, tokens: Tokens, losses_N: Tensor) -> Tensor:
        if self.preset.mean == "tokens":
            return losses_N.sum()
        if self.preset.mean == "longest":
            return losses_N.sum() / self.config.completion_tokens
        return (tokens.sums(losses_N) / tokens.counts_S.clamp(min=1)).sum()


def policy_objective(recipe: Recipe) -> Policy:
    """The objective of a recipe without anything open. RLOO's divergence is part of the reward already."""
    preset = preset_of(recipe.objective, recipe.policy)
    in_loss = recipe.objective != "rloo"
    return Policy(recipe.policy, preset, kl_in_loss=in_loss, correct=recipe.policy.correction)


class Tokens:
    """The labelled tokens of a batch, and whose they are."""

    def __init__(self, batch: RolloutBatch) -> None:
        self.at_N = (batch.labels_T != NO_LABEL).nonzero()[:, 0]
        lengths = torch.tensor(batch.lengths, device=batch.labels_T.device)
        owner_T = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        self.owner_N = owner_T[self.at_N]
        self.counts_S = torch.bincount(self.owner_N, minlength=len(lengths))

    def pick(self, values_T: Tensor) -> Tensor:
        """Values of the labelled tokens, [N]."""
        return values_T[self.at_N]

    def sums(self, values_N: Tensor) -> Tensor:
        """Sums over every completion, [S]."""
        return values_N.new_zeros(len(self.counts_S)).index_add(0, self.owner_N, values_N)

    def mean(self, values_N: Tensor) -> tuple[float, float]:
        """What a metric needs to become the mean over the step's tokens."""
        return float(values_N.detach().sum()), float(len(values_N))

    def mean_of_sequences(self, values_N: Tensor) -> tuple[float, float]:
        """The same over completions, of values that all tokens of one share."""
        return float((values_N / self.counts_S[self.owner_N]).sum()), float((self.counts_S > 0).sum())


def clipped_surrogate(
    ratios_N: Tensor, advantages_N: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's pessimistic surrogate (Schulman 2017), as a loss, and which ratios are clipped on which side."""
    bounded_N = ratios_N.clamp(1 - low, 1 + high)
    losses_N = -torch.minimum(ratios_N * advantages_N, bounded_N * advantages_N)
    below_N, above_N = (ratios_N < 1 - low) & (advantages_N < 0), (ratios_N > 1 + high) & (advantages_N > 0)
    names = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
    return losses_N, dict(zip(names, (below_N, above_N, below_N | above_N), strict=True))


def k3(logps_N: Tensor, reference_N: Tensor) -> Tensor:
    """Schulman's estimate of the divergence from the reference: never negative, with little variance."""
    delta_N = (reference_N - logps_N).clamp(-BOUND, BOUND)
    return delta_N.exp() - delta_N - 1


def mismatch(tokens: Tokens, trainer_N: Tensor, sampler_N: Tensor) -> dict[str, Metric]:
    """How far the trainer's log-probabilities of a rollout are from the engine's: 0 for equal numbers.

    ``kl_k1`` and ``kl_k3`` estimate the divergence of the engine's distribution from the trainer's, on tokens that the
    engine drew.
    """
    if not len(sampler_N):
        return {}
    delta_N = trainer_N.detach() - sampler_N
    return {
        "sampling/logp_difference/mean": tokens.mean(delta_N.abs()),
        "sampling/logp_difference/max": Most(float(delta_N.abs().max())),
        "sampling/kl_k1": tokens.mean(-delta_N),
        "sampling/kl_k3": tokens.mean(k3(sampler_N, trainer_N.detach())),
    }


def correction(tokens: Tokens, trainer_N: Tensor, sampler_N: Tensor, mode: str, cap: float) -> Tensor:
    """Weights for tokens that another distribution than the trainer's drew: its ratio to the engine's, without a
    gradient, bounded by ``cap`` or 0 above it (Yao et al. 2025, truncated importance sampling; IcePop's masks)."""
    delta_N = trainer_N.detach() - sampler_N
    if mode.startswith("sequence"):
        delta_N = tokens.sums(delta_N)[tokens.owner_N]
    weights_N = delta_N.clamp(-BOUND, BOUND).exp()
    return weights_N.clamp(max=cap) if mode.endswith("truncate") else weights_N.masked_fill(weights_N > cap, 0.0)
