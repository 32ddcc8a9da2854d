"""What a run of a policy objective derives: its losses' numbers, rate, correction, steps and micro-batches."""

from __future__ import annotations

import math

from tokenmill.config.check_policy import micro_batches
from tokenmill.config.policy import derived_policy
from tokenmill.config.recipe import POLICY, Recipe
from tokenmill.core.errors import ConfigError
from tokenmill.data.prepare import Splits
from tokenmill.data.prompts import Prompts
from tokenmill.train.new_model import Derivations

FULL_RATE, ADAPTER_RATE = 1e-6, 1e-5


def policy_length(recipe: Recipe, found: Derivations, prompts: int, world_size: int) -> tuple[int, int]:
    """Steps of the run and micro-batches of a step. ``prompts``: of an epoch. ConfigError: processes that cannot share
    a rollout evenly."""
    policy = recipe.policy
    step = policy.prompts * policy.group // policy.minibatches
    if policy.prompts % world_size or step % world_size:
        raise ConfigError(
            f"policy.prompts={policy.prompts} and the {step} completions of a step cannot be shared by {world_size} "
            "processes evenly"
        )
    name = policy.loss if recipe.objective == "grpo" else recipe.objective
    for key, value in derived_policy(recipe.objective, policy).items():
        found.put(f"policy.{key}", value, f"{name}'s")
    if recipe.lr is None:
        adapter = recipe.adapter is not None
        found.put("lr", ADAPTER_RATE if adapter else FULL_RATE, "of an adapter" if adapter else "of all weights (TRL)")
    if recipe.steps is not None:
        return recipe.steps, micro_batches(recipe, world_size)
    epochs = recipe.epochs
    if epochs is None:
        epochs = found.put("epochs", 1.0, "one pass over the prompts, unless steps or epochs say otherwise")
    rollouts = max(1, math.ceil(epochs * prompts / policy.prompts))
    each = policy.iterations * policy.minibatches
    reason = f"{epochs:g} epochs of {prompts} prompts = {rollouts} rollouts of {policy.prompts}, {each} steps each"
    steps = int(found.put("steps", rollouts * each, reason))
    found.put("epochs", None, "said in steps")
    return steps, micro_batches(recipe, world_size)


def policy_correction(recipe: Recipe, found: Derivations) -> None:
    """Whether the engine's numbers are corrected, once it is known what the trainer computes in."""
    policy = recipe.policy
    if policy.correction != "auto":
        return
    dtype = found.values.get("dtype", recipe.dtype)
    exact = dtype == "float32" and policy.rollout_dtype == "auto" and policy.rollout_cache in ("auto", "fp32")
    if exact and recipe.quantize is None:
        found.put("policy.correction", "off", "engine and trainer both compute in float32")
    else:
        found.put("policy.correction", "token_truncate", "engine and trainer round in different places")


def longest_rollout(recipe: Recipe, splits: Splits) -> int | None:
    """Tokens of the longest prompt with the longest completion, those that are held out included; None where the model
    writes nothing."""
    if recipe.objective not in POLICY:
        return None
    prompts = [part for part in (splits.train, splits.eval) if isinstance(part, Prompts)]
    return max(int(part.lengths.max(initial=0)) for part in prompts) + recipe.policy.completion_tokens
