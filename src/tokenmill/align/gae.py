"""From rewards of whole completions to the advantage of every token: the reference's price, GAE, whitening.

Tokens of several completions lie one after the other, as everywhere; ``counts`` says how many each has. Axes: N tokens
of all completions · S completions. Sources: GAE (Schulman 2015, arXiv 1506.02438), Ziegler 2019 (1909.08593).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.config.ppo import PpoConfig


@dataclass
class KlControl:
    """The price of a nat of distance; ``adaptive`` steers it so that completions keep to the target."""

    config: PpoConfig
    weight: float

    def update(self, kl: float, completions: int) -> None:
        """``kl``: mean nats a completion of a rollout of so many."""
        if self.config.kl == "adaptive":
            error = min(max(kl / self.config.kl_target - 1, -0.2), 0.2)
            self.weight *= 1 + error * completions / self.config.kl_horizon


def token_rewards(scores_S: Tensor, kl_N: Tensor, counts: Sequence[int], weight: float) -> Tensor:
    """[N]: each token pays for its distance, a completion's last one is given its score."""
    rewards_N = -weight * kl_N
    last_S = torch.tensor(counts, dtype=torch.int64).cumsum(0) - 1
    rewards_N[last_S] += scores_S.to(rewards_N.dtype)
    return rewards_N


def gae(rewards_N: Tensor, values_N: Tensor, counts: Sequence[int], *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates, [N]; nothing comes behind a completion's last token. Returns are these plus the
    values."""
    advantages_N = torch.empty_like(values_N)
    begin = 0
    for count in counts:
        rewards, values = rewards_N[begin : begin + count].tolist(), values_N[begin : begin + count].tolist()
        after = advantage = 0.0
        found = []
        for reward, value in zip(reversed(rewards), reversed(values), strict=True):
            advantage = reward + gamma * after - value + gamma * lam * advantage
            found.append(advantage)
            after = value
        advantages_N[begin : begin + count] = torch.tensor(found[::-1], dtype=advantages_N.dtype)
        begin += count
    return advantages_N


def whiten(values_N: Tensor, *, shift: bool = True) -> Tensor:
    """Divided by their standard deviation, less their mean where ``shift``. Fewer than two stay as they are."""
    if len(values_N) < 2:
        return values_N
    variance, mean = torch.var_mean(values_N.double())
    white_N = (values_N - mean) * (variance + 1e-8) ** -0.5
    return (white_N if shift else white_N + mean).to(values_N.dtype)
