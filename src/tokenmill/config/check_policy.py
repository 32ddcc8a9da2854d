"""The rules of ``check.py`` that are about policy gradients."""

from __future__ import annotations

from collections.abc import Iterator

from tokenmill.config.policy import PolicyConfig
from tokenmill.config.ppo import PpoConfig
from tokenmill.config.recipe import POLICY, Recipe
from tokenmill.config.rewards import GuardConfig
from tokenmill.config.tools import ToolsConfig


def policy_problems(r: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not go together; the keys, and what it is."""
    if r.objective not in POLICY:
        return
    policy = r.policy
    if r.model is None:
        yield ("objective", "model"), f"objective={r.objective} goes on with a model that can answer (model=NAME)"
    if not r.rewards:
        yield ("rewards",), f"objective={r.objective} needs something that rewards answers (rewards=FILE.py:function)"
    for key in ("accumulate", "batch_tokens", "tokens"):
        if getattr(r, key) is not None:
            yield (
                (key,),
                f"{key}={getattr(r, key)}: a step's size is policy.prompts x policy.group / policy.minibatches "
                "completions here, and a run's length steps or epochs",
            )
    if policy.group < 2 and r.objective != "ppo":
        yield (
            ("policy.group",),
            f"objective={r.objective} compares a prompt's completions: policy.group must be 2 or more",
        )
    if r.ppo.critic_model is not None and r.ppo.critic == "shared":
        yield ("ppo.critic_model",), f"ppo.critic_model={r.ppo.critic_model} needs ppo.critic=own"
    if r.batch_ramp:
        yield ("batch_ramp",), "batch_ramp: the batch is a rollout's, which does not grow"
    if r.adapter is not None and r.adapter.dropout:
        yield (
            ("adapter.dropout",),
            "adapter.dropout would make the policy another one than that which wrote the answers",
        )
    if policy.prompts * policy.group % policy.minibatches:
        yield (
            ("policy.prompts", "policy.group", "policy.minibatches"),
            f"{policy.prompts} x {policy.group} completions cannot be dealt to {policy.minibatches} minibatches evenly",
        )
    if policy.overlong_tokens > policy.completion_tokens:
        yield (
            ("policy.overlong_tokens", "policy.completion_tokens"),
            "policy.overlong_tokens is a part of policy.completion_tokens, and cannot be more",
        )
    if r.tools.use and r.data.prompts == "text":
        yield ("tools.use", "data.prompts"), "tools are called in a conversation, which data.prompts=text is not"
    if r.seq_len is not None and r.seq_len <= policy.completion_tokens:
        yield (
            ("seq_len", "policy.completion_tokens"),
            f"seq_len={r.seq_len} holds prompt and completion; policy.completion_tokens={policy.completion_tokens} "
            "leaves no room for a prompt",
        )


def micro_batches(r: Recipe, world_size: int) -> int:
    """Micro-batches of every process in an optimiser step; ``micro_batch`` counts completions here."""
    step = r.policy.prompts * r.policy.group // r.policy.minibatches // world_size
    return max(1, -(-step // r.micro_batch))


def policy_effects(r: Recipe) -> Iterator[tuple[str, bool, str]]:
    """(key, whether it has an effect, what it needs) of every key about policies."""
    policy = r.objective in POLICY
    several = r.policy.correction not in ("off",)
    words = "objective=grpo, rloo or ppo"
    for name in PolicyConfig.model_fields:
        if name == "loss":
            yield "policy.loss", r.objective == "grpo", "objective=grpo"
        elif name in ("scale", "dynamic_rounds"):
            grouped = r.objective in ("grpo", "rloo")
            yield f"policy.{name}", grouped or getattr(r.policy, name) in (None, "none"), "objective=grpo or rloo"
        elif name == "correction_cap":
            yield "policy.correction_cap", policy and several, f"{words}, with a policy.correction"
        elif name == "clip_low":
            weighted = r.objective == "grpo" and r.policy.loss == "cispo"
            yield "policy.clip_low", policy and (not weighted or r.policy.clip_low == 0.2), "another loss than cispo"
        else:
            yield f"policy.{name}", policy, words
    yield "rewards", policy, words
    for name in ("sample_prompts", "workers", "data.truncate", "data.masked", "data.add_eos", "data.cache"):
        yield name, not policy, "another objective than grpo, rloo or ppo, which read prompts and write their own data"
    for name in PpoConfig.model_fields:
        yield f"ppo.{name}", r.objective == "ppo", "objective=ppo"
    yield "tools.use", policy, words
    for name in ToolsConfig.model_fields:
        if name == "memory_mb":
            yield "tools.memory_mb", "python" in r.tools.use, "the tool python (tools=python)"
        elif name != "use":
            yield f"tools.{name}", bool(r.tools.use), "tools (tools.use)"
    for name in GuardConfig.model_fields:
        yield f"guards.{name}", policy, words
