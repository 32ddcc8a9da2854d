"""PPO's side of a rollout: a critic beside the policy, the reference's price in the reward, advantages of every token.

The rest is :mod:`tokenmill.align.policy`'s. Returns and advantages are computed once a rollout, from what policy,
reference and critic said of it when it was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.align.experience import Completion, Rollout, batch_of
from tokenmill.align.gae import KlControl, gae, token_rewards, whiten
from tokenmill.align.policy import RolloutSource
from tokenmill.align.rollouts import evaluating
from tokenmill.core.errors import ConfigError
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.models.scorer import add_score_head
from tokenmill.nn.critic import Critic
from tokenmill.nn.scorer import Scorer
from tokenmill.train.objectives.logprobs import NO_LABEL
from tokenmill.train.objectives.ppo import evaluate
from tokenmill.train.plan import Plan


def add_critic(plan: Plan, model: Model) -> None:
    """Give the policy's network its critic, trained with it and kept in checkpoints; it is not exported."""
    recipe, network = plan.recipe, model.decoder
    trunk: Scorer | None = None
    if recipe.ppo.critic == "own":
        name = recipe.ppo.critic_model or recipe.model
        assert name is not None
        own = load_model(name, device=network.device, dtype=network.dtype)
        if own.decoder.config.vocab_size != network.config.vocab_size:
            raise ConfigError(
                f"ppo.critic_model={name} has another vocabulary than the policy, whose tokens it is to read"
            )
        scored = add_score_head(own, seed=recipe.seed, pad_token_id=plan.tokenizer.eos_token_id).network
        assert isinstance(scored, Scorer)
        trunk = scored
    critic = Critic(network.config.hidden_size, trunk).to(network.device)
    network.add_module("critic", critic.requires_grad_(True))


class PpoSource(RolloutSource):
    """Rollouts with advantages of tokens."""

    def __init__(self, plan: Plan, model: Model, *parts: Any) -> None:
        super().__init__(plan, model, *parts)
        add_critic(plan, model)
        self.config = plan.recipe.ppo
        self.control = KlControl(self.config, plan.recipe.policy.beta or 0.0)
        self._told: dict[str, tuple[float, float]] = {}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kl_weight": self.control.weight}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.control.weight = state["kl_weight"]

    def _written(self) -> Rollout:
        rollout = super()._written()
        return replace(rollout, measured={**rollout.measured, **self._told})

    @torch.no_grad()
    def _known(self, found: list[Completion], prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """With log-probabilities by trainer and reference, and the critic's values."""
        known: list[Completion] = []
        network, size = self.model.decoder, self.recipe.micro_batch
        with evaluating(network):
            for start in range(0, len(found), size):
                here = found[start : start + size]
                learned = [replace(one, learned=True) for one in here]
                batch = batch_of(learned, prompts[start : start + size], per_token=True).to(network.device)
                at_N = batch.labels_T != NO_LABEL
                counts = [one.count for one in here]
                old, values = (
                    [part.tolist() for part in said_T[at_N].float().cpu().split(counts)]
                    for said_T in evaluate(network, batch, self.recipe.policy.temperature)
                )
                known += [replace(one, old=o, values=v) for one, o, v in zip(here, old, values, strict=True)]
        if self.reference is None:
            return known
        with self.reference as model:
            reference = self._logprobs(model, known, prompts)
        return [replace(one, reference=values) for one, values in zip(known, reference, strict=True)]

    def _reward(self, one: Completion, total: float | None) -> float | None:
        """Less what a missing end costs."""
        reward = super()._reward(one, total)
        return reward if reward is None or one.finished else reward - self.config.missing_end

    def judged(self, groups: Sequence[Sequence[Completion]], rewards_GK: Tensor) -> list[Completion]:
        """Advantages and returns; nothing is learned from a completion without a reward."""
        found = [one for group in groups for one in group]
        here = [one for one in found if one.reward is not None]
        counts = [one.count for one in here]
        values_N, kl_N = _joined(here, "values"), self._distance(here)
        scores_S = torch.tensor([one.reward for one in here], dtype=torch.float32)
        rewards_N = token_rewards(scores_S, kl_N, counts, self.control.weight)
        if self.config.whiten_rewards:
            rewards_N = whiten(rewards_N, shift=False)
        raw_N = gae(rewards_N, values_N, counts, gamma=self.config.gamma, lam=self.config.gae_lambda)
        returns_N = raw_N + values_N
        self._tell(kl_N, returns_N, values_N, len(here))
        advantages = [part.tolist() for part in whiten(raw_N).split(counts)]
        returns = [part.tolist() for part in returns_N.split(counts)]
        known = iter(
            [replace(one, advantages=a, returns=r) for one, a, r in zip(here, advantages, returns, strict=True)]
        )
        return [_left_out(one) if one.reward is None else next(known) for one in found]

    def _distance(self, found: Sequence[Completion]) -> Tensor:
        """The estimate k1 of the distance to the reference, token by token: what is paid for."""
        old_N = _joined(found, "old")
        return old_N - _joined(found, "reference") if self.reference is not None else torch.zeros_like(old_N)

    def _tell(self, kl_N: Tensor, returns_N: Tensor, values_N: Tensor, count: int) -> None:
        tokens, spread = float(len(kl_N)), float(returns_N.var(correction=0)) if len(returns_N) else 0.0
        explained = 1 - float((returns_N - values_N).var(correction=0)) / spread if spread else 0.0
        self._told = {"value/explained_variance": (explained, 1.0)}
        if self.reference is not None:
            total = float(kl_N.sum())
            self._told |= {
                "kl": (total, tokens),
                "kl/completion": (total, count),
                "kl/weight": (self.control.weight, 1.0),
            }
            if count:
                self.control.update(total / count, count)


def _joined(found: Sequence[Completion], name: str) -> Tensor:
    return torch.tensor([value for one in found for value in getattr(one, name)], dtype=torch.float32)


def _left_out(one: Completion) -> Completion:
    nothing = [0.0] * one.count
    return replace(one, advantages=nothing, returns=nothing, learned=False)
