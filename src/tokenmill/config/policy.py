"""The part of a recipe that is about policy gradients: what is written, how it is rewarded, how the policy follows.

A variant (``policy.loss``) is a set of values for the fields that are None here; each can be set apart. The sources of
the values: GRPO (DeepSeekMath, arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO (2507.18071), CISPO
(MiniMax-M1, 2506.13585), RLOO (2402.14740).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from tokenmill.config.parts import Count, Part, Positive

Correction = Literal["auto", "off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Scale = Literal["group", "batch", "none"]
Variant = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"]


class PolicyConfig(Part):
    """How a policy learns from rewards for what it writes itself: the objectives grpo, rloo and ppo."""

    loss: Variant = "grpo"
    """grpo: every completion counts the same, whatever its length. bnpo, dapo: every token of a step counts the same;
    dapo clips high ratios later. dr_grpo: tokens over the longest length, rewards not scaled. gspo: one ratio a
    completion. cispo: the ratio is a weight, bounded and without a gradient."""
    prompts: Count = 8
    """Prompts of one rollout, over all processes."""
    group: Count = 8
    """Completions of each prompt; grpo and rloo compare them with each other."""
    completion_tokens: Count = 128
    """Longest completion; what is longer is cut off there."""
    temperature: Positive = 1.0
    """Of drawing, and of the log-probabilities that are trained."""
    iterations: Count = 1
    """Passes over a rollout before the next one is written (the papers' mu)."""
    minibatches: Count = 1
    """Optimiser steps of a pass."""
    clip_low: Positive | None = None
    """Ratios below 1 - clip_low have no gradient where the advantage is negative; derived from the loss."""
    clip_high: Positive | None = None
    """Ratios above 1 + clip_high have none where it is positive; cispo: the largest weight; derived from the loss."""
    scale: Scale | None = None
    """What rewards less their group's mean are divided by: the group's standard deviation, the whole rollout's, or
    nothing; derived from the loss."""
    beta: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of the divergence from the reference, which is the policy as it begins: of the estimate k3 in the loss
    (grpo), of k1 in the reward (rloo, ppo). Derived: 0, for which no reference is computed (rloo, ppo: 0.05)."""
    mask_truncated: bool = False
    """Learn nothing from completions that were cut off (DAPO's overlong filtering)."""
    overlong_tokens: Annotated[int, Field(ge=0)] = 0
    """Of the longest length, the last so many tokens cost reward: 0 where they begin, down to -1 where they end (DAPO's
    soft overlong punishment). 0: nothing is subtracted."""
    dynamic_rounds: Annotated[int, Field(ge=0)] = 0
    """How often prompts whose completions all got the same reward are replaced by the next ones (DAPO's dynamic
    sampling); what is still without a difference then counts as it is."""
    correction: Correction = "auto"
    """What is done where trainer and engine compute different log-probabilities: weights of their ratio, truncated
    (TIS) or put to 0 above ``correction_cap``, for each token or completion. auto: token_truncate where the engine
    computes in fewer bits than the trainer, else off."""
    correction_cap: Positive = 3.0
    """The largest such weight."""
    rollout_dtype: Literal["auto", "bfloat16"] = "auto"
    """What the engine computes completions with: the policy's own numbers, or bfloat16 copies of its matrices."""
    rollout_cache: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """How the engine stores keys and values; auto: as it computes."""


@dataclass(frozen=True)
class Preset:
    """What a variant means: the values that it derives, and those that only it has."""

    clip_low: float
    clip_high: float
    scale: Scale
    ratio: Literal["token", "sequence_mean", "sequence_sum"]
    """Of what the new and the old policy are compared: a token, the geometric mean of a completion, all of it."""
    mean: Literal["sequences", "tokens", "longest"]
    """What the loss is a mean over: completions (each the mean of its tokens), tokens, or tokens as if all completions
    had the longest length."""
    beta: float = 0.0
    weighted: bool = False
    """The ratio is a bounded weight of the log-probability, instead of what is differentiated."""


PRESETS: Mapping[str, Preset] = {
    "grpo": Preset(0.2, 0.2, "group", "token", "sequences"),
    "bnpo": Preset(0.2, 0.2, "group", "token", "tokens"),
    "dr_grpo": Preset(0.2, 0.2, "none", "token", "longest"),
    "dapo": Preset(0.2, 0.28, "group", "token", "tokens"),
    "gspo": Preset(3e-4, 4e-4, "group", "sequence_mean", "sequences"),
    "cispo": Preset(0.2, 5.0, "group", "token", "tokens", weighted=True),
    "rloo": Preset(0.2, 0.2, "none", "sequence_sum", "sequences", beta=0.05),
    "ppo": Preset(0.2, 0.2, "none", "token", "tokens", beta=0.05),
}
"""By ``policy.loss``; the objectives rloo and ppo have their own, whatever stands there."""


def preset_of(objective: str, policy: PolicyConfig) -> Preset:
    """What an objective and its variant mean."""
    return PRESETS[policy.loss if objective == "grpo" else objective]


def derived_policy(objective: str, policy: PolicyConfig) -> dict[str, Any]:
    """The values that a policy leaves open, by field."""
    preset = preset_of(objective, policy)
    names = ("clip_low", "clip_high", "scale", "beta")
    return {name: getattr(preset, name) for name in names if getattr(policy, name) is None}
