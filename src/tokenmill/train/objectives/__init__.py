"""What is minimised: one small file an objective, by the names of ``Recipe.objective``.

See :mod:`tokenmill.train.objectives.base` for what an objective is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tokenmill.core.errors import ConfigError
from tokenmill.train.objectives.base import Loss, Objective
from tokenmill.train.objectives.mlm import MaskedTokens
from tokenmill.train.objectives.next_token import NextToken
from tokenmill.train.objectives.span import LostSpans

if TYPE_CHECKING:
    from tokenmill.config.recipe import Recipe

__all__ = ["OBJECTIVES", "Loss", "LostSpans", "MaskedTokens", "NextToken", "Objective", "build_objective"]

OBJECTIVES: Mapping[str, Callable[[Recipe], Objective]] = {
    "next_token": lambda recipe: NextToken(recipe.z_loss),
    "sft": lambda recipe: NextToken(recipe.z_loss),
    "mlm": lambda recipe: MaskedTokens(recipe.z_loss),
    "span": lambda recipe: LostSpans(recipe.z_loss),
}


def build_objective(recipe: Recipe) -> Objective:
    """The recipe's objective."""
    if recipe.objective not in OBJECTIVES:
        raise ConfigError(f"objective {recipe.objective!r} cannot be trained yet; known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[recipe.objective](recipe)
