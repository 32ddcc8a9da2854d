"""Proximal policy optimisation: the clipped surrogate with advantages of tokens, and a critic that learns returns.

Equal to a reference written from the papers (``tests/parity/test_ppo.py``); TRL 1.16 has no PPO any more. Values clip
as in the authors' code: the larger of both errors. Axes: T tokens of the batch · N tokens that have a label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenmill.config.policy import PolicyConfig
from tokenmill.config.ppo import PpoConfig
from tokenmill.nn.shared import hidden_states
from tokenmill.train.objectives.base import Loss, Metric
from tokenmill.train.objectives.logprobs import head_logprobs
from tokenmill.train.objectives.policy import BOUND, Tokens, clipped_surrogate, correction, mismatch

if TYPE_CHECKING:
    from tokenmill.data.rollout_batch import RolloutBatch
    from tokenmill.nn.critic import Critic


class Ppo:
    """Policy and critic in one forward pass; both losses are means over the step's tokens."""

    def __init__(self, policy: PolicyConfig, config: PpoConfig) -> None:
        self.policy, self.config = policy, config

    def __call__(self, model: Any, batch: RolloutBatch) -> Loss:
        assert batch.old_T is not None
        assert batch.values_T is not None
        assert batch.returns_T is not None
        tokens = Tokens(batch)
        pick = tokens.pick
        logps_T, values_T = evaluate(model, batch, self.policy.temperature)
        logps_N, old_N, values_N = pick(logps_T), pick(batch.old_T), pick(values_T)
        ratios_N = (logps_N - old_N).clamp(-BOUND, BOUND).exp()
        low, high = self.policy.clip_low or 0.0, self.policy.clip_high or 0.0
        losses_N, clipped = clipped_surrogate(ratios_N, pick(batch.advantages_T), low, high)
        errors_N, stopped_N = value_losses(
            values_N, pick(batch.values_T), pick(batch.returns_T), self.config.value_clip
        )
        metrics: dict[str, Metric] = {**mismatch(tokens, old_N, pick(batch.sampler_T))}
        if self.policy.correction != "off":
            sampler_N, mode = pick(batch.sampler_T), self.policy.correction
            losses_N = losses_N * correction(tokens, old_N, sampler_N, mode, self.policy.correction_cap)
        metrics |= {name: tokens.mean(one_N.float()) for name, one_N in clipped.items()}
        metrics |= {
            "policy_loss": tokens.mean(losses_N),
            "value/loss": tokens.mean(errors_N),
            "value/clipped": tokens.mean(stopped_N.float()),
            "value/mean": tokens.mean(values_N),
            "policy/approximate_kl": tokens.mean((logps_N - old_N).square() / 2),
            "entropy": tokens.mean(-logps_N),
        }
        total = losses_N.sum() + self.config.value_weight * errors_N.sum()
        return Loss(total, batch.num_labels, {**metrics, **batch.measured})


def evaluate(model: Any, batch: RolloutBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the labels and values of all positions, [T] both."""
    critic: Critic = model.critic
    hidden_TC = hidden_states(model, batch.tokens_T, batch.lengths)
    logps_T = head_logprobs(model, hidden_TC, batch.labels_T, temperature)
    return logps_T, critic(hidden_TC, batch.tokens_T, batch.lengths)


def value_losses(values_N: Tensor, before_N: Tensor, returns_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half of the squared error of every value, the larger one of it and of the clipped value's; and where that is."""
    errors_N = (values_N - returns_N).square()
    if not clip:
        return errors_N / 2, torch.zeros_like(errors_N, dtype=torch.bool)
    clipped_N = before_N + (values_N - before_N).clamp(-clip, clip)
    others_N = (clipped_N - returns_N).square()
    return torch.maximum(errors_N, others_N) / 2, others_N > errors_N
