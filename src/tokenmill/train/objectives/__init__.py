"""What is minimised: one small file an objective, by the names of ``Recipe.objective``.

See :mod:`tokenmill.train.objectives.base` for what an objective is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tokenmill.core.errors import ConfigError
from tokenmill.train.objectives.base import Loss, Objective
from tokenmill.train.objectives.distill import Distill
from tokenmill.train.objectives.kto import Kto
from tokenmill.train.objectives.mlm import MaskedTokens
from tokenmill.train.objectives.next_token import NextToken
from tokenmill.train.objectives.pairs import Dpo, Orpo, SimPo
from tokenmill.train.objectives.policy import Policy, policy_objective
from tokenmill.train.objectives.ppo import Ppo
from tokenmill.train.objectives.reward import BradleyTerry
from tokenmill.train.objectives.span import LostSpans

if TYPE_CHECKING:
    from tokenmill.config.recipe import Recipe

__all__ = [
    "OBJECTIVES",
    "BradleyTerry",
    "Distill",
    "Dpo",
    "Kto",
    "Loss",
    "LostSpans",
    "MaskedTokens",
    "NextToken",
    "Objective",
    "Orpo",
    "Policy",
    "Ppo",
    "SimPo",
    "build_objective",
]

OBJECTIVES: Mapping[str, Callable[[Recipe], Objective]] = {
    "next_token": lambda recipe: NextToken(recipe.z_loss),
    "sft": lambda recipe: NextToken(recipe.z_loss),
    "mlm": lambda recipe: MaskedTokens(recipe.z_loss),
    "span": lambda recipe: LostSpans(recipe.z_loss),
    "dpo": lambda recipe: Dpo(recipe.preference),
    "simpo": lambda recipe: SimPo(recipe.preference),
    "orpo": lambda recipe: Orpo(recipe.preference),
    "kto": lambda recipe: Kto(recipe.preference),
    "reward": lambda recipe: BradleyTerry(recipe.reward),
    "grpo": policy_objective,
    "rloo": policy_objective,
    "ppo": lambda recipe: Ppo(recipe.policy, recipe.ppo),
}


def build_objective(recipe: Recipe) -> Objective:
    """The recipe's objective, where it follows from the recipe alone; :class:`Distill` has a teacher besides."""
    if recipe.objective not in OBJECTIVES:
        raise ConfigError(f"objective {recipe.objective!r} cannot be trained yet; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[recipe.objective](recipe)
