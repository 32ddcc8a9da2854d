"""The part of a recipe that only proximal policy optimisation reads; how completions are written and ratios are clipped
stands in ``policy``.

Sources: Schulman 2017 (arXiv 1707.06347), GAE (1506.02438), Ziegler 2019 (1909.08593), Huang 2024, "The N+
implementation details of RLHF with PPO" (2403.17031), whose values are the defaults.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tokenmill.config.parts import Count, Part, Positive, Share


class PpoConfig(Part):
    """How PPO turns rewards into advantages and learns what states are worth."""

    critic: Literal["shared", "own"] = "shared"
    """What says how much a state is worth: a scalar head on the policy's own hidden states, or on those of a second
    model, whose weights are all trained (as much memory again)."""
    critic_model: str | None = None
    """critic=own: the model it begins as, such as the reward model; without it the policy's."""
    critic_lr: Positive = 10.0
    """The critic's head learns this many times as fast as all else: it is new."""
    value_weight: Annotated[float, Field(gt=0.0)] = 0.1
    """Of the critic's loss beside the policy's."""
    value_clip: Annotated[float, Field(ge=0.0)] = 0.2
    """A value moves at most so far from what it was when the completions were written; 0: as far as it likes."""
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """What a reward is worth a token earlier."""
    gae_lambda: Share = 0.95
    """Between one step of the critic's foresight (0) and the whole completion's reward (1)."""
    kl: Literal["fixed", "adaptive"] = "adaptive"
    """What a nat of distance to the reference costs, token by token: ``policy.beta`` throughout, or what follows
    ``kl_target``, with ``policy.beta`` at the beginning."""
    kl_target: Positive = 6.0
    """adaptive: nats a completion (the sum over its tokens) that the weight steers to."""
    kl_horizon: Count = 10_000
    """adaptive: completions over which the weight may grow by a fifth of itself (Ziegler 2019)."""
    whiten_rewards: bool = False
    """Divide rewards, with what the distance costs, by their standard deviation over the rollout."""
    missing_end: Annotated[float, Field(ge=0.0)] = 1.0
    """Taken from the reward of a completion that was cut off before its end."""
