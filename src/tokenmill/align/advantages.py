"""From the rewards of a group of completions to what each is worth beside the others. NaN: a completion without one.

Equal to TRL 1.16's (``tests/parity/test_policy.py``). Axes: G groups (prompts) · K completions of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.config.policy import Scale

EPSILON = 1e-4
"""Added to standard deviations, so that a group whose rewards hardly differ is not blown up (DeepSeekMath's code)."""


def group_advantages(rewards_GK: Tensor, scale: Scale) -> Tensor:
    """Rewards less their group's mean, over the standard deviation that ``scale`` names; 0 where there is no reward."""
    advantages_GK = rewards_GK - rewards_GK.nanmean(1, keepdim=True)
    if scale == "group":
        advantages_GK = advantages_GK / (nanstd(rewards_GK)[:, None] + EPSILON)
    elif scale == "batch":
        advantages_GK = advantages_GK / (nanstd(rewards_GK.reshape(1, -1)) + EPSILON)
    return advantages_GK.nan_to_num(0.0)


def leave_one_out(rewards_GK: Tensor, scale: Scale) -> Tensor:
    """Each reward less the mean of the others of its group (Ahmadian 2024); ``batch`` whitens them over all groups.

    0 where there is no reward, or no other one.
    """
    counts_G1 = (~rewards_GK.isnan()).sum(1, keepdim=True)
    baselines_GK = (rewards_GK.nansum(1, keepdim=True) - rewards_GK) / (counts_G1 - 1)
    advantages_GK = rewards_GK - baselines_GK
    advantages_GK = advantages_GK.masked_fill(counts_G1 < 2, torch.nan)
    if scale == "group":
        advantages_GK = advantages_GK / (nanstd(rewards_GK)[:, None] + EPSILON)
    elif scale == "batch":
        advantages_GK = (advantages_GK - advantages_GK.nanmean()) / (nanstd(advantages_GK.reshape(1, -1)) + EPSILON)
    return advantages_GK.nan_to_num(0.0)


def without_difference(rewards_GK: Tensor) -> Tensor:
    """Groups from which nothing can be learned, bool [G]: all rewards are the same, or there are none."""
    low_G = rewards_GK.nan_to_num(torch.inf).amin(1)
    high_G = rewards_GK.nan_to_num(-torch.inf).amax(1)
    return high_G - low_G <= 1e-8


def nanstd(rewards_GK: Tensor) -> Tensor:
    """Standard deviation of every row with Bessel's correction, [G]; NaN where a row has fewer than two rewards."""
    counts_G = (~rewards_GK.isnan()).sum(1)
    variances_G = (rewards_GK - rewards_GK.nanmean(1, keepdim=True)).square().nansum(1) / (counts_G - 1)
    return variances_G.masked_fill(counts_G < 2, torch.nan).sqrt()


def overlong(tokens: int, longest: int, last: int) -> float:
    """What a completion's length costs: from 0 to -1 over the ``last`` tokens before ``longest`` (DAPO, eq. 13)."""
    return -max(0.0, tokens - (longest - last)) / last if last else 0.0
